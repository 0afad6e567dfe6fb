# SPDX-License-Identifier: GPL-2.0-or-later
"""Every test here runs as process 1 of its own namespaces, some of them with two interfaces."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from qubes_guestnet.system.netlink import rtnl as netlink
from tests.support.eventually import eventually
from tests.support.judge.oracle import Oracle
from tests.support.needs import needs
from tests.support.qubes.isolated import pytest_runtest_protocol

__all__ = ["pytest_runtest_protocol"]

MAC, OTHER_MAC = "00:16:3e:5e:6c:05", "00:16:3e:5e:6c:06"


@pytest.fixture
def oracle() -> Oracle:
    needs("ip")
    judge = Oracle()
    # No link-local addresses: the kernel would tell of them at some later moment.
    judge.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/addr_gen_mode")
    for name, peer, mac in (("eth0", "peer", MAC), ("eth1", "peer1", OTHER_MAC)):
        judge.run("sh", "-ec", f"ip link add {name} address {mac} type veth peer name {peer}; ip link set {peer} up")
        judge.run("ip", "link", "set", name, "up")
    eventually(lambda: [link["operstate"] for link in judge.ip("link", "show", "type", "veth")] == ["UP"] * 4)
    return judge


@pytest.fixture
def kernel(oracle: Oracle) -> Iterator[netlink.Kernel]:
    with contextlib.closing(netlink.Kernel()) as made:
        yield made


@pytest.fixture
def events(oracle: Oracle) -> Iterator[netlink.Events]:
    with contextlib.closing(netlink.Events()) as made:
        yield made
