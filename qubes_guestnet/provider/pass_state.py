# SPDX-License-Identifier: GPL-2.0-or-later
"""One pass over the provider's half: its knowledge, and separately its progress.

The knowledge of a pass is a frozen value (`PassState`). A step takes it and returns it with new facts; a step that only
carries out operations returns nothing. `Progress` records the operations and errors of the steps.
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
    """The progress of a pass: operations carried out or planned, and errors, in order.

    Args:
        run: carries out plans, or only plans.
        memory: memory of the former pass.

    Attributes:
        todo: planned operations that are not carried out, in a pass that only plans.
        done: operations carried out, in words.
        errors: all errors.
        memory: memory for the next pass. It is here and not in `PassState`, because it must keep what a failing step
            did before its failure.
    """

    def __init__(self, run: Applying, memory: PassMemory = _NOTHING) -> None:
        self.run, self.memory = run, memory
        self.todo: list[Operation] = []
        self.done: list[str] = []
        self.errors: list[GuestnetError] = []

    def withdraw(self, errors: Iterable[GuestnetError]) -> None:
        """Remove errors that a later step has corrected."""
        withdrawn = tuple(errors)
        self.errors = [error for error in self.errors if error not in withdrawn]


class PassState(NamedTuple):
    """One pass of a provider.

    Args:
        settings: validated settings.
        active: this qube provides network to others; False if unknown.
        ipv6: it also provides IPv6.
        progress: progress of the pass.
        mtu: MTU of the vifs, in bytes; 0 leaves it unchanged.
        untrusted_entries: the entries that the settings were parsed from.
        limits: limits of each vif, bounded by the size of conntrack; None: the file is invalid, those in force stay.
        kept: conntrack's timeouts; None if not read.
        ruled: the base rules are loaded.
        reloaded: the base rules were or will be reloaded, so the other content of the tables is uncertain.
        stopped: families whose forwarding another program has switched off; they stay off.
        unfiltered: the firewall that this qube's flag requires is not ready.
        names: the servers of the DNS redirection; None if unknown.
        look_again: when to read the firewall's entries again, in seconds of a monotonic clock; None for never.
        wanted: desired rules of the client qubes' firewall; None if this process does not enforce it.
        conditions: the firewall of each address, for `status` and `check`.
        firewall_changed: chains of the firewall from which another program has removed rules.
        scripts: results of the users' firewall scripts, for `status` and `check`.
        vifs: the observed vifs.
        before_uplink: numbers of operations planned and carried out before the uplink.
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
        """Return the families that this qube should forward."""
        if self.provided.closed or self.provided.hold or self.unfiltered:
            return frozenset()
        wanted = ((IPV4, self.active), (IPV6, self.ipv6))
        return frozenset(family for family, on in wanted if on) - self.stopped

    @property
    def planned(self) -> bool:
        """Return whether a pass that only plans has planned to load the base rules."""
        return any(kind(op) == "LoadRules" for op in self.todo)

    # --- what was done -------------------------------------------------------------------------------------------

    @property
    def run(self) -> Applying:
        """Return the object that carries out the plans of this pass, or only plans."""
        return self.progress.run

    @property
    def todo(self) -> tuple[Operation, ...]:
        """Return planned operations that are not carried out."""
        return tuple(self.progress.todo)

    @property
    def done(self) -> tuple[str, ...]:
        """Return the operations carried out so far, in words."""
        return tuple(self.progress.done)

    @property
    def errors(self) -> tuple[GuestnetError, ...]:
        """Return the errors so far."""
        return tuple(self.progress.errors)

    @property
    def provided(self) -> Provided:
        """Return the present record of the configuration for client qubes."""
        return self.run.record.provided

    @property
    def memory(self) -> PassMemory:
        """Return the present memory for the next pass."""
        return self.progress.memory

    def remember(self, memory: PassMemory) -> None:
        """Store the memory for the next pass."""
        self.progress.memory = memory

    def is_verified(self, part: str, transactions: Transactions) -> bool:
        """Return whether no other program has changed rules since a part of them was verified.

        Args:
            part: the part of the rules.
            transactions: transactions of this process.

        Raises:
            KernelError: the kernel has no nftables, or access is denied.
        """
        return transactions.unchanged(self.memory.verified.get(part))

    def mark_verified(self, part: str, mark: Mark) -> None:
        """See `PassMemory.mark_verified`."""
        self.remember(self.memory.mark_verified(part, mark))

    def save(self, provided: Provided) -> None:
        """Save the record, unless the pass only plans. Raises FileError."""
        self.run.save(self.run.record._replace(provided=provided))

    def failed(self, *errors: GuestnetError) -> None:
        """Note errors; the pass continues."""
        self.progress.errors += errors

    def attempt(self, step: Callable[[PassState], PassState | None]) -> PassState:
        """Take one step, whose failure does not stop the next.

        Returns:
            The state with the step's new facts; unchanged if the step failed or had none.
        """
        try:
            return step(self) or self
        except Exception as error:
            self.failed(as_error(error))
            return self

    def settle(self, plan: Callable[[Record, Outcome], Planned], adapters: Adapters) -> Outcome:
        """Plan, and carry out what is planned in a pass that does; see `flow.Applying.settle`. It raises nothing.

        Returns:
            The result, including errors of observations.
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
        """Return the state in which later operations are reported as those after the uplink."""
        return self._replace(before_uplink=(len(self.todo), len(self.done)))

    def report(self, forwarding: frozenset[int]) -> ProviderReport:
        """Return the report of the pass."""
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
