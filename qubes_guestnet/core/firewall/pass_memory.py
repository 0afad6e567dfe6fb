# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of the client qubes' firewall between passes: the lists, and related state."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ..namedtuple import NamedTuple
from ..values import IPAddress
from .commits import Outcome
from .enforcement import Memory
from .name_cache import Share
from .name_settings import NameSettings

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..nft.mark import Mark
    from .listing import Listed
    from .rules import Problem


class FirewallMemory(NamedTuple):
    """The memory between passes.

    Args:
        lists: of all qubes, and what of them is in force.
        settings: what the owner chose for names, as of the last file that was valid.
        share: the names of all lists.
        shared_of: the lists that these names are of.
        listed: what is loaded, by family, and since when nothing else was; None: nft has to be asked.
        detached: addresses of vifs that went out of service since the entries were read; such a vif may be back by the
            next pass.
        found: addresses of vifs that were there before and are set up now; dom0 has committed their rules.
        noticed: address → when a notification of its list was shown, in seconds of a monotonic clock.
        problems: of the names of folders in QubesDB, as the journal was told.
    """

    lists: Memory = Memory()
    settings: NameSettings = NameSettings()
    share: Share = Share(frozenset(), {})
    shared_of: Outcome | None = None
    listed: tuple[Mark, Mapping[int, Listed]] | None = None
    detached: frozenset[IPAddress] = frozenset()
    found: frozenset[IPAddress] = frozenset()
    noticed: Mapping[IPAddress, float] = {}
    problems: tuple[Problem, ...] = ()

    @property
    def settled(self) -> bool:
        """Return whether the loaded rules were verified, and nothing has changed since."""
        return self.lists.wanted is not None

    def doubted(self) -> FirewallMemory:
        """Return the memory that takes nothing loaded for granted, and tries again what nft refused."""
        return self._replace(lists=self.lists._replace(wanted=None, refused={}), listed=None)

    def with_detached(self, addresses: Iterable[IPAddress]) -> FirewallMemory:
        """Return the memory after a vif with these addresses went out of service."""
        return self._replace(detached=self.detached.union(addresses))

    def with_found(self, addresses: Iterable[IPAddress]) -> FirewallMemory:
        """Return the memory after a vif with these addresses was set up that was there before."""
        return self._replace(found=self.found.union(addresses))

    def is_due(self, devices: Mapping[IPAddress, object]) -> bool:
        """Return whether entries have to be read again though no watch told of any.

        Args:
            devices: address of each qube → its interface.
        """
        return bool(self.detached or self.found & devices.keys()) or self.lists.is_due(devices)  # type: ignore[arg-type]

    def advanced(self, lists: Memory, taken: Collection[IPAddress]) -> FirewallMemory:
        """Return the memory once the entries were read.

        Args:
            lists: with what the entries say.
            taken: of those found, the ones that were attached by then.
        """
        return self._replace(lists=lists, detached=frozenset(), found=self.found.difference(taken))
