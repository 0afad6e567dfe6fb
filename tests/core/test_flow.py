# SPDX-License-Identifier: GPL-2.0-or-later
"""The one flow: what a plan was made from is in its report, whatever becomes of a later look."""

from __future__ import annotations

from qubes_guestnet import flow
from qubes_guestnet.core.operations import Outcome, Planned
from qubes_guestnet.core.owned_state import Record
from qubes_guestnet.core.shared_operations import UnitJob
from qubes_guestnet.errors import GuestnetError
from qubes_guestnet.reconcile import UplinkState
from tests.core.memory import Memory

JOB = UnitJob("restart", "some.service")


def test_what_was_seen_is_kept_when_a_later_look_fails() -> None:
    carried_out: list[object] = []

    def plan(record: Record, so_far: Outcome) -> Planned:
        if so_far.done:
            raise GuestnetError("the kernel does not answer")
        return Planned((JOB,), record, seen="eth0 is down")

    planned, outcome = flow.settle(plan, {"UnitJob": carried_out.append}, Memory())  # type: ignore[arg-type]
    assert (planned.seen, [str(error) for error in planned.errors]) == ("eth0 is down", ["the kernel does not answer"])
    assert list(outcome.done) == carried_out == [JOB]


def test_the_last_look_is_the_one_that_counts() -> None:
    def plan(record: Record, so_far: Outcome) -> Planned:
        return Planned(() if so_far.done else (JOB,), record, seen=len(so_far.done))

    planned, _ = flow.settle(plan, {"UnitJob": lambda _op: None}, Memory())  # type: ignore[arg-type]
    assert planned.seen == 1


def test_nothing_was_seen_where_the_first_look_fails() -> None:
    def plan(_record: Record, _so_far: Outcome) -> Planned:
        raise GuestnetError("the kernel does not answer")

    planned, outcome = flow.settle(plan, {}, Memory())  # type: ignore[arg-type]
    assert (planned.seen, planned.ops, outcome) == (None, (), Outcome())


def test_errors_of_the_uplinks_are_told_once_each() -> None:
    same, other = GuestnetError("same"), GuestnetError("other")
    state = UplinkState().failed([same, GuestnetError("same")]).failed([other, GuestnetError("same")])
    assert state.errors == (same, other)
