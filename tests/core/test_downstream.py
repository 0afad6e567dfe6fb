# SPDX-License-Identifier: GPL-2.0-or-later
"""The set of protected addresses, over random passes and a model of nft: held as long as a qube may come back."""

from __future__ import annotations

import ipaddress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet import flow
from qubes_guestnet.core.operations import ORDER, Outcome, Planned
from qubes_guestnet.core.owned_state import Record
from qubes_guestnet.core.provider import downstream
from qubes_guestnet.core.provider.downstream import Facts, follows, ordered
from qubes_guestnet.core.provider.provider_operations import ChangeDownstream
from qubes_guestnet.errors import GuestnetError
from tests.core.memory import Memory

many = settings(max_examples=300, deadline=None, derandomize=True)

ADDRESSES = [ipaddress.ip_address(text) for text in ("10.137.0.5", "10.137.0.66", "10.137.0.7", "fd09::5", "fd09::6")]
SETS = st.frozensets(st.sampled_from(ADDRESSES))


class World:
    """The sets as nft has them: one transaction is in force as a whole, or nothing of it.

    Attributes:
        held: what they hold.
        refuses: nft refuses.
    """

    def __init__(self, held: frozenset[Any]) -> None:
        self.held, self.refuses = set(held), False
        self.ledger = Memory()

    def load(self, op: ChangeDownstream) -> None:
        if self.refuses:
            raise GuestnetError("nft refuses")
        assert not self.held & {*op.add}, "what is there is not added"
        held = set(self.held)
        for line in op.text.splitlines():
            verb, _, word, table, name, members = line.split(None, 5)
            assert (table, name) == ("qubes", "downstream")
            found = {ipaddress.ip_address(member.strip()) for member in members.strip("{ }").split(",")}
            assert {address.version for address in found} == {4 if word == "ip" else 6}
            assert verb == "add" or found <= held, "nft refuses to delete what is not there"
            held = held | found if verb == "add" else held - found
        self.held = held

    def settle(self, connected: frozenset[Any], behind: frozenset[Any], *, complete: bool) -> Outcome:
        def plan(record: Record, _so_far: Outcome) -> Planned:
            return downstream.plan(Facts(connected, behind, frozenset(self.held), complete), record)

        return flow.settle(plan, dict.fromkeys(ORDER, self.load), self.ledger)[1]


@many
@given(SETS, st.lists(st.tuples(SETS, SETS, st.booleans(), st.booleans()), min_size=1, max_size=4))
def test_what_is_behind_is_protected_and_nothing_is_given_up_that_may_come_back(
    held: frozenset[Any], passes: list[tuple[frozenset[Any], frozenset[Any], bool, bool]]
) -> None:
    world = World(held)
    for connected, behind, complete, refuses in passes:
        before, world.refuses = frozenset(world.held), refuses
        outcome = world.settle(connected, behind, complete=complete)
        if refuses and outcome.failed:
            assert (world.held, len(outcome.errors)) == (before, 1)
            world.refuses = False
            world.settle(connected, behind, complete=complete)
        assert world.held == connected | behind | (frozenset() if complete else before)
        assert follows(world.ledger.record, connected)
        assert world.settle(connected, behind, complete=complete) == Outcome(), "a second plan is empty"


def test_a_list_is_followed_only_once_all_of_it_is_in() -> None:
    world = World(frozenset())
    world.refuses = True
    world.settle(frozenset(ADDRESSES[:1]), frozenset(), complete=True)
    assert not follows(world.ledger.record, ADDRESSES[:1])


def test_one_order() -> None:
    assert list(map(str, ordered(reversed(ADDRESSES)))) == [
        "10.137.0.5", "10.137.0.7", "10.137.0.66", "fd09::5", "fd09::6",
    ]  # fmt: skip
    both = ChangeDownstream(ordered(ADDRESSES[:2]), ordered(ADDRESSES[4:]))
    assert str(both) == (
        "nft add element ip qubes downstream { 10.137.0.5, 10.137.0.66 }; "
        "nft add element ip6 qubes downstream { fd09::6 }; nft delete element ip6 qubes downstream { fd09::6 }"
    )
