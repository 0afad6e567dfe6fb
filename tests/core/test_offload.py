# SPDX-License-Identifier: GPL-2.0-or-later
"""Flow offload, over random passes and a model of the kernel: what is planned, carried out, and planned again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet import flow
from qubes_guestnet.core.operations import ORDER, Outcome, Planned
from qubes_guestnet.core.owned_state import Record
from qubes_guestnet.core.provider import offload
from qubes_guestnet.core.provider.offload import NO_DEVICE, NOT_YET, Facts, against
from qubes_guestnet.core.provider.provider_operations import EndFlowtable, LoadFlowtable
from qubes_guestnet.errors import GuestnetError
from tests.core.memory import Memory

many = settings(max_examples=400, deadline=None, derandomize=True)

ETH0, VIF, STRANGE = (2, "eth0", 1500), (5, "vif4.0", 1500), (6, 'a"b', 1500)
DEVICES = ((), (ETH0,), (ETH0, VIF), (ETH0, (5, "vif4.0", 1400)), (STRANGE,))
OBSTACLE = "chain inet judge late judges each packet"


class Killed(BaseException):
    """SIGKILL: nothing is tidied up."""


class World:
    """A model: the flowtable that the kernel has, and the record.

    Attributes:
        loaded: what is offloaded.
        fails: "" or how the next load ends: "refused" by the kernel, or the "program" fails.
        ends: ending it works.
        killed: at how manieth operation of a pass the agent is killed, before or after it is done.
    """

    def __init__(self) -> None:
        self.loaded: LoadFlowtable | None = None
        self.ledger = Memory()
        self.holds: LoadFlowtable | None = None
        self.fails, self.ends = "", True
        self.killed, self.before = 0, False
        self.count = 0

    def carry_out(self, op: Any) -> None:
        self.count += 1
        if self.killed == self.count and self.before:
            raise Killed
        if isinstance(op, EndFlowtable):
            if not self.ends:
                raise GuestnetError("cannot be ended")
            self.loaded = None
        else:
            assert op.names, "at least one device"
            assert self.ledger.record.provided.offloading, "the record is ahead"
            if self.fails:
                raise GuestnetError(self.fails)
            self.loaded = op
        if self.killed == self.count:
            raise Killed

    def settle(self, reason: str, wanted: LoadFlowtable) -> tuple[Planned, Outcome]:
        """One pass, as `provider.offload.Offload.apply` has it."""
        recorded = self.ledger.record.provided.offloading
        self.count = 0

        def plan(record: Record, so_far: Outcome) -> Planned:
            refusal = "refused" if self.fails == "refused" and so_far.errors else ""
            return offload.plan(Facts(reason, wanted, self.holds, recorded, refusal), record, so_far)

        planned, outcome = flow.settle(plan, dict.fromkeys(ORDER, self.carry_out), self.ledger)
        self.holds = None if planned.waits or outcome.failed else wanted
        return planned, outcome

    def end(self) -> Outcome:
        """As a pass does that is to forward no more."""
        return flow.settle(offload.plan_ending, dict.fromkeys(ORDER, self.carry_out), self.ledger)[1]


PASSES = st.tuples(
    st.sampled_from(("", "", NOT_YET, OBSTACLE)), st.sampled_from(DEVICES), st.booleans(),
    st.sampled_from(("", "", "refused", "program", "ends not", "killed before", "killed after")),
    st.booleans(),
)  # fmt: skip


@many
@given(st.lists(PASSES, min_size=1, max_size=6))
def test_what_is_against_it_ends_it_and_the_record_never_says_too_little(passes: list[Any]) -> None:
    world = World()
    for reason, devices, ipv6, happening, disturbed in passes:
        wanted = LoadFlowtable(devices, ipv6)
        world.fails = happening if happening in ("refused", "program") else ""
        world.ends = happening != "ends not"
        world.killed, world.before = int(happening.startswith("killed")), happening == "killed before"
        if disturbed or world.killed:
            world.holds = None
        had = world.loaded
        try:
            planned, _ = world.settle(reason, wanted)
        except Killed:
            world.holds = None
            assert world.ledger.record.provided.offloading or world.loaded is None
            continue
        assert world.ledger.record.provided.offloading or world.loaded is None
        why = reason or ("" if wanted.names else NO_DEVICE)
        if why:
            assert planned.waits == (why,)
            if world.ends:
                assert (world.loaded, world.ledger.record.provided.offload) == (None, f"off: {why}")
        elif happening == "refused" and (world.loaded, had) != (wanted, wanted):
            assert world.loaded is None
            assert world.ledger.record.provided.offload == "off: the kernel takes no flowtable (refused)"
        elif not world.fails:
            assert world.loaded == wanted
            assert world.ledger.record.provided.offload == f"on ({len(wanted.names)} devices)"
        if not world.fails and world.ends:
            assert world.settle(reason, wanted)[1] == Outcome(), "a second plan is empty"


def test_what_was_refused_is_tried_with_other_devices_in_the_same_pass() -> None:
    first, then = LoadFlowtable((ETH0, VIF), False), LoadFlowtable((ETH0,), False)
    so_far = Outcome(failed=(first,), errors=(GuestnetError("no such device"),))
    assert offload.plan(Facts(wanted=then, refusal="no such device"), Record(), so_far).ops == (then,)


def test_a_load_that_was_refused_leaves_nothing_to_end_where_nothing_was() -> None:
    wanted = LoadFlowtable((ETH0,), False)
    ahead = offload.plan(Facts(wanted=wanted), Record(), Outcome()).record
    refused = Outcome(failed=(wanted,))
    for recorded, ops in ((False, ()), (True, (EndFlowtable(),))):
        facts = Facts(wanted=wanted, recorded=recorded, refusal="no such device")
        assert offload.plan(facts, ahead, refused).ops == ops


def test_what_turns_up_against_it_after_it_was_loaded_ends_it_in_the_same_pass() -> None:
    wanted = LoadFlowtable((ETH0,), False)
    ahead = offload.plan(Facts(wanted=wanted), Record(), Outcome()).record
    assert offload.plan(Facts(OBSTACLE, wanted), ahead, Outcome(done=(wanted,))).ops == (EndFlowtable(),)


def test_what_the_base_rules_ended_is_loaded_again() -> None:
    """They end it in their own transaction, and the record says so, whatever this process thinks to hold."""
    wanted = LoadFlowtable((ETH0,), False)
    assert offload.plan(Facts(wanted=wanted, holds=wanted), Record(), Outcome()).ops == (wanted,)


def test_a_program_that_failed_is_no_reason_and_tried_by_the_next_pass() -> None:
    wanted = LoadFlowtable((ETH0,), False)
    planned = offload.plan(Facts(wanted=wanted), Record(), Outcome(failed=(wanted,)))
    assert (planned.ops, planned.waits) == ((wanted,), ())


@pytest.mark.parametrize(
    ("allowed", "forwarding", "refused", "reason", "quiet"),
    [
        (True, True, "", "", False),
        (False, True, "", "service flag guestnet-no-offload is set", False),
        (False, False, "x", "service flag guestnet-no-offload is set", False),
        (True, False, "x", NOT_YET, True),
        (True, True, "the kernel takes no flowtable", "the kernel takes no flowtable", False),
    ],
)
def test_what_is_against_it_first(allowed: bool, forwarding: bool, refused: str, reason: str, quiet: bool) -> None:
    assert against(allowed=allowed, forwarding=forwarding, refused=refused) == reason
    assert offload.is_quiet(reason) is quiet
    assert offload.is_quiet(NO_DEVICE)


def test_names_that_nft_cannot_take_are_left_out() -> None:
    assert LoadFlowtable((ETH0, STRANGE, VIF), True).names == ("eth0", "vif4.0")


def test_it_ends_before_forwarding_does_and_the_record_says_so_only_then() -> None:
    world = World()
    world.settle("", LoadFlowtable((ETH0,), False))
    assert world.loaded is not None
    world.ends = False
    outcome = world.end()
    assert (outcome.failed, [str(error) for error in outcome.errors]) == ((EndFlowtable(),), ["cannot be ended"])
    assert world.ledger.record.provided.offloading
    world.ends = True
    assert world.end() == Outcome(done=(EndFlowtable(),))
    assert (world.loaded, world.ledger.record.provided.offload) == (None, "")
    assert world.end() == Outcome(), "nothing that is not there is ended"
