# SPDX-License-Identifier: GPL-2.0-or-later
"""The guard of a provider: it drops every packet from or to a client qube while the base rules are missing.

Only the resident agent has it: the kernel removes the table together with the process, which also restores the rules.
"""

from __future__ import annotations

from ..core.operations import Outcome, Planned
from ..core.owned_state import Record
from ..core.provider import guard_plan
from ..core.provider.provider_operations import StandGuard
from ..dispatch import of_guard
from ..errors import KernelError
from ..system.nft import guard as nft_guard
from ..system.systemd import INFO
from .pass_state import PassState
from .ruleset_generation import Transactions


class ProviderGuard:
    """Keeps the guard's table loaded while this qube provides network to others.

    Args:
        transactions: transactions of this process.
    """

    def __init__(self, transactions: Transactions) -> None:
        self._nft = transactions
        self._guard = nft_guard.Guard()  # with the socket that owns the table

    def apply(self, work: PassState) -> None:
        """Load the guard after the base rules, without which it drops everything.

        Args:
            work: the pass.
        """
        if work.memory.guard_refused:
            return

        def plan(record: Record, _so_far: Outcome) -> Planned:
            return guard_plan.plan(record, active=work.active, ruled=work.ruled, stands=self._guard.stands)

        outcome = work.run.settle(plan, of_guard(self._guard, self._nft)).outcome
        failures = (error for error in outcome.errors if isinstance(error, KernelError))
        failure = next(failures, None) if StandGuard() in outcome.failed else None
        if failure is not None and guard_plan.is_lacking(failure.errno):
            # An older kernel has no guard: forwarding is closed only when the agent is notified of the lost rules.
            work.run.tell(INFO, f"cannot load the guard (table inet qubes-guard): {failure}")
            work.remember(work.memory._replace(guard_refused=True))
            return
        work.failed(*outcome.errors)
