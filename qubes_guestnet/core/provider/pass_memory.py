# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a provider between passes: one frozen value, with a part for each step that needs one.

A pass is a function of its observations and of this value, so it can be replayed, and tested from any state. A new
process has the empty value, with which a pass reads everything.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..namedtuple import NamedTuple

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..dns.redirection import RedirectMemory
    from ..firewall.pass_memory import FirewallMemory
    from ..nft.mark import Mark
    from .offload import OffloadMemory


class PassMemory(NamedTuple):
    """The memory between passes. A part that is None was not needed so far.

    Args:
        verified: part of the rules → when it was last verified.
        handles: handles of the base rules, while all exist (family, chain, handle).
        ipv6_missing: the missing IPv6 of the kernel is logged.
        scripts_lost: the firewall's tables were removed, and with them the rules of users' scripts, so its unit must be
            restarted.
        guard_refused: the kernel has no tables with an owner; tested once in the life of a process.
        swept: the settings for which all vifs are verified; None: check each.
        redirect: memory of the DNS redirection.
        offload: memory of the flowtable.
        firewall: memory of the client qubes' firewall.
    """

    verified: Mapping[str, Mark] = {}
    handles: frozenset[tuple[str, str, bytes]] = frozenset()
    ipv6_missing: bool = False
    scripts_lost: bool = False
    guard_refused: bool = False
    swept: tuple[object, ...] | None = None
    redirect: RedirectMemory | None = None
    offload: OffloadMemory | None = None
    firewall: FirewallMemory | None = None

    def mark_verified(self, part: str, mark: Mark) -> PassMemory:
        """Return the memory with a part of the rules marked as verified.

        Args:
            part: its name.
            mark: a mark taken before the listing, so that a change meanwhile is detected.
        """
        return self._replace(verified={**self.verified, part: mark})

    def invalidate(self, part: str) -> PassMemory:
        """Return the memory with a part of the rules marked as unverified."""
        return self._replace(verified={each: mark for each, mark in self.verified.items() if each != part})

    def doubted(self) -> PassMemory:
        """Return the memory with nothing marked as verified."""
        firewall = self.firewall.doubted() if self.firewall is not None else None
        return self._replace(verified={}, swept=None, firewall=firewall)
