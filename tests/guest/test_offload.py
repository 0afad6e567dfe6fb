# SPDX-License-Identifier: GPL-2.0-or-later
"""Which connections are offloaded, and that only their two ends gain by it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from tests.support.eventually import eventually
from tests.support.packets.flows import ENOUGH, TCP, UDP, Offload, carry, flowing, visitor
from tests.support.packets.ports import Port
from tests.support.qubes.provider import DNS, LAN, OWN, ROUTER, UPLINK, VIF_MAC, WORLD, WORLD6, Client, Provider

TARGETS = {4: WORLD, 6: WORLD6}
SIZE = 3 << 20
# Of the largest pieces TCP hands over there are 16 to the megabyte, and as many answers.
PIECES = SIZE >> 16
SMALLER, TOO_BIG = 1300, 1400


@pytest.mark.behaviour("B62")
@pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])
@pytest.mark.parametrize("version", [4, 6])
def test_a_connection_is_offloaded(
    host: Provider, behind: Client, offload: Offload, version: int, kind: socket.SocketKind
) -> None:
    with flowing(behind.qube, host.world, TARGETS[version], kind) as flow:
        offload.takes(flow)
        assert flow.trouble == ""


@pytest.mark.behaviour("B62")
@pytest.mark.parametrize("version", [4, 6])
def test_what_arrives_is_what_was_sent(host: Provider, behind: Client, offload: Offload, version: int) -> None:
    before = offload.slow(version)
    carry(behind.qube, host.world, TARGETS[version], SIZE)
    assert offload.slow(version) - before < PIECES, "IP has forwarded it itself"


@pytest.mark.behaviour("B62")
@pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])
@pytest.mark.parametrize(("target", "at"), [(WORLD, WORLD), (DNS, ROUTER)], ids=["direct", "virtual"])
def test_questions_for_names_never_are(
    host: Provider, behind: Client, offload: Offload, target: str, at: str, kind: socket.SocketKind
) -> None:
    with flowing(behind.qube, host.world, target, kind, 53, at) as flow:
        offload.leaves(flow)
        assert offload.entries(flow) != []
        assert not offload.marked(flow)


@contextlib.contextmanager
def smaller_mtu(host: Provider) -> Iterator[None]:
    """The way to the world takes less than the vifs do, while the block lasts."""
    ends = ((host.world, LAN), (host.qube, UPLINK))
    for qube, name in ends:
        qube.wire(f"ip link set {name} mtu {SMALLER}")
    try:
        yield
    finally:
        for qube, name in ends:
            qube.wire(f"ip link set {name} mtu 1500")


@pytest.mark.behaviour("B62")
@pytest.mark.parametrize("version", [4, 6])
def test_what_does_not_fit_is_not_lost(host: Provider, behind: Client, offload: Offload, version: int) -> None:
    with smaller_mtu(host):
        carry(behind.qube, host.world, TARGETS[version], SIZE >> 3)


@pytest.mark.behaviour("B62")
@pytest.mark.parametrize("version", [4, 6])
def test_a_smaller_mtu_is_told_in_mid_connection(
    host: Provider, behind: Client, offload: Offload, version: int
) -> None:
    """A single datagram, that no offload of the machine's could cut up unasked."""
    with flowing(behind.qube, host.world, TARGETS[version], UDP) as flow:
        offload.takes(flow)
        with smaller_mtu(host):

            def arrives() -> bool:
                with contextlib.suppress(OSError):  # told of the MTU
                    flow.near.socket.send(bytes(TOO_BIG))
                return bytes(TOO_BIG) in flow.far.others

            eventually(arrives, 20, "in pieces", lambda: f"{flow}\n{host.trouble()}")


@pytest.mark.behaviour("B62", "B63")
def test_another_qube_with_all_its_numbers_gets_nothing_through(
    host: Provider, behind: Client, offload: Offload
) -> None:
    with visitor(host, 5) as thief, flowing(behind.qube, host.world, WORLD, UDP) as flow:
        outside = host.outside()
        eventually(offload.complete, 20, "offload is on")
        offload.takes(flow)
        thief.port.send(behind.ip, WORLD, "stolen", sport=flow.near_port, dport=flow.port, times=5)
        # The same from the right one: so it is for the interface that the others are not let through.
        behind.port.send(behind.ip, WORLD, "own", sport=flow.near_port, dport=flow.port)
        assert outside.hears(lambda packet: packet.word == "own" and packet.source == OWN)
        flow.stays(ENOUGH)
        assert "stolen" not in outside.words()
        assert offload.marked(flow)


@pytest.mark.behaviour("B62", "B63")
def test_from_outside_only_what_is_for_the_translated_address(host: Provider, behind: Client, offload: Offload) -> None:
    outside = host.outside()
    port = Port(behind.qube, "eth0", VIF_MAC)
    with flowing(behind.qube, host.world, WORLD, UDP) as flow:
        offload.takes(flow)
        outside.send(WORLD, behind.ip, "direct", sport=flow.port, dport=flow.near_port, times=5)
        outside.send("198.51.100.8", OWN, "another", sport=flow.port, dport=flow.near_port, times=5)
        outside.send(WORLD, OWN, "answer", sport=flow.port, dport=flow.near_port)
        assert port.hears(lambda packet: packet.word == "answer" and packet.target == behind.ip)
        flow.stays(ENOUGH)
        assert port.words() & {"direct", "another"} == set()
        assert offload.marked(flow)
