# SPDX-License-Identifier: GPL-2.0-or-later
"""One pass over the provider's half: what it knows, what it has done so far, and what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..core.operations import kind
from ..core.owned_state import Provided
from ..core.provider.settings import ProviderSettings
from ..core.values import IPV4, IPV6, IPAddress
from ..errors import GuestnetError, as_error

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..core.dns.upstream_servers import Choice
    from ..core.firewall.condition import Condition
    from ..core.nft.limits import Kept, Limits
    from ..core.operations import Operation, Outcome, Planned
    from ..core.owned_state import Record
    from ..core.provider.firewall_unit import Scripts
    from ..core.provider.provider_report import ProviderReport
    from ..core.provider.vif_order import VifReport
    from ..flow import Adapters, Applying


class PassState:
    """One pass of a provider.

    Args:
        settings: validated.
        active: this qube gives network to others; False also where that is not known.
        ipv6: IPv6 as well.
        run: carries out what is planned, or does not.

    Attributes:
        mtu: of the vifs, in bytes; 0 for leaving it as it is.
        limits: of each vif, as far as conntrack has room for them; None: the file is not valid, those in force stay.
        kept: how long conntrack keeps connections; None: not read.
        untrusted_entries: what the settings are from.
        ruled: the base rules are in.
        reloaded: they were, or are to be, loaded anew: what else is in the tables is in doubt.
        stopped: families whose forwarding another program has switched off; that is obeyed.
        unfiltered: the firewall that this qube's flag asks for is not ready.
        look_again: when entries of the firewall are to be read again, in seconds of a monotonic clock; None: no need.
        wanted: what the firewall of single qubes is to hold; None where this process does not enforce it.
        conditions: the firewall of each address, where a person asks.
        firewall_changed: chains of the firewall that another program has taken rules from.
        scripts: what came of the users' scripts of the firewall, where a person asks.
        todo: operations that are planned and not carried out, in a pass that only plans.
        done: what was carried out, in words.
    """

    def __init__(self, settings: ProviderSettings, active: bool, ipv6: bool, run: Applying) -> None:
        self.settings, self.active, self.ipv6, self.run = settings, active, ipv6, run
        self.mtu = 0
        self.stopped = frozenset[int]()
        self.limits: Limits | None = None
        self.kept: Kept | None = None
        self.untrusted_entries: Mapping[str, bytes] = {}
        self.ruled = self.reloaded = self.unfiltered = False
        self.names: Choice | None = None
        self.look_again: float | None = None
        self.wanted: object = None
        self.conditions: Mapping[IPAddress, Condition] = {}
        self.firewall_changed: tuple[str, ...] = ()
        self.scripts: Scripts | None = None
        self.vifs: list[VifReport] = []
        self.todo: list[Operation] = []
        self.done: list[str] = []
        self.errors: list[GuestnetError] = []
        self._first_half = 0, 0

    @property
    def families(self) -> frozenset[int]:
        """Families that this qube is to forward."""
        if self.provided.closed or self.provided.hold or self.unfiltered:
            return frozenset()
        wanted = ((IPV4, self.active), (IPV6, self.ipv6))
        return frozenset(family for family, on in wanted if on) - self.stopped

    @property
    def planned(self) -> bool:
        """Whether the base rules are to be loaded, in a pass that only plans."""
        return any(kind(op) == "LoadRules" for op in self.todo)

    @property
    def provided(self) -> Provided:
        """The record of what was made for others."""
        return self.run.record.provided

    def save(self, provided: Provided) -> None:
        """Put it on disk, in a pass that changes things."""
        self.run.save(self.run.record._replace(provided=provided))

    def attempt(self, step: Callable[[], object]) -> None:
        """One step, whose failure does not stop the next."""
        try:
            step()
        except Exception as error:
            self.errors.append(as_error(error))

    def settle(self, plan: Callable[[Record, Outcome], Planned], adapters: Adapters) -> Outcome:
        """Plan, and carry out what is planned in a pass that does; see `flow.Applying.settle`. It raises nothing.

        Returns:
            What came of it, with what could not be observed among the errors.
        """
        settled = self.run.settle(plan, adapters)
        self.todo += settled.todo
        self.done += map(str, settled.outcome.done)
        self.errors += settled.outcome.errors
        return settled.outcome

    def raise_first(self) -> None:
        """Raise the first error there was."""
        for error in self.errors:
            raise error

    def continue_after_uplink(self) -> None:
        """What follows is reported as what comes after the uplink."""
        self._first_half = len(self.todo), len(self.done)

    def report(self, forwarding: frozenset[int]) -> ProviderReport:
        """What came of it."""
        from ..core.dns.upstream_servers import Choice  # not at boot, where the rules alone are loaded
        from ..core.provider.provider_report import Lines, ProviderReport
        from ..core.provider.vif import duplicates

        todo, done = self._first_half
        before = Lines(tuple(self.todo[:todo]), tuple(self.done[:done]))
        after = Lines(tuple(self.todo[todo:]), tuple(self.done[done:]))

        return ProviderReport(
            self.settings, self.active, self.ipv6, forwarding, self.names or Choice((), ""),
            tuple(self.vifs), before, after, (*self.settings.errors, *self.errors),
            self.ruled, self.provided.closed, self.provided.offload,
            stopped=self.stopped, hold=self.provided.hold, lost=self.provided.lost,
            duplicates=duplicates(each.vif for each in self.vifs if each.link is not None),
            unfiltered=self.unfiltered, look_again=self.look_again, wanted=self.wanted, conditions=self.conditions,
            firewall_changed=self.firewall_changed, scripts=self.scripts,
        )  # fmt: skip
