# SPDX-License-Identifier: GPL-2.0-or-later
"""What the desktop's user is told of a bad list, and how often."""

from __future__ import annotations

import ipaddress

import pytest

from qubes_guestnet.core.firewall import notice
from qubes_guestnet.core.firewall.binding import bind
from qubes_guestnet.core.firewall.parsing import parse

A, B = ipaddress.ip_address("10.137.0.4"), ipaddress.ip_address("10.137.0.5")
BAD = bind(parse(A, {"policy": b"drop", "0000": b"action=accept foo=1"}), {})
GOOD = bind(parse(B, {"policy": b"drop", "0000": b"action=accept"}), {})


@pytest.mark.behaviour("B87")
def test_a_bad_list_is_shown_once_a_minute_and_a_good_one_never() -> None:
    assert notice.due({}, (BAD, GOOD), 0) == (BAD,)
    assert notice.due({A: 10}, (BAD,), 69) == ()
    assert notice.due({A: 10}, (BAD,), 70) == (BAD,)
    title, text = notice.text(BAD)
    assert title == "Firewall rules of 10.137.0.4 have an error"
    assert "/qubes-firewall/10.137.0.4/0000" in text
    assert len(text) <= 300


def test_an_address_is_remembered_as_long_as_it_delays_a_notification() -> None:
    assert notice.noticed({A: 10, B: 30}, (), 69) == {A: 10, B: 30}
    assert notice.noticed({A: 10, B: 30}, (), 70) == {B: 30}
    assert notice.noticed({B: 30}, (BAD,), 95) == {A: 95}


@pytest.mark.parametrize("name", ["user", "_a-1", "u" * 32])
def test_the_name_of_a_user(name: str) -> None:
    assert notice.user(name.encode()) == name


@pytest.mark.parametrize("raw", [b"", b"-user", b"us er", b"user\n", b"\xff", b"u" * 33, b"$(id)", b"0"])
def test_what_is_no_name_of_a_user_is_none(raw: bytes) -> None:
    assert notice.user(raw) == ""
