# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets and bytes as /proc/net/dev has them."""

from __future__ import annotations

from qubes_guestnet.core.render.traffic import Counter, Traffic, parse

TABLE = """\
Inter-|   Receive                                                |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
  lo: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
  vif4.0:1234567 8901 1 2 0 0 0 0 765432 1098 3 4 0 0 0 0
  eth0:0: 5 6 0 0 0 0 0 0 7 8 0 0 0 0 0 0
  short: 5 6
  words: x 6 0 0 0 0 0 0 7 8 0 0 0 0 0 0
"""


def test_each_interface_by_its_name() -> None:
    assert parse(TABLE) == {
        "lo": Traffic(Counter(0, 0, 0, 0), Counter(0, 0, 0, 0)),
        "vif4.0": Traffic(Counter(8901, 1234567, 1, 2), Counter(1098, 765432, 3, 4)),
        "eth0:0": Traffic(Counter(6, 5, 0, 0), Counter(8, 7, 0, 0)),
    }


def test_nothing_that_can_be_read() -> None:
    assert parse("") == {}
