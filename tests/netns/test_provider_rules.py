# SPDX-License-Identifier: GPL-2.0-or-later
"""What the rules of a provider let through, with packets: spoofed, from outside, invalid, errors, users' own."""

from __future__ import annotations

import socket
import struct
from functools import partial
from ipaddress import ip_address

import pytest

from tests.support.eventually import eventually
from tests.support.packets.ports import ICMP, ICMP6, MARK, UDP, Port, packet_of, udp
from tests.support.packets.wire import sum_of
from tests.support.qubes.provider import (
    ENTRIES,
    ENTRIES6,
    GATEWAY,
    GATEWAY6,
    HALTED,
    HALTED6,
    OWN,
    OWN6,
    ROUTER,
    ROUTER6,
    WORLD,
    WORLD6,
    Provider,
)

ANYBODY, ANYBODY6 = "10.137.0.77", "fd09:24ef:4179::dead"
TCP = 6
# What users' rules count: a packet that hits them got past anti-spoofing.
# Of the qubes alone: on the uplink the kernel itself looks for routers.
COUNT = "".join(
    f"add rule {family} qubes custom-{hook} iifgroup 2 counter; "
    for family in ("ip", "ip6")
    for hook in ("input", "forward")
)


def counted(host: Provider) -> dict[str, int]:
    """Packets that each users' chain has counted."""
    found = {}
    for family in ("ip", "ip6"):
        for chain in ("custom-input", "custom-forward"):
            listed = host.oracle.run("nft", "list", "chain", family, "qubes", chain).stdout
            found[f"{family} {chain}"] = int(listed.partition("counter packets ")[2].split()[0])
    return found


def order(port: Port, source: str, target: str, until: Port, word: str = "last") -> None:
    """One more packet, that passes; when it has come, all before it have come or never will."""
    port.send(source, target, word)
    assert until.hears(lambda packet: packet.word == word)


@pytest.mark.behaviour("B51")
def test_a_spoofed_packet_never_gets_as_far_as_users_rules() -> None:
    host = Provider(ENTRIES6)
    first, second = host.attach(4), host.attach(5)
    outside = host.outside()
    assert (host.link(first.vif)["group"], host.elements("allowed")) == (
        "2",
        {"vif4.0 10.137.0.4", "vif5.0 10.137.0.5"},
    )
    host.nft(COUNT)
    for source in (ANYBODY, second.ip, OWN, GATEWAY, WORLD, "0.0.0.0", "127.0.0.1", "255.255.255.255"):
        for target in (WORLD, second.ip, GATEWAY, OWN):
            first.port.send(source, target, "spoofed")
    for source in (ANYBODY6, second.ip6, OWN6, GATEWAY6, WORLD6, "::", "fe80::1", "::1"):
        for target in (WORLD6, second.ip6, GATEWAY6, OWN6):
            first.port.send(source, target, "spoofed")
    # Neighbour discovery with a foreign address: no host may accept it.
    advert = struct.pack("!BBHI", 136, 0, 0, 0x20000000) + bytes.fromhex("fe800000000000000000000000000005")
    first.port.send_packet(packet_of(second.ip6, GATEWAY6, advert, 58))
    order(first.port, first.ip, WORLD, outside)
    order(first.port, first.ip6, WORLD6, outside, "last6")
    assert outside.words() == {"last", "last6"}
    assert second.port.words() == set()
    assert counted(host) == {
        "ip custom-input": 0, "ip custom-forward": 1, "ip6 custom-input": 0, "ip6 custom-forward": 1,
    }  # fmt: skip
    assert host.drops("antispoof") == 32
    assert host.oracle.neighbours(second.vif)[second.ip6] == second.mac


@pytest.mark.behaviour("B51")
def test_a_vif_without_an_ipv6_address_and_one_without_any() -> None:
    host = Provider(ENTRIES6)
    without6, without = host.attach(4, "10.137.0.4"), host.plug(5)
    without.addresses = ()
    host.describe(without)
    host.online(without)
    host.nft(COUNT)
    outside = host.outside()
    for behind in (without6, without):
        for source in (f"fd09:24ef:4179::a89:{behind.number}", "fe80::1", "::"):
            behind.port.send(source, WORLD6, "ipv6")
            behind.port.send(source, GATEWAY6, "ipv6")
    without.port.send("10.137.0.5", WORLD, "without")
    without.port.send("10.137.0.4", WORLD, "without")
    order(without6.port, without6.ip, WORLD, outside)
    assert outside.words() == {"last"}
    assert counted(host)["ip6 custom-forward"] == counted(host)["ip6 custom-input"] == 0


def spoken(host: Provider, family: int, word: str, source: str | None, target: str) -> bool:
    """Whether the provider's own kernel lets it say something from an address."""
    with host.qube.socket(family, socket.SOCK_DGRAM) as speaker:
        if source is not None:
            speaker.bind((source, 7))
        try:
            speaker.sendto(MARK + word.encode(), (target, 9))
        except PermissionError:
            return False
        return True


@pytest.mark.behaviour("B52")
@pytest.mark.parametrize("version", [4, 6])
def test_nobody_outside_speaks_as_a_qube_or_to_one(version: int) -> None:
    """QSB-056, for a qube that runs and for one that is halted, in and out."""
    host = Provider(ENTRIES6)
    behind, outside, inside = host.attach(), host.outside(), host.inside(version)
    own, halted, provider, world, family = (
        (behind.ip, HALTED, OWN, WORLD, "ip") if version == 4 else (behind.ip6, HALTED6, OWN6, WORLD6, "ip6")
    )
    # Whatever users' rules or an open port let in: these packets do not get so far.
    host.nft(f"add rule {family} qubes custom-input accept; add rule {family} qubes custom-forward accept")
    for address in (own, halted):
        outside.send(address, provider, "in, as a qube")
        outside.send(world, address, "in, for a qube")
    outside.send(world, provider, "in")
    assert inside.hears(lambda packet: packet.word == "in")
    assert inside.words() == {"in"}
    # Out: from the provider itself, as a VPN client would leak them, and with a qube's address.
    speaks = partial(spoken, host, socket.AF_INET if version == 4 else socket.AF_INET6)
    for address, device in ((own, behind.vif), (halted, "lo")):
        host.qube.wire(f"ip address add {address} dev {device}{' nodad' * (version == 6)}")
        # Where another program keeps it from being translated.
        host.nft(f"insert rule {family} qubes postrouting {family} saddr {address} accept")
        assert not speaks("out, as a qube", address, world)
        host.qube.wire(f"ip address delete {address} dev {device}")
    assert not speaks("out, to a halted qube", None, halted)
    assert speaks("last", None, world)
    assert outside.hears(lambda packet: packet.word == "last")
    assert outside.words() == {"last"}
    assert behind.port.words() == set()


@pytest.mark.behaviour("B52")
def test_the_list_of_connected_qubes_follows_in_one_transaction_whatever_it_is() -> None:
    host = Provider({key: value for key, value in ENTRIES.items() if key != "/connected-ips"})
    assert host.elements("downstream") == set()
    monitor = host.qube.spawn("monitor", "nft", "monitor", own_processes=False)

    def changes() -> int:
        return monitor.output().count("# new generation")

    def listening() -> bool:
        host.nft("add table ip probe; delete table ip probe")
        return changes() > 0

    eventually(listening)
    for text, wanted in (
        (HALTED, {HALTED}),
        (f"10.137.0.98  {HALTED} 10.137.0.97", {HALTED, "10.137.0.98", "10.137.0.97"}),
        ("10.137.0.96 10.137.0.97", {"10.137.0.96", "10.137.0.97"}),
        ("", set()),
        (HALTED, {HALTED}),
    ):
        host.nft("add table ip probe; delete table ip probe")
        before = eventually(changes)
        host.write("/connected-ips", text)
        eventually(lambda wanted=wanted: host.elements("downstream") == wanted, trouble=host.trouble)
        eventually(lambda before=before: changes() > before)
        assert changes() == before + 1
    # A word that is no address: the good ones count, and those in force stay.
    host.write("/connected-ips", f"nonsense 10.137.0.95 {HALTED}; reboot")
    eventually(lambda: "10.137.0.95" in host.elements("downstream"), trouble=host.trouble)
    assert HALTED in host.elements("downstream")
    host.remove("/connected-ips")
    eventually(lambda: host.elements("downstream") == set(), trouble=host.trouble)


def tcp(source: str, target: str, flags: int) -> bytes:
    """A segment of an unknown connection."""
    body = struct.pack("!HHIIBBHHH", 1024, 9, 1, 1, 5 << 4, flags, 1000, 0, 0) + MARK + b"invalid"
    return packet_of(source, target, body, TCP)


@pytest.mark.behaviour("B86")
@pytest.mark.parametrize("version", [4, 6])
def test_an_invalid_packet_is_not_forwarded_untranslated(version: int) -> None:
    host = Provider(ENTRIES6)
    behind, outside = host.attach(), host.outside()
    own, world = (behind.ip, WORLD) if version == 4 else (behind.ip6, WORLD6)
    family = "ip" if version == 4 else "ip6"
    host.nft(f"add rule {family} qubes custom-forward accept; add rule {family} qubes custom-input accept")
    for flags in (0x12, 0x14, 0x3F, 0x00):  # SYN and ACK, RST and ACK, all, none: with a wrong checksum at that
        behind.port.send_packet(tcp(own, world, flags))
    order(behind.port, own, world, outside)
    assert {packet.word for packet in outside.heard()} == {"last"}
    assert {packet.source for packet in outside.heard()} == {OWN if version == 4 else OWN6}
    assert host.drops("forward", family) == 4


@pytest.mark.behaviour("B52")
def test_connected_qubes_are_protected_before_any_agent_and_any_vif() -> None:
    host = Provider(ENTRIES6, agent=False)
    assert (host.elements("downstream"), host.elements("downstream", "ip6")) == ({HALTED}, {HALTED6})
    for version, source, target in ((4, HALTED, OWN), (6, HALTED6, OWN6)):
        host.outside().send(source, target, "as a halted qube")
        family = "ip" if version == 4 else "ip6"
        eventually(lambda family=family: host.drops("prerouting", family) == 1)
    host.nft("flush set ip qubes downstream; add element ip qubes downstream { 10.137.0.90 }")
    host.qube.guestnet("rules", "load")
    assert host.elements("downstream") == {HALTED}
    host.write("/connected-ips", "10.137.0.97")
    behind = host.attach()
    assert host.elements("downstream") == {"10.137.0.97", behind.ip}
    host.nft("delete table ip qubes")
    other = host.attach(5)
    assert host.elements("downstream") == {"10.137.0.97", behind.ip, other.ip}


def too_big(source: str, target: str, about: bytes) -> bytes:
    """A router's word that a packet is too big, with a right checksum."""
    if about[0] >> 4 == 4:
        body, pseudo, protocol = struct.pack("!BBHI", 3, 4, 0, 1300) + about[:64], b"", ICMP
    else:
        body, protocol = struct.pack("!BBHI", 2, 0, 0, 1300) + about[:96], ICMP6
        addresses = ip_address(source).packed + ip_address(target).packed
        pseudo = addresses + struct.pack("!II", len(body), protocol)
    return packet_of(source, target, body[:2] + struct.pack("!H", sum_of(pseudo + body)) + body[4:], protocol)


@pytest.mark.behaviour("B84")
@pytest.mark.parametrize("version", [4, 6])
def test_a_router_says_that_a_packet_is_too_big_and_the_qube_hears_it(version: int) -> None:
    host = Provider(ENTRIES6)
    behind, outside = host.attach(), host.outside()
    qube, provider, router, world = (
        (behind.ip, OWN, ROUTER, WORLD) if version == 4 else (behind.ip6, OWN6, ROUTER6, WORLD6)
    )
    behind.port.send(qube, world, "big")
    assert outside.hears(lambda packet: packet.word == "big")
    sent = next(packet for packet in outside.packets if MARK + b"big" in packet)
    # One about a packet that the qube never sent is none.
    stranger = packet_of(provider, world, udp(provider, world, 5, 5, MARK + b"stranger"), UDP)
    outside.send_packet(too_big(router, provider, stranger))
    outside.send_packet(too_big(router, qube, stranger))
    outside.send_packet(too_big(router, provider, sent))
    protocol = ICMP if version == 4 else ICMP6
    assert behind.port.hears(lambda packet: (packet.source, packet.protocol) == (router, protocol))
    assert {packet.word for packet in behind.port.heard()} == {"big"}


def test_a_qube_has_no_port_of_the_provider_and_is_told_so_at_once() -> None:
    host = Provider(ENTRIES6)
    behind = host.attach()
    for version, target, refusal in ((4, GATEWAY, (3, 13)), (6, GATEWAY6, (1, 1))):
        inside = host.inside(version)
        behind.port.forget()
        behind.port.send(behind.ip if version == 4 else behind.ip6, target, "to a port")
        assert behind.port.hears(lambda packet: packet.word == "to a port"), "an error quotes it"
        (answer,) = [packet for packet in behind.port.packets if MARK in packet]
        header = 20 if version == 4 else 40
        assert (answer[header], answer[header + 1]) == refusal
        assert inside.heard() == []
        assert behind.qube.run("ping", "-n", "-c", "1", "-W", "2", target).returncode == 0
