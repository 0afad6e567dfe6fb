# SPDX-License-Identifier: GPL-2.0-or-later
"""One pass over the provider's half: what it knows, what it has done so far, and what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..core.limits import Kept
from ..core.provider import ProviderSettings
from ..core.record import Provided
from ..core.values import IPV4, IPV6
from ..errors import GuestnetError
from ..system.owned import Ledger

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/lean)
if TYPE_CHECKING:
    from ..core.attachment import VifReport
    from ..core.limits import Limits
    from ..core.nameservers import Choice
    from ..core.operations import Outcome, Planned
    from ..core.provided import Lines, ProviderReport
    from ..core.record import Record
    from ..flow import Adapters


class Work:
    """One pass of a provider.

    Args:
        settings: validated.
        active: this qube gives network to others; False also where that is not known.
        ipv6: IPv6 as well.
        ledger: the owned record.
        dry_run: only say what is to do.

    Attributes:
        mtu: of the vifs, in bytes; 0 for leaving it as it is.
        limits: of each vif, as far as conntrack has room for them; None: the file is not valid, those in force stay.
        kept: how long conntrack keeps connections.
        untrusted_entries: what the settings are from.
        ruled: the base rules are in.
        planned: in a dry run, they are to be loaded.
        coming: what the sets are to hold from their first moment on, as a text for nft.
        reloaded: they were, or are to be, loaded anew: what else is in the tables is in doubt.
        closing: families that were, or are to be, closed until lost rules are back.
        stopped: families whose forwarding another program has switched off; that is obeyed.
        unfiltered: the firewall that this qube's flag asks for is not ready.
    """

    def __init__(self, settings: ProviderSettings, active: bool, ipv6: bool, ledger: Ledger, dry_run: bool) -> None:
        self.settings, self.active, self.ipv6, self.dry_run = settings, active, ipv6, dry_run
        self.ledger = ledger
        self.mtu, self.coming = 0, ""
        self.stopped, self.closing = frozenset[int](), frozenset[int]()
        self.limits: Limits | None = None
        self.kept = Kept()
        self.untrusted_entries: Mapping[str, bytes] = {}
        self.ruled = self.planned = self.reloaded = self.unfiltered = False
        self.names: Choice | None = None
        self.vifs: list[VifReport] = []
        self.todo: list[object] = []
        self.done: list[str] = []
        self.errors: list[GuestnetError] = []

    @property
    def families(self) -> frozenset[int]:
        """Families that this qube is to forward."""
        if self.provided.closed or self.provided.hold or self.unfiltered:
            return frozenset()
        wanted = ((IPV4, self.active), (IPV6, self.ipv6))
        return frozenset(family for family, on in wanted if on) - self.stopped

    @property
    def provided(self) -> Provided:
        """The record of what was made for others."""
        return self.ledger.record.provided

    def save(self, provided: Provided) -> None:
        """Put it on disk, but for a dry run."""
        if not self.dry_run:
            self.ledger.save(self.ledger.record._replace(provided=provided))

    def attempt(self, step: Callable[[], object]) -> None:
        """One step, whose failure does not stop the next."""
        try:
            step()
        except GuestnetError as error:
            self.errors.append(error)

    def settle(self, plan: Callable[[Record, Outcome], Planned], adapters: Adapters) -> Outcome:
        """Plan, and but for a dry run apply, until a plan is empty; see `flow.settle`. It raises nothing.

        Returns:
            What came of it, with what could not be observed among the errors.
        """
        from ..core.operations import Outcome  # where there is something to settle
        from ..flow import settle

        if self.dry_run:
            planned, outcome = plan(self.ledger.record, Outcome()), Outcome()
            self.todo += planned.ops
        else:
            planned, outcome = settle(plan, adapters, self.ledger)
        outcome = outcome._replace(errors=(*outcome.errors, *planned.errors))
        self.done += map(str, outcome.done)
        self.errors += outcome.errors
        return outcome

    def do(self, words: str, action: Callable[[], object]) -> None:
        """Do it, or in a dry run say that it is to do."""
        if self.dry_run:
            self.todo.append(words)
            return
        action()
        self.done.append(words)

    def raise_first(self) -> None:
        """Raise the first error there was."""
        for error in self.errors:
            raise error

    def lines(self) -> Lines:
        """What is to do, or was done, since this was last asked."""
        from ..core.provided import Lines  # not at boot, where the rules alone are loaded

        lines = Lines(tuple(self.todo), tuple(self.done))
        self.todo, self.done = [], []
        return lines

    def report(self, forwarding: frozenset[int], before: Lines) -> ProviderReport:
        """What came of it; `before` are the lines of what came before the uplink."""
        from ..core.nameservers import Choice
        from ..core.provided import ProviderReport
        from ..core.vif import duplicates

        return ProviderReport(
            self.settings, self.active, self.ipv6, forwarding, self.names or Choice((), ""),
            tuple(self.vifs), before, self.lines(), (*self.settings.errors, *self.errors),
            self.ruled, self.provided.closed, self.provided.offload,
            stopped=self.stopped, hold=self.provided.hold, lost=self.provided.lost,
            duplicates=duplicates(each.vif for each in self.vifs if each.link is not None),
            unfiltered=self.unfiltered,
        )  # fmt: skip
