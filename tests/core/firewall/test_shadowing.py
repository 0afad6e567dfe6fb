# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries that never decide."""

from __future__ import annotations

import random

import pytest

from qubes_guestnet.core.firewall.shadowing import covered
from tests.core.firewall import made, naive
from tests.core.firewall.made import bound


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        (("action=accept", "action=drop", "action=accept proto=tcp"), {1: 0, 2: 0}),
        (("action=accept proto=tcp", "action=drop"), {}),
        (("action=drop dst4=10.0.0.0/8", "action=accept dst4=10.1.0.0/16 proto=udp"), {1: 0}),
        (("action=drop dst4=10.1.0.0/16", "action=accept dst4=10.0.0.0/8"), {}),
        (("action=drop dst4=10.1.0.0/16", "action=accept"), {}),
        (("action=drop dst4=10.0.0.0/8", "action=accept dst4=11.0.0.0/8"), {}),
        (("action=accept dsthost=a.org", "action=drop dsthost=a.org proto=tcp"), {1: 0}),
        (("action=accept dsthost=a.org", "action=drop dsthost=b.org"), {}),
        (("action=accept dsthost=a..b", "action=drop dsthost=a..b"), {}),
        (("action=accept specialtarget=dns", "action=drop specialtarget=dns proto=udp"), {1: 0}),
        (("action=accept specialtarget=dns", "action=drop proto=udp dstports=53-53"), {}),
        (("action=accept specialtarget=dns proto=icmp", "action=accept specialtarget=dns"), {}),
        (("action=accept proto=icmp", "action=drop proto=icmp icmptype=8"), {1: 0}),
        (("action=accept proto=icmp icmptype=8", "action=drop proto=icmp"), {}),
        (("action=accept proto=tcp dstports=1-100", "action=drop proto=tcp dstports=20-30"), {1: 0}),
        (("action=accept proto=tcp dstports=20-30", "action=drop proto=tcp dstports=1-100"), {}),
        (("action=accept proto=tcp dstports=20-30", "action=drop proto=tcp"), {}),
        (("action=accept dstports=0-65535", "action=drop proto=udp dstports=5-5"), {1: 0}),
    ],
)
def test_an_entry_that_an_earlier_one_covers(entries: tuple[str, ...], found: dict[int, int]) -> None:
    assert covered(bound(*entries)) == found


def test_an_entry_that_is_covered_never_decides() -> None:
    """Random lists and packets: the evaluator, which knows nothing of this, names no such entry."""
    chance, named = random.Random(4), 0
    for _ in range(300):
        found = naive.drawn(chance, 4)
        listed = made.of(found)
        idle = covered(listed)
        named += bool(idle)
        for _ in range(20):
            assert made.verdict(listed, naive.packet(chance, 4)).entry not in idle
    assert named > 50
