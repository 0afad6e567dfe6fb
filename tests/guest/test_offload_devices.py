# SPDX-License-Identifier: GPL-2.0-or-later
"""Interfaces come and go while connections are offloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.support.eventually import eventually
from tests.support.packets.flows import TCP, TICKS, UDP, Flow, Offload, flowing, part, visitor
from tests.support.qubes.provider import UPLINK, WORLD, WORLD6, Client, Provider

VPN = "wg0"
VPN_GATEWAY, VPN_OWN = "10.8.0.1", "10.8.0.2"
VPN_GATEWAY6, VPN_OWN6 = "fd08::1", "fd08::2"


def dropped(host: Provider) -> int:
    """By the rules that judge what is forwarded, such as that for packets of no known connection."""
    return host.drops("forward") + host.drops("forward", "ip6")


@pytest.mark.behaviour("B62", "B63")
def test_vifs_come_and_go_and_a_transfer_goes_on(host: Provider, behind: Client, offload: Offload) -> None:
    before = dropped(host)
    with ExitStack() as stack:
        flows = [stack.enter_context(flowing(behind.qube, host.world, WORLD, kind)) for kind in (TCP, UDP)]

        def goes_on_with(*vifs: str) -> None:
            eventually(lambda: offload.devices() == {UPLINK, behind.vif, *vifs}, 20, f"offload for {vifs}")
            for flow in flows:
                flow.goes_on()
                assert flow.trouble == ""
            assert dropped(host) == before

        goes_on_with()
        with visitor(host, 6) as other:
            goes_on_with(other.vif)
            for flow in flows:
                offload.takes(flow)
        goes_on_with()


@pytest.mark.behaviour("B62", "B63")
def test_nothing_of_a_connection_outlives_its_vif(host: Provider, behind: Client, offload: Offload) -> None:
    with visitor(host, 8) as first, ExitStack() as stack:
        eventually(offload.complete, 20, "offload is on")
        flow = stack.enter_context(flowing(first.qube, host.world, WORLD, UDP))
        offload.takes(flow)
        part(host, first)
        assert offload.entries(flow) == []
        heir = stack.enter_context(visitor(host, 9, *first.addresses))
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
def vpn(host: Provider) -> Iterator[None]:
    """Another interface that leads to the world, as a VPN's does; at the end it goes."""
    host.qube.wire(f"""
        ip link add {VPN} type veth peer name far-{VPN} netns {host.world.pid}
        ip link set {VPN} up; ip address add {VPN_OWN}/24 dev {VPN}; ip address add {VPN_OWN6}/64 dev {VPN} nodad
    """)
    try:
        host.world.wire(f"""
            ip link set far-{VPN} up; ip address add {VPN_GATEWAY}/24 dev far-{VPN}
            ip address add {VPN_GATEWAY6}/64 dev far-{VPN} nodad
        """)
        yield
    finally:
        host.qube.wire(f"ip link delete {VPN}")


def lead_into_vpn(host: Provider) -> None:
    """What is for the world goes there from now on."""
    host.qube.wire(f"""
        ip route replace {WORLD}/32 via {VPN_GATEWAY} dev {VPN}
        ip -6 route replace {WORLD6}/128 via {VPN_GATEWAY6} dev {VPN}
    """)


@contextmanager
def kill_switch(host: Provider) -> Iterator[None]:
    """What the owner of a VPN does: nothing of the qubes may leave by the uplink."""
    host.qube.wire(f"ip link set {UPLINK} group 1")
    for family in ("ip", "ip6"):
        host.nft(f"add rule {family} qubes custom-forward oifgroup 1 drop")
    try:
        yield
    finally:
        for family in ("ip", "ip6"):
            host.nft(f"flush chain {family} qubes custom-forward")
        host.qube.wire(f"ip link set {UPLINK} group 0")


def speak_outside(host: Provider, flows: list[Flow]) -> list[int]:
    """How many of each flow's packets come out at the old end of the world within 40 attempts."""
    outside = host.outside()
    tried = [flow.near.tried + TICKS for flow in flows]
    eventually(
        lambda: all(flow.near.tried >= wanted for flow, wanted in zip(flows, tried, strict=True)), 20, "attempts"
    )
    outside.drain()
    ports = [port_of(packet, 2) for packet in outside.packets]
    return [ports.count(flow.port) for flow in flows]


@pytest.mark.behaviour("B62", "B63")
def test_nothing_goes_beside_a_vpn(host: Provider, behind: Client, offload: Offload) -> None:
    """Neither what was on its way before it came, nor, where its owner has a rule for that, after it went."""
    with ExitStack() as stack:

        def flows() -> list[Flow]:
            kinds = ((WORLD, TCP), (WORLD, UDP), (WORLD6, UDP))
            return [stack.enter_context(flowing(behind.qube, host.world, *kind)) for kind in kinds]

        with vpn(host):
            before = flows()
            eventually(offload.complete, 20, "it has the new interface too")
            for flow in before:
                offload.takes(flow)
            assert 0 not in speak_outside(host, before)
            lead_into_vpn(host)
            eventually(lambda: speak_outside(host, before) == [0, 0, 0], 20, "nothing goes out by the old way")
            stack.close()
            after = flows()
            stack.enter_context(kill_switch(host))
            eventually(offload.complete, 20, "offload is on, for the VPN")
            for flow in after:
                offload.takes(flow)
            host.qube.wire(f"ip route delete {WORLD} dev {VPN}; ip -6 route delete {WORLD6} dev {VPN}")
            assert speak_outside(host, after) == [0, 0, 0]
        assert speak_outside(host, after) == [0, 0, 0]
        eventually(offload.complete, 20, "offload is on")
        assert speak_outside(host, after) == [0, 0, 0]
        for flow in after:
            flow.stands()
