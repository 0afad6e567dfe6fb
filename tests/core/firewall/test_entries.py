# SPDX-License-Identifier: GPL-2.0-or-later
"""The entries below /qubes-firewall/ by address, and what the paths of a watch are about."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet.core.firewall.entries import Stored, by_address, gathered, told_of
from tests.core.firewall.made import FOUR, SIX, A


def test_entries_of_both_families_by_address() -> None:
    found = by_address(
        {
            "/qubes-ip": b"10.137.0.9",
            f"/qubes-firewall/{FOUR}": b"",
            f"/qubes-firewall/{FOUR}/policy": b"drop",
            f"/qubes-firewall/{FOUR}/0000": b"action=accept",
            f"/qubes-firewall/{FOUR}/a/b": b"x",
            f"/qubes-firewall/{SIX}/policy": b"drop",
            "/qubes-firewall/192.168.1.1": b"",
            "/qubes-firewall-handled/10.137.0.5": b"3",
        }
    )
    sets = {
        A(FOUR): {"policy": b"drop", "0000": b"action=accept", "a/b": b"x"},
        A(SIX): {"policy": b"drop"},
        A("192.168.1.1"): {},
    }
    assert found == Stored(sets, frozenset({A(FOUR), A("192.168.1.1")}), ())


ODD = [
    "",
    "x",
    "10.137.0",
    "10.137.0.05",
    "0.0.0.0",
    "127.0.0.1",
    "224.0.0.1",
    "FD09::5",
    "fd09:0::5",
    "fe80::5",
    "::1",
    "::ffff:10.137.0.5",
    "fd09::5%1",
    "10.137.0.5 ",
    "\u0661\u0660.137.0.5",
    "\ud800",
    "$(reboot)",
    "10.137.0.5\n",
]


@pytest.mark.parametrize("name", ODD)
def test_another_spelling_and_what_is_no_address_is_an_error_and_nothing_else(name: str) -> None:
    raw = {f"/qubes-firewall/{name}": b"", f"/qubes-firewall/{name}/policy": b"accept", f"/qubes-firewall/{FOUR}": b""}
    found = by_address(raw)
    assert (found.sets, found.committed) == ({A(FOUR): {}}, frozenset({A(FOUR)}))
    (problem,) = found.problems
    assert not problem.blocks
    assert "not the address of a qube as dom0 writes it" in str(problem)
    assert str(problem).isprintable()
    assert str(problem).isascii()
    assert told_of(f"/qubes-firewall/{name}") == (None, False)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.dictionaries(st.one_of(st.text(), st.text().map("/qubes-firewall/".__add__)), st.binary(), max_size=5))
def test_arbitrary_paths_never_raise(raw: dict[str, bytes]) -> None:
    by_address(raw)
    for path in raw:
        told_of(path)


@pytest.mark.behaviour("B79")
@pytest.mark.parametrize(
    ("path", "told"),
    [
        (f"/qubes-firewall/{FOUR}", (A(FOUR), True)),
        (f"/qubes-firewall/{SIX}", (A(SIX), True)),
        (f"/qubes-firewall/{FOUR}/", (A(FOUR), False)),
        (f"/qubes-firewall/{FOUR}/policy", (A(FOUR), False)),
        (f"/qubes-firewall/{FOUR}/0000", (A(FOUR), False)),
        ("/qubes-firewall/", (None, False)),
        ("/qubes-ip", (None, False)),
        ("/connected-ips", (None, False)),
    ],
)
def test_only_a_path_of_two_slashes_is_a_commit(path: str, told: tuple[object, bool]) -> None:
    assert told_of(path) == told


@pytest.mark.behaviour("B89")
def test_paths_of_very_many_rules_are_gathered_in_the_order_of_the_last_of_each_kind() -> None:
    rules = [f"/qubes-firewall/{FOUR}/{number:04}" for number in range(4096)]
    commit = f"/qubes-firewall/{FOUR}"
    assert gathered([commit, f"/qubes-firewall/{SIX}/policy", *rules, "/qubes-firewall/x/policy", "/qubes-ip"]) == (
        commit,
        f"/qubes-firewall/{SIX}/",
        f"/qubes-firewall/{FOUR}/",
    )
    assert gathered([*rules, commit]) == (f"/qubes-firewall/{FOUR}/", commit)
