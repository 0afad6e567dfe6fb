# SPDX-License-Identifier: GPL-2.0-or-later
"""One pass over the provider's half: what it knows, and apart from that what it has done.

What a pass knows is a frozen value (`PassState`). A step takes it and returns it with what the step has learned; a step
that only carries out operations returns nothing. `Progress` has what the steps did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ..core.namedtuple import NamedTuple
from ..core.operations import kind
from ..core.owned_state import Provided
from ..core.provider.pass_memory import PassMemory
from ..core.provider.settings import ProviderSettings
from ..core.values import IPV4, IPV6, IPAddress
from ..errors import GuestnetError, as_error

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..core.dns.upstream_servers import Choice
    from ..core.firewall.condition import Condition
    from ..core.nft.limits import Kept, Limits
    from ..core.nft.mark import Mark
    from ..core.operations import Operation, Outcome, Planned
    from ..core.owned_state import Record
    from ..core.provider.firewall_unit import Scripts
    from ..core.provider.provider_report import ProviderReport
    from ..core.provider.vif_order import VifReport
    from ..flow import Adapters, Applying
    from .ruleset_generation import Transactions


_NOTHING = PassMemory()


class Progress:
    """What a pass has done: operations carried out or planned, and errors, in their order.

    Args:
        run: carries out what is planned, or does not.
        memory: what the pass before has left.

    Attributes:
        todo: operations that are planned and not carried out, in a pass that only plans.
        done: what was carried out, in words.
        errors: all that failed.
        memory: what this pass leaves. It is here and not a field of `PassState`, because a step that fails has done and
            seen what it has done and seen before that.
    """

    def __init__(self, run: Applying, memory: PassMemory = _NOTHING) -> None:
        self.run, self.memory = run, memory
        self.todo: list[Operation] = []
        self.done: list[str] = []
        self.errors: list[GuestnetError] = []

    def withdraw(self, errors: Iterable[GuestnetError]) -> None:
        """Take errors out again: a later step made up for them."""
        withdrawn = tuple(errors)
        self.errors = [error for error in self.errors if error not in withdrawn]


class PassState(NamedTuple):
    """One pass of a provider.

    Args:
        settings: validated.
        active: this qube gives network to others; False also where that is not known.
        ipv6: IPv6 as well.
        progress: what the pass has done.
        mtu: of the vifs, in bytes; 0 for leaving it as it is.
        untrusted_entries: what the settings are from.
        limits: of each vif, as far as conntrack has room for them; None: the file is not valid, those in force stay.
        kept: how long conntrack keeps connections; None: not read.
        ruled: the base rules are in.
        reloaded: they were, or are to be, loaded anew: what else is in the tables is in doubt.
        stopped: families whose forwarding another program has switched off; that is obeyed.
        unfiltered: the firewall that this qube's flag asks for is not ready.
        names: the name servers that the virtual DNS addresses lead to; None: not known.
        look_again: when entries of the firewall are to be read again, in seconds of a monotonic clock; None: no need.
        wanted: what the firewall of single qubes is to hold; None where this process does not enforce it.
        conditions: the firewall of each address, where a person asks.
        firewall_changed: chains of the firewall that another program has taken rules from.
        scripts: what came of the users' scripts of the firewall, where a person asks.
        vifs: each that was looked at.
        before_uplink: how many operations were planned, and how many carried out, before the uplink's turn.
    """

    settings: ProviderSettings
    active: bool
    ipv6: bool
    progress: Progress
    mtu: int = 0
    untrusted_entries: Mapping[str, bytes] = {}
    limits: Limits | None = None
    kept: Kept | None = None
    ruled: bool = False
    reloaded: bool = False
    stopped: frozenset[int] = frozenset()
    unfiltered: bool = False
    names: Choice | None = None
    look_again: float | None = None
    wanted: object = None
    conditions: Mapping[IPAddress, Condition] = {}
    firewall_changed: tuple[str, ...] = ()
    scripts: Scripts | None = None
    vifs: tuple[VifReport, ...] = ()
    before_uplink: tuple[int, int] = (0, 0)

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

    # --- what was done -------------------------------------------------------------------------------------------

    @property
    def run(self) -> Applying:
        """What carries out the plans of this pass, or does not."""
        return self.progress.run

    @property
    def todo(self) -> tuple[Operation, ...]:
        """Operations that are planned and not carried out."""
        return tuple(self.progress.todo)

    @property
    def done(self) -> tuple[str, ...]:
        """What was carried out so far, in words."""
        return tuple(self.progress.done)

    @property
    def errors(self) -> tuple[GuestnetError, ...]:
        """What failed so far."""
        return tuple(self.progress.errors)

    @property
    def provided(self) -> Provided:
        """The record of what was made for others, as it is now."""
        return self.run.record.provided

    @property
    def memory(self) -> PassMemory:
        """What this pass leaves for the next, as it is now."""
        return self.progress.memory

    def remember(self, memory: PassMemory) -> None:
        """Leave this for the next pass."""
        self.progress.memory = memory

    def is_verified(self, part: str, transactions: Transactions) -> bool:
        """Return whether no other program has changed anything since a part of the rules was found right.

        Args:
            part: of the rules.
            transactions: of this process.

        Raises:
            KernelError: the kernel has no nftables, or we may not ask.
        """
        return transactions.unchanged(self.memory.verified.get(part))

    def mark_verified(self, part: str, mark: Mark) -> None:
        """See `PassMemory.mark_verified`."""
        self.remember(self.memory.mark_verified(part, mark))

    def save(self, provided: Provided) -> None:
        """Put the record on disk, in a pass that changes things. Raises FileError."""
        self.run.save(self.run.record._replace(provided=provided))

    def failed(self, *errors: GuestnetError) -> None:
        """Note errors; the pass goes on."""
        self.progress.errors += errors

    def attempt(self, step: Callable[[PassState], PassState | None]) -> PassState:
        """Take one step, whose failure does not stop the next.

        Returns:
            The state with what the step has learned; as it was where the step failed or learned nothing.
        """
        try:
            return step(self) or self
        except Exception as error:
            self.failed(as_error(error))
            return self

    def settle(self, plan: Callable[[Record, Outcome], Planned], adapters: Adapters) -> Outcome:
        """Plan, and carry out what is planned in a pass that does; see `flow.Applying.settle`. It raises nothing.

        Returns:
            What came of it, with what could not be observed among the errors.
        """
        settled = self.run.settle(plan, adapters)
        self.progress.todo += settled.todo
        self.progress.done += map(str, settled.outcome.done)
        self.failed(*settled.outcome.errors)
        return settled.outcome

    def raise_first(self) -> None:
        """Raise the first error there was."""
        for error in self.errors:
            raise error

    # --- the report ----------------------------------------------------------------------------------------------

    def after_uplink(self) -> PassState:
        """Return the state in which what follows is reported as what comes after the uplink."""
        return self._replace(before_uplink=(len(self.todo), len(self.done)))

    def report(self, forwarding: frozenset[int]) -> ProviderReport:
        """Return what came of the pass."""
        from ..core.dns.upstream_servers import Choice  # not at boot, where the rules alone are loaded
        from ..core.provider.provider_report import Lines, ProviderReport
        from ..core.provider.vif import duplicates

        todo, done = self.before_uplink
        before, after = Lines(self.todo[:todo], self.done[:done]), Lines(self.todo[todo:], self.done[done:])
        return ProviderReport(
            self.settings, self.active, self.ipv6, forwarding, self.names or Choice((), ""),
            self.vifs, before, after, (*self.settings.errors, *self.errors),
            self.ruled, self.provided.closed, self.provided.offload,
            stopped=self.stopped, hold=self.provided.hold, lost=self.provided.lost,
            duplicates=duplicates(each.vif for each in self.vifs if each.link is not None),
            unfiltered=self.unfiltered, look_again=self.look_again, wanted=self.wanted, conditions=self.conditions,
            firewall_changed=self.firewall_changed, scripts=self.scripts,
        )  # fmt: skip


def command(run: Applying, *, active: bool = False, ipv6: bool = False, memory: PassMemory = _NOTHING) -> PassState:
    """Return the state of a command that reads no settings.

    Args:
        run: carries out what is planned.
        active: this qube gives network to others.
        ipv6: IPv6 as well.
        memory: of the last pass.
    """
    return PassState(ProviderSettings(), active, ipv6, Progress(run, memory))
