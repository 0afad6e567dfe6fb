# SPDX-License-Identifier: GPL-2.0-or-later
"""What a restarted agent knows of the lists by which connections were judged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_guestnet.core.firewall import judged_text, ruleset
from qubes_guestnet.core.firewall.binding import Bound
from qubes_guestnet.core.firewall.connections import Rules
from qubes_guestnet.core.firewall.judged_text import Judged, parse, render, restored
from qubes_guestnet.core.firewall.listing import Element, Listed
from tests.core.firewall.made import FOUR, SIX, A, bound

ONE, TWO = bound("action=accept dsthost=a.org", a_org=["192.0.2.1"]), bound("action=drop", address=SIX)
DNS = frozenset({A("10.139.1.1"), A("fd00::1")})
RULES = Rules({A(SIX): TWO, A(FOUR): ONE}, DNS)


def loaded(*lists: Bound) -> dict[int, Listed]:
    found: dict[int, Listed] = {}
    for each in lists:
        address = each.ruleset.address
        element = Element(ruleset.verdict(address), each.signature)
        found[address.version] = Listed(qubes={address: element})
    return found


def test_it_is_read_as_it_was_written() -> None:
    assert parse(render(RULES)) == Judged({A(FOUR): ONE.signature, A(SIX): TWO.signature}, DNS)
    assert parse(render(Rules())) == Judged()
    assert render(RULES).decode().splitlines()[:3] == [
        "judged 1",
        "dns 10.139.1.1 fd00::1",
        f"list {FOUR} {ONE.signature}",
    ]


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"",
        b"judged 2\ndns\n",
        b"judged 1\n",
        b"judged 1\nservers\n",
        b"judged 1\ndns",
        b"judged 1\ndns 10.0.0\n",
        b"judged 1\ndns\nlist 10.137.0.5\n",
        b"judged 1\ndns\nlist 10.137.0.5 x\n",
        b"judged 1\ndns\nlist 10.137.0.5 \n",
        b"judged 1\ndns\nlist 10.137.0 1-2\n",
        b"judged 1\ndns\nmist 10.137.0.5 1-2\n",
        b"judged 1\ndns\nlist 10.137.0.5 1-2\xff\n",
        render(RULES)[:-1],
        render(RULES) + b"x",
        render(RULES) + b" " * judged_text.LONGEST,
    ],
)
def test_of_a_damaged_file_nothing_counts(data: bytes | None) -> None:
    assert parse(data) == Judged()


@given(st.binary(max_size=200))
def test_no_bytes_raise(data: bytes) -> None:
    assert isinstance(parse(data), Judged)
    assert isinstance(parse(b"judged 1\ndns\n" + data), Judged)


def test_the_same_list_that_is_loaded_was_judged() -> None:
    judged = parse(render(RULES))
    assert restored(judged, RULES.lists, loaded(ONE, TWO)) == RULES
    # A name that has other addresses now is in the same list.
    moved = bound("action=accept dsthost=a.org", a_org=["192.0.2.2"])
    assert restored(judged, {A(FOUR): moved}, loaded(ONE)) == Rules({A(FOUR): moved}, DNS)


@pytest.mark.parametrize(
    ("judged", "now", "there"),
    [
        # There was another commit meanwhile, or a name is not known any more that an entry refuses.
        (parse(render(RULES)), bound("action=drop"), loaded(ONE)),
        # The former agent was killed behind the load.
        (parse(render(RULES)), bound("action=drop"), loaded(bound("action=drop"))),
        # Another program's rules were in force, or none.
        (parse(render(RULES)), ONE, loaded(bound("action=accept"))),
        (parse(render(RULES)), ONE, {4: Listed()}),
        (parse(render(RULES)), ONE, {}),
        (Judged(), ONE, loaded(ONE)),
    ],
)
def test_anything_else_is_judged_anew(judged: Judged, now: Bound, there: dict[int, Listed]) -> None:
    assert restored(judged, {A(FOUR): now}, there).lists == {}
