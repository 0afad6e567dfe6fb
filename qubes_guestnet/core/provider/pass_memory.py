# SPDX-License-Identifier: GPL-2.0-or-later
"""What one pass of a provider leaves for the next: one frozen value, with one part for each step that needs one.

A pass is a function of what it observes and of this value, so it can be replayed, and tested from any state. The empty
value is that of a process that has just begun: everything is looked at.
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
    """What one pass leaves for the next. A part that is None was not needed so far.

    Args:
        verified: part of the rules → when it was last found as it should be.
        handles: of the base rules, as long as all are there (family, chain, handle).
        ipv6_missing: the journal was told that the kernel has no IPv6.
        scripts_lost: the firewall's tables were removed, and with them the rules of users' scripts; its unit is to be
            restarted.
        guard_refused: the kernel takes no table with an owner; that is asked once in the life of a process.
        swept: what all vifs were last made for; None: each is to be looked at.
        redirect: of the virtual DNS.
        offload: of the flowtable.
        firewall: of single qubes.
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
        """Return the memory in which a part of the rules is as it should be.

        Args:
            part: a name for it.
            mark: taken before looking, so that a change meanwhile is noticed.
        """
        return self._replace(verified={**self.verified, part: mark})

    def invalidate(self, part: str) -> PassMemory:
        """Return the memory in which it is not known whether a part of the rules is as it should be."""
        return self._replace(verified={each: mark for each, mark in self.verified.items() if each != part})

    def doubted(self) -> PassMemory:
        """Return the memory that takes nothing in the kernel for granted."""
        firewall = self.firewall.doubted() if self.firewall is not None else None
        return self._replace(verified={}, swept=None, firewall=firewall)
