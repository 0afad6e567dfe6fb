# SPDX-License-Identifier: GPL-2.0-or-later
"""Fake addresses with real packets: what the qube sees, what the world sees, and nothing of the one at the other."""

from __future__ import annotations

import errno
import json
import socket
import sys
from collections.abc import Callable

import pytest

from qubes_guestnet.lab.probes import ping
from tests.support.eventually import eventually
from tests.support.packets.wire import faults
from tests.support.qubes.fake_address import (
    BACKEND_MAC,
    FAKE_GATEWAY,
    FAR_MTU,
    GATEWAY,
    IP_MTU_DISCOVER,
    IP_OPTIONS,
    MAC,
    PROVIDER,
    REAL,
    VIF,
    VISIBLE,
    WORLD,
    Tree,
)


def made(gateway: str | None = FAKE_GATEWAY) -> Tree:
    tree = Tree(gateway)
    tree.build()
    tree.attach()
    return tree


def watch(tree: Tree) -> Callable[[], None]:
    """From now on; the function asserts that neither side has seen an address of the other."""
    inside, outside = tree.wire(tree.qube, "eth0"), tree.wire(tree.provider, VIF)

    def judge() -> None:
        assert inside.frames()
        hidden = [REAL, PROVIDER, "192.0.0.8", *([GATEWAY] if tree.gateway else [])]
        assert {address: inside.mentions(address) for address in hidden} == {address: [] for address in hidden}
        assert outside.frames()
        hidden = [VISIBLE, "192.0.0.8", *([FAKE_GATEWAY] if tree.gateway else [])]
        assert {address: outside.mentions(address) for address in hidden} == {address: [] for address in hidden}

    return judge


both_kinds = pytest.mark.parametrize(
    "gateway",
    [
        pytest.param(FAKE_GATEWAY, id="fake gateway", marks=pytest.mark.scenario("S-200")),
        pytest.param(None, id="real gateway", marks=pytest.mark.scenario("S-201")),
    ],
)


@pytest.mark.behaviour("B60")
@both_kinds
def test_packets_pass_both_ways_and_show_no_address_of_the_other_side(gateway: str | None) -> None:
    tree = made(gateway)
    judge = watch(tree)
    assert ping(tree.qube, WORLD) is not None
    assert ping(tree.qube, tree.shown) is not None
    assert ping(tree.world, REAL) is not None
    assert ping(tree.provider, REAL) is not None
    server, client = tree.socket(tree.world, address=(WORLD, 53)), tree.socket(tree.qube)
    client.sendto(b"question", (WORLD, 53))
    data, sender = server.recvfrom(100)
    assert (data, sender[0]) == (b"question", REAL)
    server.sendto(b"answer", sender)
    assert client.recvfrom(100) == (b"answer", (WORLD, 53))
    with tree.socket(tree.qube, socket.SOCK_STREAM, (VISIBLE, 22)) as listener:
        listener.listen()
        with tree.socket(tree.world, socket.SOCK_STREAM) as caller:
            caller.connect((REAL, 22))
            answering, peer = listener.accept()
            with answering:
                assert peer[0] == WORLD
                answering.sendall(b"welcome")
                assert caller.recv(100) == b"welcome"
    judge()


@pytest.mark.behaviour("B60")
@both_kinds
def test_errors_reach_who_they_are_for_and_show_nothing_either(gateway: str | None) -> None:
    tree = made(gateway)
    wires = [tree.wire(tree.qube, "eth0"), tree.wire(tree.provider, VIF), tree.wire(tree.world, "eth0")]
    judge = watch(tree)
    # Port unreachable, of the far host, of the provider, and of the qube to both.
    assert tree.error(tree.qube, WORLD) == errno.ECONNREFUSED
    assert tree.error(tree.qube, tree.shown) == errno.ECONNREFUSED
    assert tree.error(tree.world, REAL) == errno.ECONNREFUSED
    assert tree.error(tree.provider, REAL) == errno.ECONNREFUSED
    # Time exceeded: in the namespace, in the provider, and in the namespace on the way to the qube.
    assert tree.error(tree.qube, WORLD, IP_TTL=1) == errno.EHOSTUNREACH
    assert tree.error(tree.qube, WORLD, IP_TTL=2) == errno.EHOSTUNREACH
    assert tree.error(tree.qube, tree.shown, IP_TTL=1) == errno.EHOSTUNREACH
    assert tree.error(tree.world, REAL, IP_TTL=2) == errno.EHOSTUNREACH
    assert tree.error(tree.provider, REAL, IP_TTL=1) == errno.EHOSTUNREACH
    judge()
    errors = [packet for wire in wires for packet in wire.received() if packet[9] == socket.IPPROTO_ICMP]
    assert len(errors) >= 9
    assert [faults(packet) for packet in errors] == [[]] * len(errors)


def transfer(tree: Tree) -> None:
    """Send something to the world's echo server, and get it back."""
    data = bytes(range(256)) * 256
    with tree.socket(tree.qube, socket.SOCK_STREAM) as client:
        client.connect((WORLD, 7))
        for _ in range(4):
            client.sendall(data)
            answer = b""
            while len(answer) < len(data):
                answer += client.recv(65536)
            assert answer == data


def serve(tree: Tree) -> None:
    tree.world.spawn("echo", sys.executable, "-m", "qubes_guestnet.lab.echo", "7")
    eventually(lambda: ":7" in tree.world.run("ss", "-Hltn").stdout, what="the echo server listens")


@pytest.mark.behaviour("B60")
@both_kinds
def test_a_transfer_learns_of_a_narrow_link(gateway: str | None) -> None:
    tree = made(gateway)
    serve(tree)
    judge = watch(tree)
    transfer(tree)
    (route,) = tree.qube.ip("route", "get", WORLD)
    assert [metrics["mtu"] for metrics in route["metrics"]] == [FAR_MTU]
    judge()


@pytest.mark.behaviour("B60")
@pytest.mark.parametrize("whole", ["sender", "last hop"])
def test_checksums_are_right_whoever_computes_them(whole: str) -> None:
    """A vif hands over packets without a checksum (offload), and what is rewritten then must not be counted twice."""
    tree = made()
    serve(tree)
    if whole == "sender":
        tree.qube.run("ethtool", "-K", "eth0", "tx", "off")
        tree.world.run("ethtool", "-K", "eth0", "tx", "off")
    else:
        tree.between("ethtool", "-K", VIF, "tx", "off")
        tree.provider.run("ethtool", "-K", "out", "tx", "off")
    inside, outside = tree.wire(tree.qube, "eth0"), tree.wire(tree.world, "eth0")
    transfer(tree)
    server, client = tree.socket(tree.world, address=(WORLD, 53)), tree.socket(tree.qube)
    for size in (1, 40, 1201):
        client.sendto(b"q" * size, (WORLD, 53))
        data, sender = server.recvfrom(2000)
        assert len(data) == size
        server.sendto(b"a" * size, sender)
        assert len(client.recv(2000)) == size
    for packets in (inside.received(), outside.received()):
        assert {packet[9] for packet in packets} >= {socket.IPPROTO_TCP, socket.IPPROTO_UDP}
        assert [found for found in map(faults, packets) if found] == []


def test_a_large_datagram_arrives_in_its_fragments() -> None:
    tree = made()
    judge = watch(tree)
    server, client = tree.socket(tree.world, address=(WORLD, 53)), tree.socket(tree.qube)
    client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, 0)
    data = bytes(range(256)) * 16
    client.sendto(data, (WORLD, 53))
    assert server.recvfrom(65536)[0] == data
    server.sendto(data, (REAL, client.getsockname()[1]))
    assert client.recvfrom(65536)[0] == data
    judge()


def test_what_could_tell_an_address_is_dropped() -> None:
    tree = made()
    inside, outside = tree.wire(tree.qube, "eth0"), tree.wire(tree.provider, VIF)
    tree.qube.wire(f"ip address add {REAL}/32 dev eth0; ip address add 10.9.9.9/32 dev eth0")
    for source, target in ((REAL, WORLD), ("10.9.9.9", WORLD), (VISIBLE, GATEWAY)):
        tree.socket(tree.qube, address=(source, 0)).sendto(b"spoofed", (target, 9))
    recorder = tree.socket(tree.qube, address=(VISIBLE, 0))
    recorder.setsockopt(socket.IPPROTO_IP, IP_OPTIONS, b"\x07\x0b\x04" + bytes(9))
    recorder.sendto(b"spoofed", (WORLD, 9))
    # A host outside that has the address that the qube believes to be its gateway's or its own.
    tree.provider.wire(f"ip address add {FAKE_GATEWAY}/32 dev lo; ip address add {VISIBLE}/32 dev lo")
    for source in (FAKE_GATEWAY, VISIBLE):
        tree.socket(tree.provider, address=(source, 0)).sendto(b"spoofed", (REAL, 9))
    sent = [packet for packet in outside.frames() if b"spoofed" in packet]
    assert len(sent) == 2
    assert ping(tree.qube, WORLD) is not None  # in order, so all of it has had its time
    assert [packet for packet in inside.received() if b"spoofed" in packet] == []
    assert [packet for packet in outside.received() if b"spoofed" in packet] == []
    drops = [
        rule["counter"]["packets"]
        for entry in json.loads(tree.between("nft", "-j", "list", "ruleset"))["nftables"]
        for rule in entry.get("rule", {}).get("expr", ())
        if "counter" in rule
    ]
    assert sum(drops) == 6


@pytest.mark.behaviour("B60", "B30")
def test_what_there_is() -> None:
    tree = Tree()
    tree.provider.wire(f"ip link set {VIF} mtu 1400")
    tree.build()
    (vif,) = tree.provider.ip("link", "show", VIF)
    assert (vif["address"], vif["mtu"], "UP" in vif["flags"]) == (BACKEND_MAC, 1400, False)
    tree.attach()
    eventually(tree.works)
    links = {link["ifname"]: link for link in json.loads(tree.between("ip", "-json", "address"))}
    assert set(links) == {"lo", VIF, "provider"}
    assert (links["provider"]["address"], links["provider"]["mtu"]) == (MAC, 1400)
    assert links[VIF]["address"] == BACKEND_MAC
    assert [entry for link in links.values() for entry in link["addr_info"] if entry["family"] == "inet6"] == []
    settings = (("conf", "proxy_arp", "1"), ("neigh", "proxy_delay", "0"))
    for folder, setting, value in settings:
        assert tree.between("cat", f"/proc/sys/net/ipv4/{folder}/{VIF}/{setting}").strip() == value
    assert tree.between("cat", "/proc/sys/net/netfilter/nf_conntrack_count").strip() == "0"


def test_the_qube_is_asked_nothing_and_its_every_question_is_answered_at_once() -> None:
    tree = made()
    wire = tree.wire(tree.qube, "eth0")
    tree.qube.wire("ip route replace default dev eth0")
    assert ping(tree.qube, WORLD) is not None
    assert ping(tree.world, REAL) is not None
    questions = [frame for frame in wire.frames() if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1"]
    assert questions
    assert {frame[6:12].hex(":") for frame in questions} == {MAC}


HALVES = {
    "nothing": "",
    "a file": "mkdir -p /run/netns; touch /run/netns/vif4-nat",
    "empty": "ip netns add vif4-nat",
    "moved": "ip netns add vif4-nat; ip link set vif4.0 netns vif4-nat",
    "joined": """ip netns add vif4-nat; ip link set vif4.0 netns vif4-nat
        ip link add vif4.0 address fe:ff:ff:ff:ff:ff type veth \
            peer name provider address 00:16:3e:5e:6c:04 netns vif4-nat""",
}


@pytest.mark.behaviour("B60")
@pytest.mark.parametrize("half", HALVES)
def test_half_made_ones_are_made_whole_and_whole_ones_stay(half: str) -> None:
    tree = Tree()
    tree.provider.run("sh", "-ec", HALVES[half])
    tree.build()
    tree.attach()
    eventually(tree.works)
    before = tree.state()
    tree.build()
    assert tree.works()
    assert tree.state() == before


@pytest.mark.behaviour("B60")
@pytest.mark.parametrize("half", HALVES)
def test_demolished_from_every_state(half: str) -> None:
    tree = Tree()
    tree.provider.run("sh", "-ec", HALVES[half])
    tree.demolish()
    assert tree.provider.run("sh", "-c", "ls /run/netns 2>/dev/null", check=False).stdout == ""
    (vif,) = tree.provider.ip("link", "show", VIF)
    assert vif["address"] == BACKEND_MAC
    tree.build()
    tree.attach()
    eventually(tree.works)


def test_another_mapping_replaces_the_first() -> None:
    tree = made()
    tree.build("192.168.1.77")
    assert "192.168.1.128" not in tree.state()
    assert not tree.works()
    tree.qube.wire("ip address add 192.168.1.77/24 dev eth0; ip address del 192.168.1.128/24 dev eth0")
    tree.qube.wire(f"ip address replace 192.168.1.77/24 dev eth0; ip route replace default via {tree.shown} dev eth0")
    assert tree.works()


@pytest.mark.behaviour("B60")
def test_a_vif_that_is_gone() -> None:
    tree = made()
    tree.between("ip", "link", "delete", VIF)
    complaint = tree.build(check=False)
    assert "vif4.0" in complaint
    assert tree.provider.run("ip", "link", "show", VIF, check=False).returncode  # the name is free for the next one
    tree.plug()
    tree.build()
    tree.attach()
    eventually(tree.works)
    tree.between("ip", "link", "delete", VIF)
    tree.demolish()
    tree.demolish()
    assert tree.provider.run("ip", "link", "show", VIF, check=False).returncode
    assert tree.provider.run("ls", "/run/netns").stdout == ""
