# SPDX-License-Identifier: GPL-2.0-or-later
"""A qube has no more connections without an answer than its limit, at no time, however it keeps the old ones alive.

Conntrack's timeouts are short here. What is demanded is an upper bound at every moment, so a slow machine proves less
and fails nothing; that the limit is reached is counted at the start, where nothing has to come in time.
"""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import NamedTuple

import pytest

from tests.support.eventually import eventually
from tests.support.packets import icmp
from tests.support.packets.ports import ICMP, ICMP6, UDP, packet_of, udp
from tests.support.packets.wire import sum_of
from tests.support.qubes.provider import DNS, ENTRIES6, OWN, ROUTER, Client, Provider

CONFIG = "/etc/qubes/guestnet.toml"
NAMES, CONNECTIONS = 50, 500
TCP, ABSENT_PROTOCOL, SYN, ACK = 6, 200, 2, 16
NOBODY = {4: "198.51.100.99", 6: "2000:abcd:1::99"}
TIMEOUT_S = 2
# More than the limit, and more again with each round.
FIRST, MORE = CONNECTIONS + 20, 60


def conntrack_keeps(host: Provider, seconds: int, but: dict[str, int] | None = None) -> None:
    """Set all of conntrack's timeouts before the first vif comes, some of them to something else."""
    text = f"for file in /proc/sys/net/netfilter/nf_conntrack_*timeout*; do echo {seconds} > $file; done\n"
    for name, other in (but or {}).items():
        text += f"echo {other} > /proc/sys/net/netfilter/nf_conntrack_{name}\n"
    host.qube.wire(text)


def tcp(source: str, target: str, number: int, flags: int) -> bytes:
    """A segment without data."""
    header = (20000 + number).to_bytes(2) + b"\0\x09" + number.to_bytes(4) * 2 + bytes((0x50, flags)) + b"\x20\0"
    pseudo = ip_address(source).packed + ip_address(target).packed + TCP.to_bytes(4) + (20).to_bytes(4)
    return header + sum_of(pseudo + header + bytes(4)).to_bytes(2) + bytes(2)


def other_target(version: int, number: int) -> str:
    """One of many that are not there."""
    return f"198.51.{101 + (number >> 8)}.{number & 255}" if version == 4 else f"2000:abcd:2::{number + 1:x}"


def _ports(source: str, version: int, number: int, hops: int) -> bytes:
    target = NOBODY[version]
    return packet_of(source, target, udp(source, target, 10000 + number, 9, b""), UDP, hops)


def _targets(source: str, version: int, number: int, hops: int) -> bytes:
    target = other_target(version, number)
    return packet_of(source, target, udp(source, target, 700, 9, b""), UDP, hops)


def _pings(source: str, version: int, number: int, hops: int) -> bytes:
    body = bytes((8 if version == 4 else 128, 0, 0, 0)) + number.to_bytes(2) + b"\0\0"
    header, protocol = (20, ICMP) if version == 4 else (40, ICMP6)
    body = icmp.message(source, NOBODY[version], body)[header:]
    return packet_of(source, NOBODY[version], body, protocol, hops)


def _segments(flags: int) -> Callable[[str, int, int, int], bytes]:
    return lambda source, version, number, hops: packet_of(
        source, NOBODY[version], tcp(source, NOBODY[version], number, flags), TCP, hops
    )


def _strange(source: str, version: int, number: int, hops: int) -> bytes:
    """Of a protocol without ports, with a body of four bytes, or none where it is not the first packet."""
    return packet_of(source, other_target(version, number), bytes(4 if hops == 64 else 0), ABSENT_PROTOCOL, hops)


def _names(source: str, _version: int, number: int, hops: int) -> bytes:
    """To the virtual name server, where there is one, and so to a server that does not answer."""
    target = DNS if "." in source else NOBODY[6]
    return packet_of(source, target, udp(source, target, 10000 + number, 53, b""), UDP, hops)


KINDS: dict[str, Callable[[str, int, int, int], bytes]] = {
    "udp from many ports": _ports,
    "udp to many targets": _targets,
    "pings": _pings,
    "tcp that begins": _segments(SYN),
    "tcp in the middle": _segments(ACK),
    "another protocol": _strange,
    "names": _names,
}


@functools.cache
def made(kind: str, source: str, version: int, number: int, hops: int) -> bytes:
    """The packet of that number; most are sent again and again."""
    return KINDS[kind](source, version, number, hops)


class Hostile(NamedTuple):
    """A qube that sends one kind of packets by one family."""

    behind: Client
    kind: str
    version: int

    @property
    def source(self) -> str:
        """Its address."""
        return self.behind.ip if self.version == 4 else self.behind.ip6

    @property
    def limit(self) -> int:
        """What it may have."""
        return NAMES if self.kind == "names" else CONNECTIONS

    def send(self, numbers: range, hops: int = 64) -> None:
        """One packet of each connection."""
        for number in numbers:
            self.behind.port.shoot(self.behind.port.frame(made(self.kind, self.source, self.version, number, hops)))


def unanswered(host: Provider, source: str) -> int:
    """How many connections of an address conntrack has."""
    return sum(f" src={source} " in line and "[UNREPLIED]" in line for line in host.connections().splitlines())


def new_first(hostile: Hostile, old: range, new: range, hops: int) -> None:
    """As many new connections as get through, and then the old ones go on."""
    hostile.send(new)
    hostile.send(old, hops)


def old_first(hostile: Hostile, old: range, new: range, hops: int) -> None:
    """The old ones go on, and then come new ones."""
    hostile.send(old, hops)
    hostile.send(new)


def alternating(hostile: Hostile, old: range, new: range, hops: int) -> None:
    """One new, some old, one new, and so on."""
    every = len(old) // len(new)
    for place, number in enumerate(new):
        hostile.send(range(number, number + 1))
        hostile.send(old[place * every : (place + 1) * every], hops)


def rounds() -> Iterator[tuple[range, range, int]]:
    """What is old, what is new, and how far the old may go, again and again for more than three timeouts."""
    end, first = time.monotonic() + 3.5 * TIMEOUT_S, FIRST
    for how_far in itertools.cycle((1, 64)):
        yield range(FIRST), range(first, first + MORE), how_far
        first += MORE
        if time.monotonic() > end and first > FIRST + 6 * MORE:
            return
        time.sleep(TIMEOUT_S / 4)


@pytest.mark.behaviour("B112")
@pytest.mark.parametrize("order", [new_first, old_first, alternating])
def test_keeping_old_connections_alive_makes_no_room_for_new_ones(
    order: Callable[[Hostile, range, range, int], None],
) -> None:
    """Each kind by a qube of its own, both families; a packet of TTL 1 keeps its connection and is not forwarded."""
    host = Provider(ENTRIES6)
    conntrack_keeps(host, TIMEOUT_S)
    host.qube.write(CONFIG, f"[provider]\nunanswered_names = {NAMES}\nunanswered_connections = {CONNECTIONS}\n")
    behinds = [host.attach(10 + number) for number in range(len(KINDS))]
    kinds = zip(behinds, KINDS, strict=True)
    hostile = [Hostile(behind, kind, version) for behind, kind in kinds for version in (4, 6)]
    other, outside = host.attach(5), host.outside()
    most: dict[tuple[str, int], int] = {}
    for old, new, how_far in rounds():
        for one in hostile:
            one.send(range(FIRST)) if new.start == FIRST else order(one, old, new, how_far)
            found = unanswered(host, one.source)
            most[one.kind, one.version] = max(most.get((one.kind, one.version), 0), found)
        outside.forget()
        assert (host.works(other, outside), host.works(other, outside, version=6)) == (True, True)
    assert most == {(one.kind, one.version): one.limit for one in hostile}


@pytest.mark.behaviour("B112")
def test_names_that_are_answered_keep_their_place_as_long_as_conntrack_has_them() -> None:
    """After two seconds an answered name is kept for longer (nf_conntrack_udp_timeout_stream), and so is its place."""
    host = Provider(ENTRIES6)
    conntrack_keeps(host, TIMEOUT_S, {"udp_timeout_stream": 3600})
    host.qube.write(CONFIG, f"[provider]\nunanswered_connections = {CONNECTIONS}\n")
    behind, outside = host.attach(4), host.outside()

    def assured(count: int) -> bool:
        """Whether so many of the first `count` names are kept for long; all of them are asked, and answered, again."""
        for number in range(count):
            behind.port.shoot(behind.port.frame(made("names", behind.ip, 4, number, 64)))
            outside.send_packet(packet_of(ROUTER, OWN, udp(ROUTER, OWN, 53, 10000 + number, b"answer"), UDP))
        lines = [line for line in host.connections().splitlines() if f" src={behind.ip} " in line]
        assert len(lines) <= CONNECTIONS
        return sum("[ASSURED]" in line for line in lines) == min(count, CONNECTIONS)

    # Each batch takes more than conntrack's short timeout.
    for count in (200, 400, 600):
        eventually(lambda count=count: assured(count), 30.0)  # type: ignore[misc]
    assert assured(800)
    # They count as connections, and not as names without an answer.
    eventually(lambda: names(host, behind)["unanswered"] == 0)


def names(host: Provider, behind: Client) -> dict[str, int]:
    """What `status` says of the names of a vif."""
    said = json.loads(host.qube.guestnet("status", "--json", check=False).stdout)["provider"]
    (found,) = [vif["unanswered"]["names"] for vif in said["vifs"] if vif["name"] == behind.vif]
    return found  # type: ignore[no-any-return]
