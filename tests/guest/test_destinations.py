# SPDX-License-Identifier: GPL-2.0-or-later
"""How many destinations a device route bears, and what that takes from others: the kernel has one neighbour table.

Here, because its limits are the initial namespace's alone; the guest has those of the package. All qubes of a test
share the one table, which is what a provider and the qubes behind it do not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from qubes_guestnet.lab.qube import Qube
from tests.support.packets.pings import addresses, pings
from tests.support.qubes.provider import GATEWAY, LAN, ROUTER, UPLINK, Client, Provider

pytestmark = pytest.mark.behaviour("B114")

# The default limits end at 1022. 30,000 were answered as well, none was lost, and in the provider they made no entry.
MANY, FLOOD = 4_000, 10_000
ANSWERED, SILENT = "198.18.0.0/15", "100.64.0.0/10"
KEPT_S = 30.0  # nf_conntrack_icmp_timeout


def entries(qube: Qube) -> int:
    """Of the neighbour table, in one namespace."""
    return len(qube.run("ip", "-4", "neighbour", "show", "nud", "all").stdout.splitlines())


@pytest.fixture
def other(host: Provider, behind: Client) -> Iterator[Client]:
    """A neighbour of the qube, behind the provider of a world.

    The world answers pings of one network. For whatever else it is asked by ARP it knows a way, where all is lost.
    """
    host.world.wire(f"""
        ip link add sink type dummy; ip link set sink up; ip route replace {SILENT} dev sink
        ip route replace local {ANSWERED} dev lo
        echo 1 > /proc/sys/net/ipv4/conf/{LAN}/proxy_arp; echo 0 > /proc/sys/net/ipv4/neigh/{LAN}/proxy_delay
    """)
    other = host.attach(5)
    yield other
    host.unplug(other)
    host.offline(other)
    host.world.wire(f"ip link delete sink; ip route delete local {ANSWERED} dev lo")
    host.qube.wire(f"ip route replace default via {ROUTER} dev {UPLINK}; ip neighbour flush dev {UPLINK}")
    behind.qube.wire(f"ip route replace default via {GATEWAY} dev eth0 onlink; ip neighbour flush dev eth0")


def by_device(qube: Qube, interface: str) -> None:
    """As our uplinks have it."""
    qube.wire(f"ip route replace default dev {interface} scope link")


def test_a_qube_reaches_as_many_destinations_as_it_wants(host: Provider, behind: Client, other: Client) -> None:
    by_device(behind.qube, "eth0")
    by_device(other.qube, "eth0")
    before = entries(host.qube)
    with pings(behind.qube) as pinger, pings(other.qube) as others:
        lost = pinger.unanswered(addresses("198.18.0.1", MANY))
        assert lost == [], f"{len(lost)} of {MANY} are lost"
        assert entries(host.qube) == before, "what it asks its provider for takes nothing there"
        assert others.unanswered(addresses("198.19.0.1", 50)) == []


def test_a_flood_without_an_answer_leaves_room_in_its_provider(host: Provider, behind: Client, other: Client) -> None:
    """There each destination takes an entry, where the provider's own uplink has a device route."""
    by_device(other.qube, "eth0")
    by_device(host.qube, UPLINK)
    before, began = entries(host.qube), time.monotonic()
    with pings(behind.qube) as pinger, pings(other.qube) as others:
        for target in addresses("100.64.0.1", FLOOD):
            pinger.send(target)
        took = entries(host.qube) - before
        assert others.unanswered(addresses("198.19.0.1", 50)) == []
    vifs = json.loads(host.qube.guestnet("status", "--json", check=False).stdout)["provider"]["vifs"]
    (limit,) = (vif["unanswered"]["connections"]["limit"] for vif in vifs if vif["name"] == behind.vif)
    assert limit < FLOOD / 2
    assert took <= limit * (1 + (time.monotonic() - began) / KEPT_S) + 10
