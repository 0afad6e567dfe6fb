# SPDX-License-Identifier: GPL-2.0-or-later
"""Forgetting the connections of an address: real traffic makes them, the program `conntrack` is the judge."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from qubes_guestnet.core.values import IPAddress
from qubes_guestnet.errors import KernelError
from qubes_guestnet.system import conntrack, procfs_sysctl
from qubes_guestnet.system.netlink import wire as netlink_wire
from qubes_guestnet.system.nft import kernel as nft_kernel
from qubes_guestnet.system.nft import program as nft
from tests.support.eventually import eventually
from tests.support.judge.oracle import Oracle

QUBE, OTHER, NEAR, FAR = (ipaddress.ip_address(f"10.137.0.{n}") for n in (4, 5, 40, 104))
QUBE6, OTHER6 = ipaddress.ip_address("fd09:24ef:4179::a89:4"), ipaddress.ip_address("fd09:24ef:4179::a89:5")
SERVER, SERVER6 = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("2001:db8::1")
LOCAL = (QUBE, OTHER, NEAR, FAR, QUBE6, OTHER6, SERVER, SERVER6)
# A table stays empty until a rule of its namespace needs it.
TRACKING = """
add table inet tracking
add chain inet tracking out { type filter hook output priority 0; }
add rule inet tracking out ct state invalid drop
"""

# The kernel drops entries of its own accord: after 30 s, on a loaded machine in the middle of a test.
TIMEOUTS = ("udp_timeout", "icmp_timeout", "icmpv6_timeout")
LONG_S = "3600"

Entry = tuple[str, frozenset[str]]


@pytest.fixture
def ground(oracle: Oracle) -> Oracle:
    for name in TIMEOUTS:
        Path(f"/proc/sys/net/netfilter/nf_conntrack_{name}").write_text(LONG_S)
    for address in LOCAL:
        oracle.run("ip", "address", "add", str(address), "dev", "lo", *(["nodad"] if address.version == 6 else []))
    eventually(lambda: local_routes(oracle) >= {str(address) for address in LOCAL}, what="every address can be sent to")
    nft.run(TRACKING)
    return oracle


def local_routes(oracle: Oracle) -> set[str]:
    """Addresses that are this machine's: the kernel makes the route of an IPv6 address some time after the address.

    What is sent before goes nowhere, without an error and without an entry.
    """
    found = set()
    for family in ("-4", "-6"):
        lines = oracle.run("ip", family, "route", "show", "table", "local", "type", "local").stdout.splitlines()
        found |= {word for line in lines for word in line.split()[:2]}
    return found


@pytest.fixture
def opened() -> Iterator[contextlib.ExitStack]:
    """Connections that stay open until the test ends."""
    with contextlib.ExitStack() as stack:
        yield stack


def table(oracle: Oracle) -> set[Entry]:
    """Every entry as its number and the addresses in it, as `conntrack` shows them."""
    found = set()
    for family in ("ipv4", "ipv6"):
        for line in oracle.run("conntrack", "-L", "-f", family, "-o", "id").stdout.splitlines():
            words = [word.partition("=") for word in line.split()]
            *_, number = [value for key, _, value in words if key == "id"]  # ICMP has one of its own before it
            found.add((number, frozenset(value for key, _, value in words if key in ("src", "dst"))))
    return found


def having(entries: set[Entry], *addresses: IPAddress) -> set[Entry]:
    return {entry for entry in entries if entry[1] & {str(address) for address in addresses}}


def udp(source: IPAddress, destination: IPAddress, count: int = 1, first: int = 5000) -> None:
    family = socket.AF_INET if source.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((str(source), 0))
        for port in range(first, first + count):
            sock.sendto(b"x", (str(destination), port))


def tcp(opened: contextlib.ExitStack, source: IPAddress, destination: IPAddress) -> None:
    """Open a connection.

    It stays open: no packet of it is under way any more, which could make a new entry after a purge, and the kernel
    keeps its entry for days. That of a connection which was reset it drops after 10 s.
    """
    with socket.create_server((str(destination), 0)) as listening:
        address = (str(destination), listening.getsockname()[1])
        opened.enter_context(socket.create_connection(address, timeout=60, source_address=(str(source), 0)))
        listening.settimeout(60)
        opened.enter_context(listening.accept()[0])


def traffic(oracle: Oracle, opened: contextlib.ExitStack) -> None:
    for one, another in ((QUBE, SERVER), (SERVER, QUBE), (OTHER, SERVER), (SERVER, OTHER), (QUBE, OTHER), (NEAR, FAR)):
        udp(one, another, 3)
    for one, another in ((QUBE6, SERVER6), (SERVER6, QUBE6), (OTHER6, SERVER6), (SERVER6, OTHER6)):
        udp(one, another, 3)
    for qube in (QUBE, OTHER):
        tcp(opened, qube, SERVER)
        oracle.run("ping", "-n", "-c", "1", "-I", str(qube), str(SERVER))
        oracle.run("ping", "-n", "-c", "1", "-I", str({QUBE: QUBE6, OTHER: OTHER6}[qube]), str(SERVER6))


@pytest.mark.behaviour("B53")
@pytest.mark.parametrize("addresses", [(QUBE,), (QUBE6,), (QUBE, QUBE6), (OTHER, QUBE6), LOCAL])
def test_exactly_the_entries_of_the_addresses_go(
    ground: Oracle, opened: contextlib.ExitStack, addresses: tuple[IPAddress, ...]
) -> None:
    traffic(ground, opened)
    before = table(ground)
    going = having(before, *addresses)
    assert len(going) >= 7
    assert len(before) >= 30
    assert conntrack.purge(addresses) == len(going)
    assert table(ground) == before - going
    assert conntrack.purge(addresses) == 0


def test_none_of_these(ground: Oracle, opened: contextlib.ExitStack) -> None:
    traffic(ground, opened)
    before = table(ground)
    assert conntrack.purge((ipaddress.ip_address("10.137.0.99"),)) == 0
    # Its four bytes occur in those of an IPv6 address, and so are no address.
    assert conntrack.purge((ipaddress.IPv4Address(QUBE6.packed[2:6]),)) == 0
    assert conntrack.purge(()) == 0
    assert table(ground) == before


@pytest.mark.behaviour("B53")
def test_an_address_that_occurs_in_the_reply_only(ground: Oracle) -> None:
    """A port that is forwarded to a qube: what the other side called is the address of the netvm."""
    nft.run(f"""
        add table ip nat
        add chain ip nat out {{ type nat hook output priority -100; }}
        add rule ip nat out ip daddr {SERVER} udp dport 7000 dnat to {QUBE}:7001
    """)
    udp(NEAR, SERVER, first=7000)
    udp(NEAR, SERVER, first=7002)
    before = table(ground)
    line = ground.run("conntrack", "-L", "--dst-nat").stdout
    assert f"dst={SERVER} sport" in line
    assert f"src={QUBE} " in line
    assert ground.run("conntrack", "-D", "-s", str(QUBE), check=False).returncode == 1  # why we do not use it
    assert conntrack.purge((QUBE,)) == 1
    assert table(ground) == before - having(before, QUBE)
    assert len(table(ground)) == 1


@pytest.mark.behaviour("B53")
def test_masqueraded_connections(ground: Oracle, opened: contextlib.ExitStack) -> None:
    """What leaves by the uplink comes back to the netvm's own address."""
    nft.run(f"""
        add table ip nat
        add chain ip nat post {{ type nat hook postrouting priority 100; }}
        add rule ip nat post ip daddr {SERVER} snat to {NEAR}
    """)
    for qube in (QUBE, OTHER):
        udp(qube, SERVER, 5)
        tcp(opened, qube, SERVER)
    before = table(ground)
    assert len(having(before, NEAR)) == 12
    assert conntrack.purge((QUBE,)) == 6
    assert table(ground) == before - having(before, QUBE)
    assert conntrack.purge((NEAR,)) == 6
    assert table(ground) == set()


def test_a_zone_of_its_own(ground: Oracle) -> None:
    nft.run(f"""
        add chain inet tracking raw {{ type filter hook output priority -300; }}
        add rule inet tracking raw ip saddr {QUBE} udp dport 5000 ct zone set 7
        add rule inet tracking raw ip saddr {QUBE} udp dport 5001 ct original zone set 8
    """)
    udp(QUBE, SERVER, 3)
    udp(OTHER, SERVER, 3)
    listed = ground.run("conntrack", "-L").stdout
    assert "zone=7" in listed
    assert "zone-orig=8" in listed
    before = table(ground)
    assert conntrack.purge((QUBE,)) == len(having(before, QUBE)) == 3
    assert table(ground) == having(before, OTHER)


def test_thousands(ground: Oracle) -> None:
    """More than one packet of the dump, and more answers than fit into the buffer of an unread socket."""
    udp(QUBE, SERVER, 3000)
    udp(OTHER, SERVER, 3000)
    before = table(ground)
    assert conntrack.purge((QUBE,)) == 3000
    assert table(ground) == having(before, OTHER)
    assert len(table(ground)) == 3000


# --- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", ["0", None])
def test_nothing_is_asked_where_there_is_nothing(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: str | None
) -> None:
    monkeypatch.setattr(conntrack, "Netfilter", lambda *_: pytest.fail("asked"))
    if count is None:
        monkeypatch.setattr(procfs_sysctl, "FOLDER", str(tmp_path))  # as without the module
    else:
        assert Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text() == "0\n"
    assert conntrack.purge((QUBE,)) == 0


def test_what_went_meanwhile_is_no_error(ground: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    udp(QUBE, SERVER, 5)
    real = conntrack._find

    def find(*words: object) -> list[bytes]:
        found = real(*words)  # type: ignore[arg-type]
        ground.run("conntrack", "-F")
        return found

    monkeypatch.setattr(conntrack, "_find", find)
    assert conntrack.purge((QUBE,)) == 0


def test_a_new_connection_of_the_same_ports_stays(ground: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel gives each entry a number, and only the one that was found is meant."""
    udp(QUBE, SERVER, 1)
    with contextlib.closing(conntrack.Netfilter(1)) as asking:
        (entry,) = conntrack._find(asking, frozenset({QUBE.packed}))
    (place,) = [begin for kind, begin, _ in netlink_wire.attributes(entry, 20, len(entry)) if kind == conntrack.CTA_ID]
    former = entry[:place] + bytes(byte ^ 255 for byte in entry[place : place + 4]) + entry[place + 4 :]
    monkeypatch.setattr(conntrack, "_find", lambda *_: [former])
    before = table(ground)
    assert conntrack.purge((QUBE,)) == 0
    assert table(ground) == before
    monkeypatch.setattr(conntrack, "_find", lambda *_: [entry])
    assert conntrack.purge((QUBE,)) == 1


@pytest.mark.parametrize("interrupted", [1, 3, 4])
def test_a_dump_that_was_interrupted_is_asked_for_again_a_few_times(
    ground: Oracle, monkeypatch: pytest.MonkeyPatch, interrupted: int
) -> None:
    udp(QUBE, SERVER, 5)
    left = [InterruptedError(4, "dump interrupted")] * interrupted
    real = netlink_wire.Netfilter.request

    def request(self: netlink_wire.Netfilter, kind: int, *words: object) -> Iterator[bytes]:
        if kind == conntrack.IPCTNL_MSG_CT_GET and left:
            raise left.pop()
        return real(self, kind, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(netlink_wire.Netfilter, "request", request)
    if interrupted < 4:
        assert conntrack.purge((QUBE,)) == 5
        assert table(ground) == set()
    else:
        with pytest.raises(KernelError, match=r"^conntrack purge: .*EINTR") as error:
            conntrack.purge((QUBE,))
        assert error.value.retryable


def test_a_kernel_that_refuses(ground: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    udp(QUBE, SERVER, 1)
    monkeypatch.setattr(conntrack, "IPCTNL_MSG_CT_DELETE", 99)
    with pytest.raises(KernelError, match=r"^conntrack purge: Invalid argument"):
        conntrack.purge((QUBE,))


def test_no_descriptor_is_left(ground: Oracle) -> None:
    udp(QUBE, SERVER, 2)
    nft_kernel.generation()  # its socket stays, see system/nft/kept
    before = os.listdir("/proc/self/fd")
    for _ in range(10):
        conntrack.purge((QUBE, OTHER))
        nft_kernel.generation()
        udp(QUBE, SERVER, 2)
    assert len(os.listdir("/proc/self/fd")) == len(before)


# --- the frame -----------------------------------------------------------------------------------------------------


class Scripted:
    """A socket that says what it is told; the sequence number of the request is put in."""

    def __init__(self, *packets: bytes) -> None:
        self._packets = iter(packets)
        self._sequence = b""

    def send(self, data: bytes) -> None:
        self._sequence = data[8:12]

    def recv(self, _size: int) -> bytes:
        return next(self._packets).replace(b"SEQN", self._sequence)


def message(kind: int, flags: int, body: bytes, sequence: bytes = b"SEQN") -> bytes:
    return struct.pack("=IHH", 16 + len(body), kind, flags) + sequence + bytes(4) + body


def scripted(*packets: bytes) -> netlink_wire.Netfilter:
    made = netlink_wire.Netfilter(1)
    made.close()
    made._socket = Scripted(*packets)  # type: ignore[assignment]
    return made


def test_the_tail_of_an_old_request_is_passed_over() -> None:
    old = message(0x100, 2, b"old!", b"\xff\xff\xff\x7f") + message(3, 2, struct.pack("=i", -1), b"\xff\xff\xff\x7f")
    asking = scripted(old + message(0x100, 2, b"new!"), message(3, 2, bytes(4)))
    assert [answer[16:] for answer in asking.request(1, netlink_wire.NLM_F_DUMP)] == [b"new!"]


@pytest.mark.parametrize("place", ["entry", "end"])
def test_the_kernel_says_that_a_dump_was_interrupted(place: str) -> None:
    entry, end = message(0x100, 0x12 if place == "entry" else 2, b"some"), message(3, 0x12, bytes(4))
    asking = scripted(entry, end if place == "end" else message(3, 2, bytes(4)))
    with pytest.raises(InterruptedError):
        list(asking.request(1, netlink_wire.NLM_F_DUMP))


def test_attributes_that_make_no_sense_end_the_reading() -> None:
    """A length of 0 would be read for ever."""
    assert len(list(netlink_wire.attributes(bytes(40), 0, 40))) == 10
    assert list(netlink_wire.attributes(b"\x08\0\x01\x80abcd", 0, 8)) == [(1, 4, 8)]
    assert list(netlink_wire.messages(bytes(32))) == [(0, 0, 0, 0, 0), (16, 0, 0, 0, 0)]


@pytest.mark.behaviour("B159")
def test_who_has_begun_a_connection_has_spoken_and_who_was_only_asked_has_not(ground: Oracle) -> None:
    assert not conntrack.speaks([QUBE, QUBE6]), "an empty table"
    udp(SERVER, QUBE)
    udp(SERVER6, QUBE6)
    udp(NEAR, FAR)
    assert not conntrack.speaks([QUBE, QUBE6])
    assert not conntrack.speaks([])
    assert conntrack.speaks([NEAR])
    udp(QUBE, SERVER)
    assert conntrack.speaks([OTHER, QUBE])
    assert not conntrack.speaks([QUBE6])
    udp(QUBE6, SERVER6)
    assert conntrack.speaks([QUBE6])
    conntrack.purge([QUBE])
    assert not conntrack.speaks([QUBE])


@pytest.mark.behaviour("B69")
@pytest.mark.behaviour("B70")
def test_what_an_address_began_is_told_as_rules_see_it_and_ends_one_by_one(
    ground: Oracle, opened: contextlib.ExitStack
) -> None:
    traffic(ground, opened)
    before = table(ground)
    found = conntrack.begun((QUBE, QUBE6))
    told = {(each.source, each.server, each.protocol, each.port, each.icmp_type) for each, _ in found}
    ports = {port for source, server, protocol, port, _ in told if (source, server, protocol) == (QUBE, SERVER, 17)}
    assert ports == {5000, 5001, 5002}
    assert {(QUBE, SERVER, 1, None, 8), (QUBE6, SERVER6, 58, None, 128)} <= told
    assert {source for source, *_ in told} == {QUBE, QUBE6}
    numbers = {str(each.number) for each, _ in found}
    assert numbers <= {number for number, _ in before}
    (one,) = [entry for each, entry in found if (each.protocol, each.source) == (6, QUBE)]
    assert conntrack.end((one,)) == 1
    assert conntrack.end((one,)) == 0
    assert len(before - table(ground)) == 1
    assert conntrack.begun(()) == ()
