# SPDX-License-Identifier: GPL-2.0-or-later
"""What a qube behind a provider can do to the others and to the provider: nothing."""

from __future__ import annotations

import socket
from typing import NamedTuple

import pytest

from tests.support.packets import icmp
from tests.support.packets.ports import MARK, UDP, Packet, Port, packet_of, udp
from tests.support.qubes.provider import (
    ENTRIES6,
    GATEWAY,
    GATEWAY6,
    OWN,
    OWN6,
    VIF_MAC,
    WORLD,
    WORLD6,
    Client,
    Provider,
)

SERVER = 9  # where the world keeps silent
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
WORDS = {4: "ip", 6: "ip6"}


class Stage(NamedTuple):
    """A hostile qube, its neighbour, and the world; each has a connection to the same server."""

    host: Provider
    evil: Client
    other: Client
    outside: Port
    version: int

    @property
    def own(self) -> str:
        """The provider's address outside."""
        return OWN if self.version == 4 else OWN6

    @property
    def world(self) -> str:
        """The server's."""
        return WORLD if self.version == 4 else WORLD6

    def of(self, behind: Client) -> str:
        """A qube's."""
        return behind.ip if self.version == 4 else behind.ip6

    def sent(self, port: int, word: str) -> bytes:
        """A packet of a connection, as it is outside."""
        return packet_of(self.own, self.world, udp(self.own, self.world, port, SERVER, MARK + word.encode()), UDP)

    def answer(self, target: str, port: int, word: str) -> bytes:
        """A packet of the server's."""
        return packet_of(self.world, target, udp(self.world, target, SERVER, port, MARK + word.encode()), UDP)

    def hears(self, port: Port, word: str) -> bool:
        """Whether this word gets there."""
        return port.hears(lambda packet: packet.word == word)


def staged(version: int) -> Stage:
    """Connections from port 5000 (the neighbour) and 5001 (the hostile qube), both answered."""
    host = Provider(ENTRIES6)
    stage = Stage(host, host.attach(4), host.attach(5), host.outside(), version)
    for behind, port in ((stage.other, 5000), (stage.evil, 5001)):
        behind.port.send(stage.of(behind), stage.world, f"flow {port}", sport=port, dport=SERVER)
        assert stage.hears(stage.outside, f"flow {port}")
        stage.outside.send_packet(stage.answer(stage.own, port, f"answer {port}"))
        assert stage.hears(behind.port, f"answer {port}")
    return stage


@pytest.mark.behaviour("B113")
@pytest.mark.behaviour("B84")
@pytest.mark.parametrize("version", [4, 6])
def test_an_error_counts_for_the_connections_of_who_sends_it_alone(version: int) -> None:
    stage = staged(version)
    # Whatever users let in: these do not get so far.
    for chain in ("custom-input", "custom-forward"):
        stage.host.nft(f"add rule {WORDS[version]} qubes {chain} ct state related accept")
    evil, other, outside, own, world = stage.evil, stage.other, stage.outside, stage.own, stage.world
    for kind, what in icmp.ERRORS[version].items():
        # Of the neighbour's connection, as it was sent, and as its server answers.
        evil.port.send_packet(icmp.error(stage.of(evil), own, what, stage.sent(5000, f"{kind}: to the neighbour")))
        evil.port.send_packet(
            icmp.error(stage.of(evil), world, what, stage.answer(own, 5000, f"{kind}: to its server"))
        )
        # The right ones: the server about the neighbour's packet, and each qube about what it was answered.
        outside.send_packet(icmp.error(world, own, what, stage.sent(5000, f"{kind}: right")))
        assert stage.hears(other.port, f"{kind}: right")
        for behind, port in ((evil, 5001), (other, 5000)):
            about = stage.answer(stage.of(behind), port, f"{kind}: of {port}")
            behind.port.send_packet(icmp.error(stage.of(behind), world, what, about))
            assert stage.hears(outside, f"{kind}: of {port}")
    wrong = [packet.word for port in (other.port, outside) for packet in port.heard() if ": to " in packet.word]
    assert wrong == []
    assert stage.host.drops("forward", WORDS[version]) == 2 * len(icmp.ERRORS[version])


@pytest.mark.behaviour("B113")
@pytest.mark.parametrize("version", [4, 6])
def test_connections_between_two_qubes_are_those_of_both(version: int) -> None:
    stage = staged(version)
    host, evil, other, word = stage.host, stage.evil, stage.other, WORDS[version]
    third = host.attach(6)
    target, source = stage.of(other), stage.of(third)
    host.nft(f"add rule {word} qubes custom-forward iifname vif6.0 oifname vif5.0 accept")
    third.port.send(source, target, "asks", sport=700, dport=22)
    assert stage.hears(other.port, "asks")
    asked = packet_of(source, target, udp(source, target, 700, 22, MARK + b"quoted"), UDP)
    what = next(iter(icmp.ERRORS[version].values()))
    evil.port.send_packet(icmp.error(stage.of(evil), source, what, asked))
    # The one that was asked says that nothing listens there.
    other.port.send_packet(icmp.error(target, source, what, asked))
    assert third.port.hears(lambda packet: packet == Packet("quoted", target, source, 1 if version == 4 else 58))
    assert [packet.source for packet in third.port.heard() if packet.word == "quoted"] == [target]


@pytest.mark.behaviour("B113")
@pytest.mark.parametrize("version", [4, 6])
def test_no_qube_ends_or_slows_a_connection_of_the_provider_itself(version: int) -> None:
    stage = staged(version)
    host, evil, own, world = stage.host, stage.evil, stage.own, stage.world
    with host.qube.socket(FAMILIES[version], socket.SOCK_DGRAM) as speaker:
        speaker.bind((own, 5500))
        speaker.connect((world, SERVER))
        speaker.settimeout(2)
        speaker.send(MARK + b"own")
        assert stage.hears(stage.outside, "own")
        stage.outside.send_packet(stage.answer(own, 5500, "answer"))
        assert speaker.recv(100) == MARK + b"answer"
        for what in icmp.ERRORS[version].values():
            evil.port.send_packet(icmp.error(stage.of(evil), own, what, stage.sent(5500, "quoted")))
        assert host.drops("input", WORDS[version]) == len(icmp.ERRORS[version])
        assert speaker.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert "mtu" not in host.oracle.run("ip", "route", "get", world).stdout
        # The server's own word counts.
        what = icmp.ERRORS[version]["port unreachable"]
        stage.outside.send_packet(icmp.error(world, own, what, stage.sent(5500, "quoted")))
        with pytest.raises(ConnectionRefusedError):
            speaker.recv(100)


@pytest.mark.behaviour("B121")
@pytest.mark.parametrize("version", [4, 6])
def test_a_vif_without_its_group_is_no_part_of_the_outside(version: int) -> None:
    host = Provider(ENTRIES6)
    early, other, outside, word = host.plug(4), host.attach(5), host.outside(), WORDS[version]
    source, target, provider, world = (
        (early.ip, other.ip, GATEWAY, WORLD) if version == 4 else (early.ip6, other.ip6, GATEWAY6, WORLD6)
    )
    # Others bring it up, and give it all that would let a packet pass.
    host.qube.wire(f"""
        ip link set {early.vif} up
        ip -{version} route add {source} dev {early.vif}
        ip -{version} neighbour replace {source} lladdr {early.mac} dev {early.vif}
    """)
    for chain in ("custom-input", "custom-forward"):
        host.nft(f"add rule {word} qubes {chain} accept")
    assert host.link(early.vif)["group"] in ("0", "default")
    inside = host.inside(version)
    for address in (world, target, provider):
        early.port.send(source, address, "from the vif")
    other.port.send(other.ip if version == 4 else other.ip6, source, "to the vif")
    with host.qube.socket(FAMILIES[version], socket.SOCK_DGRAM) as speaker, pytest.raises(PermissionError):
        speaker.sendto(MARK + b"to the vif", (source, 9))
    other.port.send(other.ip if version == 4 else other.ip6, world, "last")
    assert outside.hears(lambda packet: packet.word == "last")
    assert outside.words() == {"last"}
    assert (early.port.words(), other.port.words(), inside.words()) == (set(), set(), set())
    # With its group and its place in the sets it is one like any other.
    host.online(early)
    assert host.works(early, outside, version)


@pytest.mark.behaviour("B114")
def test_what_a_qube_says_in_foreign_names_makes_no_neighbour_entry() -> None:
    host = Provider(ENTRIES6)
    evil, other = host.attach(4), host.attach(5)
    before = host.oracle.neighbours(evil.vif, permanent=False)

    def frame(kind: bytes, body: bytes) -> bytes:
        return bytes.fromhex(VIF_MAC.replace(":", "") + evil.mac.replace(":", "")) + kind + body

    for number in range(40):
        foreign, foreign6 = f"203.0.113.{number + 1}", f"fd77::{number + 1:x}"
        for target in (GATEWAY, WORLD, OWN, other.ip):
            for operation in (1, 2):
                evil.port.shoot(frame(b"\x08\x06", icmp.arp(operation, foreign, evil.mac, target)))
        for target6 in (GATEWAY6, WORLD6, OWN6, other.ip6):
            asks = icmp.solicited_neighbour(foreign6, target6, target6, evil.mac)
            says = icmp.advertised_neighbour(foreign6, target6, foreign6, evil.mac, solicited=False)
            link = icmp.solicited_neighbour(f"fe80::{number + 1:x}", target6, target6, evil.mac)
            own = icmp.advertised_neighbour(evil.ip6, target6, foreign6, evil.mac, solicited=False)
            for packet in (asks, says, link, own):
                evil.port.send_packet(packet)
    # The same in its own name is answered, for itself and for whatever is behind the provider.
    evil.port.shoot(frame(b"\x08\x06", icmp.arp(1, evil.ip, evil.mac, WORLD)))
    assert host.works(evil)
    assert host.works(evil, version=6)
    assert host.oracle.neighbours(evil.vif, permanent=False) == before
    assert host.oracle.neighbours(other.vif) == {other.ip: other.mac, other.ip6: other.mac}
