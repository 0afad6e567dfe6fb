# SPDX-License-Identifier: GPL-2.0-or-later
"""The one flow: observe and plan, apply, and observe again until a plan is empty.

The caller passes a planner, which observes and plans, and the adapters for each kind of operation (`dispatch`). A
failed operation is reported once and not repeated in the same pass; the next pass plans it again, because a plan comes
from the observed state. Any exception of its adapter fails an operation: an undocumented one is a bug, but fails no
other operation (B146).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from .core.namedtuple import NamedTuple
from .core.operations import (
    BESIDE,
    ENDS_ROUND,
    JOINED,
    NEEDS_RECORD,
    TRANSACTION,
    VANISHES_ALONE,
    WHOLE,
    Outcome,
    Planned,
    hinders,
    instead,
    kind,
    together,
)
from .errors import Vanished, as_error, did_not_persist
from .system.owned_state import Ledger
from .system.systemd import log

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from typing import Any

    from .core.operations import Operation
    from .core.owned_state import Record
    from .errors import GuestnetError

    Adapters = Mapping[str, Callable[[Any], object]]

ROUNDS = 5


class Settled(NamedTuple):
    """The result of settling a plan.

    Args:
        outcome: result of its operations, including errors of observations.
        planned: the last plan.
        todo: planned operations that are not carried out, in a pass that only plans.
    """

    outcome: Outcome
    planned: Planned
    todo: tuple[Operation, ...] = ()


class Applying:
    """A pass that carries out its plans.

    Args:
        ledger: the owned record, to be written.
    """

    applies = True

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    @property
    def record(self) -> Record:
        """Return the present record."""
        return self._ledger.record

    def save(self, record: Record) -> None:
        """Save the record. Raises FileError."""
        self._ledger.save(record)

    def settle(self, plan: Callable[[Record, Outcome], Planned], adapters: Adapters) -> Settled:
        """Plan, apply and plan again; see `settle`. It raises nothing."""
        planned, outcome = settle(plan, adapters, self._ledger)
        return Settled(outcome._replace(errors=(*outcome.errors, *planned.errors)), planned)

    def tell(self, priority: int, words: str) -> None:
        """Tell the journal."""
        log(priority, words)


class Planning(Applying):
    """A pass that only plans: it changes nothing, writes no record, and notifies no program.

    Args:
        ledger: the owned record, to be read.
    """

    applies = False

    def save(self, record: Record) -> None:
        """Do nothing: the record stays unchanged."""

    def settle(self, plan: Callable[[Record, Outcome], Planned], _adapters: Adapters) -> Settled:
        """Plan once. It raises nothing."""
        try:
            planned = plan(self.record, Outcome())
        except Exception as error:
            planned = Planned((), self.record, errors=(as_error(error),))
        return Settled(Outcome(errors=planned.errors), planned, planned.ops)

    def tell(self, priority: int, words: str) -> None:
        """Do nothing: a pass that only plans logs nothing."""


def settle(plan: Callable[[Record, Outcome], Planned], adapters: Adapters, ledger: Ledger) -> tuple[Planned, Outcome]:
    """Plan, apply and plan again, a bounded number of times.

    Args:
        plan: observes and plans, given the owned record and the result of the operations of this pass so far.
        adapters: by kind of operation.
        ledger: the owned record, saved before the operations that it describes.

    Returns:
        The last plan, and what came of all operations. A last plan is empty but for operations that failed; where
        nothing could be observed it has the error, and what was seen before.
    """
    outcome, seen = Outcome(), None
    for left in range(ROUNDS, -1, -1):
        try:
            planned = plan(ledger.record, outcome)
        except Exception as error:
            return Planned((), ledger.record, errors=(as_error(error),), seen=seen), outcome
        seen = planned.seen
        outcome = outcome.and_then(_saved(planned, ledger))
        ops = [op for op in planned.ops if op not in outcome.failed]
        if not ops:
            break
        if not left:
            return planned, outcome.and_then(Outcome(failed=tuple(ops), errors=(did_not_persist(ops[0]),)))
        outcome = outcome.and_then(carry_out(ops, adapters, outcome.failed))
    return planned, outcome


def _saved(planned: Planned, ledger: Ledger) -> Outcome:
    """Save the record. If /run is full, only the record is lost, not the qube's network."""
    try:
        ledger.save(planned.record)
    except Exception as error:
        return Outcome(failed=tuple(op for op in planned.ops if kind(op) in NEEDS_RECORD), errors=(as_error(error),))
    return Outcome()


def carry_out(ops: Iterable[Operation], adapters: Adapters, before: tuple[Operation, ...] = ()) -> Outcome:
    """Carry out sorted operations in order, up to the end of a round.

    Args:
        ops: sorted operations.
        adapters: adapters by kind of operation; each raises GuestnetError if its operation is refused. The adapter of
            TRANSACTION begins a transaction for several operations, and returns the function that ends it.
        before: operations that failed earlier in this pass.
    """
    outcome, ending = Outcome(), False
    finish: Callable[[], Outcome] | None = None
    gone: set[object] = set()
    for part in together(ops) if TRANSACTION in adapters else ((op,) for op in ops):
        first = kind(part[0])
        if finish is not None and first not in BESIDE:
            outcome, finish = outcome.and_then(finish()), None
        if ending and first not in ENDS_ROUND:
            break
        left_out = tuple(op for op in part if any(hinders(failed, op) for failed in before + outcome.failed))
        outcome = outcome.and_then(Outcome(failed=left_out))
        part = tuple(op for op in part if op not in left_out and _vif(op) not in gone)
        if not part:
            continue
        if first in JOINED | WHOLE and TRANSACTION in adapters:
            finish = _begin(part, adapters)
            continue
        try:
            outcome = outcome.and_then(_done(part[0], adapters))
        except Vanished:  # the next round observes the present state
            if first not in VANISHES_ALONE:
                break
            gone.add(_vif(part[0]))
        ending = ending or first in ENDS_ROUND
    return outcome if finish is None else outcome.and_then(finish())


def _vif(op: Operation) -> object:
    """Return the name of the vif whose interface an operation changes, None for none."""
    return getattr(op, "name", None) if kind(op) in VANISHES_ALONE else None


def _begin(ops: tuple[Operation, ...], adapters: Adapters) -> Callable[[], Outcome]:
    """Begin one transaction of several operations.

    Returns:
        A function that waits for its end. If nft refuses the transaction, the function tries each operation alone, or
        those of half of the qubes, to find the faulty one.
    """
    try:
        end = adapters[TRANSACTION](ops)
    except Exception as error:
        failed = Outcome(failed=ops, errors=(as_error(error),))
        return lambda: failed

    def finish() -> Outcome:
        try:
            end()  # type: ignore[operator]
        except Exception as error:
            known = as_error(error)
            if not known.refused:
                return Outcome(failed=ops, errors=(known,))
            return _halved(ops, adapters, known) if kind(ops[0]) in WHOLE else _one_by_one(ops, adapters)
        return Outcome(done=ops)

    return finish


def _halved(ops: tuple[Operation, ...], adapters: Adapters, error: GuestnetError) -> Outcome:
    """Split a refused transaction into two, down to the qube that is the cause, which is then refused everything.

    Returns:
        The result. Operations that were replaced count as failed, with the error, because they are not in force.
    """
    from .core.firewall import operations as firewall

    parts: Any = firewall.halves(ops)  # type: ignore[arg-type]
    if parts is not None:
        first, second = (_begin(part, adapters)() for part in parts)
        came = first.and_then(second)
        return came._replace(done=tuple(dict.fromkeys(came.done)))  # shared operations are in both halves
    others = tuple(instead(op) or op for op in ops)
    if others == ops:
        return Outcome(failed=ops, errors=(error,))
    came = _begin(others, adapters)()
    replaced = tuple(op for op in ops if op not in others)
    return came._replace(failed=(*replaced, *came.failed), errors=(error, *came.errors))


def _one_by_one(ops: Iterable[Operation], adapters: Adapters) -> Outcome:
    outcome = Outcome()
    for op in ops:
        left_out = any(hinders(failed, op) for failed in outcome.failed)
        outcome = outcome.and_then(Outcome(failed=(op,)) if left_out else _done(op, adapters))
    return outcome


def _done(op: Operation, adapters: Adapters) -> Outcome:
    """Carry out one operation or, if it is refused, its replacement. Raises Vanished."""
    try:
        adapters[kind(op)](op)
    except Vanished:
        raise
    except Exception as error:
        other = instead(op)
        if other is None:
            return Outcome(failed=(op,), errors=(as_error(error),))
        came = _done(other, adapters)
        return came if came.done else came._replace(failed=(op, *came.failed))
    return Outcome(done=(op,))
