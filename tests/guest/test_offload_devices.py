# SPDX-License-Identifier: GPL-2.0-or-later
"""Interfaces come and go while connections are offloaded."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from tests.support.eventually import eventually
from tests.support.hosting import UPLINK, WORLD, Behind, Hosting
from tests.support.offload import TCP, TICKS, UDP, Flow, Offload, flowing, part, visitor

VPN = "wg0"
VPN_GATEWAY, VPN_OWN = "10.8.0.1", "10.8.0.2"


def dropped(hosting: Hosting) -> int:
    """By the rules that judge what is forwarded, such as that for packets of no known connection."""
    return hosting.drops("forward") + hosting.drops("forward", "ip6")


@pytest.mark.behaviour("B62", "B63")
def test_vifs_come_and_go_and_a_transfer_goes_on(hosting: Hosting, behind: Behind, offload: Offload) -> None:
    before = dropped(hosting)
    with ExitStack() as stack:
        flows = [stack.enter_context(flowing(behind.qube, hosting.world, WORLD, kind)) for kind in (TCP, UDP)]

        def goes_on_with(*vifs: str) -> None:
            eventually(lambda: offload.devices() == {UPLINK, behind.vif, *vifs}, 20, f"offload for {vifs}")
            for flow in flows:
                flow.goes_on()
                assert flow.trouble == ""
            assert dropped(hosting) == before

        goes_on_with()
        with visitor(hosting, 6) as one:
            goes_on_with(one.vif)
            with visitor(hosting, 7) as other:
                goes_on_with(one.vif, other.vif)
                part(hosting, one)
                goes_on_with(other.vif)
                for flow in flows:
                    offload.takes(flow)
        goes_on_with()


@pytest.mark.behaviour("B62", "B63")
def test_nothing_of_a_connection_outlives_its_vif(hosting: Hosting, behind: Behind, offload: Offload) -> None:
    with visitor(hosting, 8) as first, ExitStack() as stack:
        eventually(offload.complete, 20, "offload is on")
        flow = stack.enter_context(flowing(first.qube, hosting.world, WORLD, UDP))
        offload.takes(flow)
        part(hosting, first)
        assert offload.entries(flow) == []
        heir = stack.enter_context(visitor(hosting, 9, *first.addresses))
        eventually(offload.complete, 20, "offload is on")
        # The other end goes on speaking, to the address of the provider that was the connection's.
        flow.stands(flow.near)
        heir.port.drain()
        assert [packet for packet in heir.port.packets if port_of(packet, 20) == flow.port] == []
        assert offload.entries(flow) == []


def port_of(packet: bytes, place: int) -> int:
    """The source (20) or target (22) port of an IPv4 packet."""
    return int.from_bytes(packet[place : place + 2]) if packet[0] >> 4 == 4 else 0


def lay_vpn(hosting: Hosting) -> None:
    """Another way to the world, as a VPN's interface is one."""
    hosting.qube.wire(f"""
        ip link add {VPN} type veth peer name far-{VPN} netns {hosting.world.pid}
        ip link set {VPN} up; ip address add {VPN_OWN}/24 dev {VPN}
    """)
    hosting.world.wire(f"""
        ip link set far-{VPN} up; ip address add {VPN_GATEWAY}/24 dev far-{VPN}
    """)


def speaks_at(hosting: Hosting, flow: Flow) -> int:
    """How many of a flow's packets come out at the old end of the world within 40 attempts."""
    outside = hosting.outside()
    tried = flow.near.tried
    eventually(lambda: flow.near.tried >= tried + TICKS, what="attempts to send")
    outside.drain()
    return len([packet for packet in outside.packets if port_of(packet, 22) == flow.port])


@pytest.mark.behaviour("B62", "B63")
@pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])
def test_what_was_on_its_way_before_a_vpn_came_does_not_go_on_beside_it(
    hosting: Hosting, behind: Behind, offload: Offload, kind: socket.SocketKind
) -> None:
    try:
        with flowing(behind.qube, hosting.world, WORLD, kind) as flow:
            offload.takes(flow)
            assert speaks_at(hosting, flow) > 0
            lay_vpn(hosting)
            eventually(offload.complete, 20, "it has the new interface too")
            flow.goes_on()
            hosting.qube.wire(f"ip route replace {WORLD}/32 via {VPN_GATEWAY} dev {VPN}")
            eventually(lambda: speaks_at(hosting, flow) == 0, 20, "nothing more goes out by the old way")
        with flowing(behind.qube, hosting.world, WORLD, kind) as another:
            offload.takes(another)
            assert speaks_at(hosting, another) == 0
    finally:
        hosting.qube.wire(f"ip link delete {VPN}")
    eventually(offload.complete, 20, "without it")
