# SPDX-License-Identifier: GPL-2.0-or-later
"""Interfaces come and go while connections are offloaded."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.support.eventually import eventually
from tests.support.hosting import UPLINK, WORLD, WORLD6, Behind, Hosting
from tests.support.offload import TCP, TICKS, UDP, Flow, Offload, flowing, part, visitor

VPN = "wg0"
VPN_GATEWAY, VPN_OWN = "10.8.0.1", "10.8.0.2"
VPN_GATEWAY6, VPN_OWN6 = "fd08::1", "fd08::2"


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
        assert [packet for packet in heir.port.packets if port_of(packet, 0) == flow.port] == []
        assert offload.entries(flow) == []


def port_of(packet: bytes, place: int) -> int:
    """The source (0) or target (2) port of an IP packet."""
    place += 20 if packet[0] >> 4 == 4 else 40
    return int.from_bytes(packet[place : place + 2])


@contextmanager
def vpn(hosting: Hosting) -> Iterator[None]:
    """Another interface that leads to the world, as a VPN's does; at the end it goes."""
    hosting.qube.wire(f"""
        ip link add {VPN} type veth peer name far-{VPN} netns {hosting.world.pid}
        ip link set {VPN} up; ip address add {VPN_OWN}/24 dev {VPN}; ip address add {VPN_OWN6}/64 dev {VPN} nodad
    """)
    try:
        hosting.world.wire(f"""
            ip link set far-{VPN} up; ip address add {VPN_GATEWAY}/24 dev far-{VPN}
            ip address add {VPN_GATEWAY6}/64 dev far-{VPN} nodad
        """)
        yield
    finally:
        hosting.qube.wire(f"ip link delete {VPN}")


def lead_into_vpn(hosting: Hosting) -> None:
    """What is for the world goes there from now on."""
    hosting.qube.wire(f"""
        ip route replace {WORLD}/32 via {VPN_GATEWAY} dev {VPN}
        ip -6 route replace {WORLD6}/128 via {VPN_GATEWAY6} dev {VPN}
    """)


def speaks_at(hosting: Hosting, flow: Flow) -> int:
    """How many of a flow's packets come out at the old end of the world within 40 attempts."""
    outside = hosting.outside()
    tried = flow.near.tried
    eventually(lambda: flow.near.tried >= tried + TICKS, what="attempts to send")
    outside.drain()
    return len([packet for packet in outside.packets if port_of(packet, 2) == flow.port])


KINDS = pytest.mark.parametrize(
    ("target", "kind"), [(WORLD, TCP), (WORLD, UDP), (WORLD6, UDP)], ids=["tcp4", "udp4", "udp6"]
)


@pytest.mark.behaviour("B62", "B63")
@KINDS
def test_what_was_on_its_way_before_a_vpn_came_does_not_go_on_beside_it(
    hosting: Hosting, behind: Behind, offload: Offload, target: str, kind: socket.SocketKind
) -> None:
    with vpn(hosting):
        with flowing(behind.qube, hosting.world, target, kind) as flow:
            eventually(offload.complete, 20, "it has the new interface too")
            offload.takes(flow)
            assert speaks_at(hosting, flow) > 0
            lead_into_vpn(hosting)
            eventually(lambda: speaks_at(hosting, flow) == 0, 20, "nothing more goes out by the old way")
        with flowing(behind.qube, hosting.world, target, kind) as another:
            offload.takes(another)
            assert speaks_at(hosting, another) == 0
    eventually(offload.complete, 20, "without it")


@pytest.mark.behaviour("B62", "B63")
@KINDS
def test_nothing_goes_beside_a_vpn_whose_route_or_device_went(
    hosting: Hosting, behind: Behind, offload: Offload, target: str, kind: socket.SocketKind
) -> None:
    """Its owner has a rule for that, which offload does not pass by."""
    hosting.qube.wire(f"ip link set {UPLINK} group 1")
    for family in ("ip", "ip6"):
        hosting.nft(f"add rule {family} qubes custom-forward oifgroup 1 drop")
    try:
        with ExitStack() as stack:
            with vpn(hosting):
                lead_into_vpn(hosting)
                flow = stack.enter_context(flowing(behind.qube, hosting.world, target, kind))
                eventually(offload.complete, 20, "offload is on, for the VPN")
                offload.takes(flow)
                hosting.qube.wire(f"ip route delete {target} dev {VPN}")
                assert speaks_at(hosting, flow) == 0
            assert speaks_at(hosting, flow) == 0
            eventually(offload.complete, 20, "offload is on")
            assert speaks_at(hosting, flow) == 0
            flow.stands()
    finally:
        for family in ("ip", "ip6"):
            hosting.nft(f"flush chain {family} qubes custom-forward")
        hosting.qube.wire(f"ip link set {UPLINK} group 0")
