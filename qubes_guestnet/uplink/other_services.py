# SPDX-License-Identifier: GPL-2.0-or-later
"""Other services related to the uplink: NetworkManager, systemd-resolved, a user's hooks.

A pass plans them last, after the kernel and resolv.conf, so that a hanging or missing service does not affect these.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..core.operations import Outcome, Planned, in_order
from ..core.owned_state import Interface, Record
from ..core.report import Uplinks
from ..core.uplink import networkmanager as nm
from ..core.uplink.networkmanager import ManagerChoice
from ..system import networkmanager as nm_system
from ..system import systemd_sysctl
from ..system.dbus import resolved
from . import networkmanager
from .resolved import Resolved
from .system_bus import BusHolder

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..core.dns.upstream_servers import Heard
    from ..core.operations import Operation
    from ..core.values import Link


class OtherServices:
    """The other services as one process asks them.

    Args:
        flags: folder of the service flags.
        resident: stay connected to the bus, to be woken when a service comes or goes.
        attending: False where only the choice of the manager is asked for.
    """

    def __init__(self, flags: str, *, resident: bool = False, attending: bool = True) -> None:
        self._flags, self._attending = flags, attending
        self._bus = BusHolder(resident)
        self._saved = True  # the profiles that the user saved are still to be looked at, once in the life of a process
        self.resolved = Resolved(self._bus)

    # --- wake-ups, for the agent ---------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the descriptor for poll; -1 while there is no bus."""
        return self._bus.fileno()

    def drain(self) -> bool:
        """Read what the bus sent, a bounded part of it; True if a service came or went, or the bus did."""
        if not self._bus.drain():
            return False
        self.resolved.stirred()
        return True

    def timers(self) -> dict[str, float]:
        """Return when a pass is to follow for the sake of the bus, of the monotonic clock; to be asked after each."""
        due = self._bus.due()
        if due is None:
            return {}
        self.resolved.stirred()  # what came while something was asked may be the late answer
        return {"bus": due}

    @property
    def wakes(self) -> bool:
        """Return whether the start of NetworkManager wakes the agent; otherwise passes must check regularly."""
        return self._bus.fileno() >= 0

    def follow_names(self) -> None:
        """Be woken too when systemd-resolved gets other servers: a provider's virtual DNS follows them."""
        self._bus.follow_names()

    # --- what a pass asks ----------------------------------------------------------------------------------------

    def manager(self) -> ManagerChoice:
        """Return which program configures the uplink."""
        return nm.choose_manager(nm_system.facts(self._flags))

    def hear_names(self, uplinks: frozenset[int]) -> Heard:
        """See Resolved.hear."""
        return self.resolved.hear(uplinks)

    def plan(self, uplinks: Uplinks, record: Record, so_far: Outcome) -> Planned:
        """Observe and plan.

        Args:
            uplinks: what the pass has found and done.
            record: the owned record.
            so_far: result of the operations of this pass so far.
        """
        if not self._attending:
            return Planned((), record)
        self._bus.open()
        saved = self._saved and self.manager().networkmanager
        profiles = networkmanager.plan(uplinks, record, so_far, saved=saved)
        runs = Planned((), profiles.record)
        if uplinks.settings.provider:
            from . import hooks  # in providers

            runs = hooks.plan(uplinks, profiles.record, so_far)
        names = self.resolved.plan(uplinks, runs.record, so_far)
        return Planned(
            in_order(profiles.ops + runs.ops + names.ops), names.record, profiles.waits, profiles.errors + names.errors
        )

    def looked_after(self) -> None:
        """Note the end of a pass that applied its plan."""
        self._saved = self._saved and not self.manager().networkmanager

    def letting_go(self, entry: Interface, link: Link) -> Iterable[Operation]:
        """Return what has the other services let go of an interface that is taken out of service.

        Args:
            entry: what the record knows of it.
            link: the interface.
        """
        self._bus.open()
        if entry.profile:
            from ..core.uplink import profiles

            yield from profiles.forget(entry, link)
        if entry.resolved and resolved.present():
            from ..core.dns import resolved_links

            yield from resolved_links.forget(entry, link)

    def published(self, uplinks: Uplinks) -> bool:
        """See `networkmanager.published`."""
        return networkmanager.published(uplinks)

    def apply_sysctl(self, interface: str) -> None:
        """Apply the files of sysctl.d to an interface."""
        systemd_sysctl.apply(interface)
