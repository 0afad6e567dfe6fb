# SPDX-License-Identifier: GPL-2.0-or-later
"""What wakes, what does not, and an overrun."""

from __future__ import annotations

import select
import socket
from pathlib import Path

import pytest

from qubes_guestnet.system.netlink import rtnl as netlink
from tests.support.judge.oracle import Oracle

OTHER_MAC = "00:16:3e:5e:6c:06"


def readable(events: netlink.Events) -> bool:
    return bool(select.select([events.fileno()], [], [], 10)[0])


CHANGES = [
    "ip address add 10.137.0.5/32 dev eth0",
    "ip address add fd00::5/128 dev eth0 nodad",
    "ip route add 192.0.2.0/24 dev eth0",
    "ip -6 route add 2001:db8::/48 dev eth0",
    "ip link set eth0 group 7",
    "ip link set eth0 down",
    "ip link add new type veth peer name newer",
]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_wake(oracle: Oracle, events: netlink.Events, change: str) -> None:
    assert events.drain() is False
    oracle.run("sh", "-ec", change)
    assert readable(events)
    assert events.drain() is True
    assert events.drain() is False


def test_neighbours_wake_only_when_they_are_wanted(oracle: Oracle, events: netlink.Events) -> None:
    add = ("ip", "neighbour", "replace", "10.137.0.1", "lladdr", OTHER_MAC, "nud", "permanent", "dev", "eth0")
    oracle.run(*add)
    assert events.drain() is False
    events.neighbours(True)
    oracle.run("ip", "neighbour", "del", "10.137.0.1", "dev", "eth0")
    assert readable(events)
    assert events.drain() is True
    events.neighbours(False)
    oracle.run(*add)
    assert events.drain() is False


def test_an_overrun_is_a_wake_up(oracle: Oracle, events: netlink.Events) -> None:
    events._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    flood = "ip address add 192.0.2.1/32 dev lo; ip address del 192.0.2.1/32 dev lo; " * 20
    oracle.run("sh", "-ec", flood)
    drops = [int(line.split()[8]) for line in Path("/proc/net/netlink").read_text().splitlines()[1:]]
    assert any(drops)
    assert events.drain() is True
    assert events.drain() is False
    oracle.run("ip", "link", "set", "eth1", "down")
    assert readable(events)
