# SPDX-License-Identifier: GPL-2.0-or-later
"""The base rules of a qube that is not a provider: the resident agent reloads them after a removal.

While no other program changes rules this costs one socket. The loading modules are imported only after such a change
(behaviour B140).
"""

from __future__ import annotations

from ..errors import GuestnetError
from ..system.nft import kernel as nft_kernel
from ..system.paths import Paths

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..core.provider.pass_memory import PassMemory
    from ..core.report import Report
    from ..provider.pass_state import PassState
    from ..provider.rules import Rules

Kept = tuple[tuple[str, ...], tuple[GuestnetError, ...]]
_NOTHING: Kept = ((), ())


def with_lost_rules(report: Report, untrusted_entries: dict[str, bytes], paths: Paths) -> Report:
    """Return the report of a dry pass, with the operations of `load_lost`."""
    try:
        work = _lost(untrusted_entries, paths, applies=False)
    except GuestnetError as error:
        return report._replace(errors=(*report.errors, error))
    if work is None:
        return report
    return report._replace(rules_todo=work.todo, errors=(*report.errors, *work.errors))


def load_lost(untrusted_entries: dict[str, bytes], paths: Paths) -> Kept:
    """Load the base rules again if they were loaded before and are now missing or changed.

    Args:
        untrusted_entries: entries of QubesDB.
        paths: locations of the qube's files.

    Returns:
        The operations carried out, in words, and the errors.
    """
    try:
        work = _lost(untrusted_entries, paths, applies=True)
    except GuestnetError as error:
        return (), (error,)
    return (work.done, work.errors) if work is not None else _NOTHING


def _lost(untrusted_entries: dict[str, bytes], paths: Paths, *, applies: bool) -> PassState | None:
    """Return the state of a pass over the base rules; None if they were never loaded. Raises GuestnetError."""
    from ..system.owned_state import Ledger

    with Ledger(paths.run, reading=True) as ledger:
        if not ledger.record.provided.rules.text:
            return None
    from ..flow import Applying, Planning
    from ..provider.pass_state import Progress
    from ..provider.rules import Rules
    from ..provider.ruleset_generation import Transactions

    with Ledger(paths.run, reading=not applies) as ledger:
        run = Applying(ledger) if applies else Planning(ledger)
        return Rules(paths, Transactions()).begin(untrusted_entries, Progress(run))


class BaseRulesWatch:
    """Detects whether other programs have changed rules since the base rules were last read.

    Args:
        paths: locations of the qube's files.

    Attributes:
        rules: wakes the loop when rules change.

    Raises:
        KernelError: the kernel reports no changes.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self.rules = nft_kernel.Events()
        self._looked = -1  # generation of the rules when they were last correct
        self._rules: Rules | None = None
        self._memory: PassMemory | None = None  # of the last pass over them

    def close(self) -> None:
        """Stop watching; the provider's half takes over."""
        self.rules.close()

    def keep(self, untrusted_entries: dict[str, bytes] | None) -> Kept:
        """Restore the base rules if another program has changed them.

        Args:
            untrusted_entries: entries of QubesDB; None while it does not answer, so that existing rules stay.

        Returns:
            The operations carried out, in words, and the errors.
        """
        try:
            generation = nft_kernel.generation()
            if generation == self._looked:
                return _NOTHING
            if self._looked == -1 and nft_kernel.present():
                self._looked = generation
                return _NOTHING
            kept = self._load(untrusted_entries)
            # The former generation: the next event detects a change that another program made meanwhile (B148).
            self._looked = generation if not kept[1] else -2
        except GuestnetError as error:
            return (), (error,)
        return kept

    def _load(self, untrusted_entries: dict[str, bytes] | None) -> Kept:
        from ..core.provider.pass_memory import PassMemory
        from ..flow import Applying
        from ..provider.pass_state import Progress
        from ..provider.rules import Rules
        from ..provider.ruleset_generation import Transactions
        from ..system.owned_state import Ledger

        if self._rules is None:
            self._rules = Rules(self._paths, Transactions())
        if untrusted_entries is None:
            return self._rules.load(None), ()
        with Ledger(self._paths.run) as ledger:
            progress = Progress(Applying(ledger), self._memory or PassMemory())
            try:
                work = self._rules.begin(untrusted_entries, progress)
            finally:
                self._memory = progress.memory
            return work.done, work.errors
