# SPDX-License-Identifier: GPL-2.0-or-later
"""The switch of forwarding, over random passes and a model of the kernel and of other programs that use it too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet import flow
from qubes_guestnet.core.operations import ORDER, Outcome, Planned
from qubes_guestnet.core.owned_state import Provided, Record
from qubes_guestnet.core.provider import forwarding
from qubes_guestnet.core.provider.provider_operations import CloseForwarding, OpenForwarding
from qubes_guestnet.errors import GuestnetError
from tests.core.memory import Memory

many = settings(max_examples=500, deadline=None, derandomize=True)

NONE, BOTH = frozenset[int](), frozenset({4, 6})


class Killed(BaseException):
    """SIGKILL: nothing is tidied up."""


class World:
    """The kernel's switches, and the record.

    Attributes:
        on: families that the kernel forwards.
        ours: those of them that we have opened; another program opened the rest.
        refused: families whose switch cannot be written.
        killed: at how manieth write of a pass the agent is killed, after it; 0 for never.
    """

    def __init__(self) -> None:
        self.on, self.ours = set[int](), set[int]()
        self.ledger = Memory()
        self.refused = NONE
        self.killed = self.writes = 0

    @property
    def provided(self) -> Provided:
        return self.ledger.record.provided

    def write(self, op: CloseForwarding | OpenForwarding) -> None:
        assert op.family in self.provided.forwarding & self.provided.shut, "the record is ahead"
        self.writes += 1
        if op.family in self.refused:
            raise GuestnetError(f"{op}: read-only")
        opens = isinstance(op, OpenForwarding)
        (self.on.add if opens else self.on.discard)(op.family)
        (self.ours.add if opens else self.ours.discard)(op.family)
        if self.writes == self.killed:
            raise Killed

    def settle(self, plan: Callable[[Record, Outcome], Planned]) -> Outcome:
        return flow.settle(plan, dict.fromkeys(ORDER, self.write), self.ledger)[1]

    def switch(self, family: int, on: bool) -> None:
        """Another program does it."""
        (self.on.add if on else self.on.discard)(family)
        self.ours.discard(family)

    def obey(self) -> frozenset[int]:
        on = frozenset(self.on)
        stopped = forwarding.stopped(self.provided, on)
        self.ledger.save(self.ledger.record._replace(provided=forwarding.obeying(self.provided, on)))
        return stopped

    def close(self, wanted: frozenset[int]) -> Outcome:
        unwanted = self.provided.forwarding - wanted
        return self.settle(lambda record, _: forwarding.plan_closing(unwanted, frozenset(self.on), record))

    def shut(self) -> Outcome:
        families = frozenset(self.on)
        return self.settle(lambda record, _: forwarding.plan_shutting(families, frozenset(self.on), record))

    def open(self, wanted: frozenset[int]) -> Outcome:
        return self.settle(lambda record, so_far: forwarding.plan_opening(wanted, frozenset(self.on), record, so_far))

    def run(self, wanted: frozenset[int], *, rules: bool, lost: bool = False) -> list[Outcome]:
        """One pass: obey, close, shut while rules that were lost come back, and open once they are in."""
        self.writes = 0
        wanted -= self.obey()
        outcomes = [self.close(wanted)]
        if lost:
            outcomes.append(self.shut())
            assert not self.on - self.refused, "nothing is forwarded while the rules are away"
        return [*outcomes, self.open(wanted)] if rules else outcomes


FAMILIES = st.sampled_from((NONE, frozenset({4}), frozenset({6}), BOTH))
PASS = st.fixed_dictionaries(
    {
        "wanted": FAMILIES,
        "rules": st.booleans(),
        "lost": st.booleans(),
        "refused": st.sampled_from((NONE, NONE, {4})),
        "killed": st.sampled_from((0, 0, 0, 1, 2)),
        "switched": st.none() | st.tuples(st.sampled_from((4, 6)), st.booleans()),
    }
)


@many
@given(st.lists(PASS, min_size=1, max_size=6))
@pytest.mark.behaviour("B133")
def test_whatever_happens_what_we_opened_is_known_and_nothing_unwanted_stays_open(passes: list[Any]) -> None:
    world = World()
    for each in passes:
        if each["switched"]:
            world.switch(*each["switched"])
        world.refused, world.killed = frozenset(each["refused"]), each["killed"]
        theirs = frozenset(world.on) - world.provided.forwarding - world.provided.stopped
        try:
            outcomes = world.run(each["wanted"], rules=each["rules"], lost=each["lost"])
        except Killed:
            assert world.ours <= world.provided.forwarding, "an agent that is killed knows what it has opened"
            continue
        assert world.ours <= world.provided.forwarding
        assert not world.ours - each["wanted"] - world.refused, "what is not wanted any more is closed"
        if not each["lost"]:
            assert theirs <= world.on, "what others opened is not ours to end"
        errors = [error for outcome in outcomes for error in outcome.errors]
        assert all("read-only" in str(error) for error in errors)
        if each["rules"] and not world.refused:
            stopped = world.provided.stopped
            assert each["wanted"] - stopped <= world.on
            assert not stopped & world.on
            assert world.run(each["wanted"], rules=True) == [Outcome(), Outcome()], "a second plan is empty"


@many
@given(st.lists(PASS, max_size=4), st.sampled_from((4, 6)))
@pytest.mark.behaviour("B133")
def test_what_another_program_switched_off_stays_off_until_it_or_the_owner_says_otherwise(
    passes: list[Any], family: int
) -> None:
    world = World()
    for each in passes:
        world.run(each["wanted"], rules=each["rules"], lost=each["lost"])
    world.run(BOTH, rules=True)
    world.switch(family, False)
    for _ in range(2):
        world.run(BOTH, rules=True)
        assert family not in world.on
        assert family in world.provided.stopped
    world.switch(family, True)
    world.run(BOTH, rules=True)
    assert (family in world.on, world.provided.stopped & {family}) == (True, NONE)
    world.run(NONE, rules=True)
    assert family not in world.on, "it is ours again"


def test_what_another_program_opens_after_we_have_closed_is_not_ours_to_end() -> None:
    world = World()
    world.run(BOTH, rules=True)
    world.run(NONE, rules=True)
    assert (world.on, world.provided.forwarding) == (NONE, NONE)
    world.switch(4, True)
    world.run(NONE, rules=True)
    assert world.on == {4}


def test_closed_for_lost_rules_is_no_wish_of_anothers() -> None:
    world = World()
    world.run(BOTH, rules=True)
    world.run(BOTH, rules=False, lost=True)
    assert not world.on
    world.run(BOTH, rules=True)
    assert (world.on, world.provided.stopped) == (BOTH, NONE)


def test_what_is_closed_while_it_is_opened_is_not_opened_again_in_that_pass() -> None:
    world = World()

    def write(op: CloseForwarding | OpenForwarding) -> None:
        world.write(op)
        world.switch(op.family, False)  # by another program, at once

    table = dict.fromkeys(ORDER, write)
    _, outcome = flow.settle(
        lambda record, so_far: forwarding.plan_opening({4}, frozenset(world.on), record, so_far), table, world.ledger
    )
    assert outcome == Outcome(done=(OpenForwarding(4),))
    assert world.obey() == {4}


def test_what_is_opened_again_while_it_is_closed_is_an_error_that_says_so() -> None:
    world = World()
    world.run({4}, rules=True)

    def write(op: CloseForwarding | OpenForwarding) -> None:
        world.write(op)
        world.switch(op.family, True)

    table = dict.fromkeys(ORDER, write)
    _, outcome = flow.settle(
        lambda record, _: forwarding.plan_closing({4}, frozenset(world.on), record), table, world.ledger
    )
    assert len(outcome.done) == flow.ROUNDS
    (error,) = outcome.errors
    assert str(error).startswith("change did not persist: sysctl net/ipv4/ip_forward=0; ")
    assert 4 in world.provided.forwarding, "and is in the next plan"


def test_a_family_that_is_closed_for_good_is_neither_ours_nor_shut() -> None:
    both = frozenset({4, 6})
    record = Record(provided=Provided(forwarding=both, shut=both))
    planned = forwarding.plan_closing({4}, frozenset({6}), record)
    assert (planned.ops, planned.record.provided.forwarding, planned.record.provided.shut) == ((), {6}, {6})


def test_only_what_is_opened_is_shut_no_more() -> None:
    record = Record(provided=Provided(shut=frozenset({4, 6})))
    planned = forwarding.plan_opening({4}, frozenset({4, 6}), record, Outcome())
    assert planned.record.provided.shut == {6}
