# SPDX-License-Identifier: GPL-2.0-or-later
"""The guard of a provider: nothing passes from or to a qube while the base rules are away, not even one packet.

It is the resident agent's alone: the table goes with its process, and that process loads the rules again.
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


class Guarding:
    """Has the guard's table there while this qube gives network to others.

    Args:
        transactions: of this process.
    """

    def __init__(self, transactions: Transactions) -> None:
        self._nft = transactions
        self._guard = nft_guard.Guard()  # with the socket that owns the table

    def bring(self, work: PassState) -> None:
        """After the base rules, without which it lets nothing pass; rules that went meanwhile are what it is for.

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
            # An older kernel. Forwarding is closed as soon as the agent hears that the rules are gone, and no sooner.
            work.run.tell(INFO, f"cannot load the guard (table inet qubes-guard): {failure}")
            work.remember(work.memory._replace(guard_refused=True))
            return
        work.failed(*outcome.errors)
