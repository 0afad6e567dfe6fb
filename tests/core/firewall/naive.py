# SPDX-License-Identifier: GPL-2.0-or-later
"""A second evaluator, which knows nothing of ours: it reads entries as text and compares numbers.

Lists and packets are drawn by `random.Random`, from few values, so that rules match often. The tests in namespaces use
it as well.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple

TCP, UDP, SCTP, GRE = 6, 17, 132, 47
ICMP = {4: 1, 6: 58}
QUBE = {4: "10.137.0.5", 6: "fd09:24ef:4179::a89:5"}
# Destinations of packets, and networks around them.
DESTINATIONS: dict[int, tuple[str, ...]] = {
    4: ("192.0.2.1", "192.0.2.5", "192.0.2.129", "198.51.100.7", "203.0.113.255", "10.139.1.1", "10.139.1.2"),
    6: ("2001:db8::1", "2001:db8::5", "2001:db8:0:1::5", "2001:db8:2::7", "2a00::ffff", "fd00::53", "fd00::54"),
}
NETWORKS: dict[int, tuple[str, ...]] = {
    4: (
        "192.0.2.0/24",
        "192.0.2.77/25",
        "192.0.2.128/25",
        "192.0.2.5/32",
        "198.51.100.7/31",
        "0.0.0.0/0",
        "10.1.2.3/8",
    ),
    6: (
        "2001:db8::/32",
        "2001:db8::77/64",
        "2001:DB8:0:1::/64",
        "2001:db8::5/128",
        "2001:db8:2::7/127",
        "::/0",
        "fd00::/8",
    ),
}
DNS: dict[int, frozenset[str]] = {4: frozenset({"10.139.1.1", "198.51.100.7"}), 6: frozenset({"fd00::53"})}
HOSTS = ("a.example", "b.example", "c.example", "d.example")
NEVER_KNOWN = ("127.1", "localhost", "printer.local", "a..b")
PORTS = ("0-0", "22-22", "53-53", "50-60", "80-443", "1000-2000", "443-443", "0-65535", "65535-65535", "54-65535")
PACKET_PORTS = (0, 21, 22, 53, 54, 79, 80, 100, 443, 444, 999, 1000, 2000, 2001, 65535)
TYPES = (0, 3, 8, 13, 128, 129)
Binding = Mapping[str, frozenset[str]]


class Asked(NamedTuple):
    """A packet in words: destination, IP protocol number, and port or ICMP type."""

    destination: str
    protocol: int
    detail: int


class Drawn(NamedTuple):
    """A list as dom0 would write it, and what is known of its names."""

    version: int
    policy: str
    entries: dict[str, str]
    names: Binding

    @property
    def raw(self) -> dict[str, bytes]:
        return {"policy": self.policy.encode(), **{key: value.encode() for key, value in self.entries.items()}}


def entry(chance: Random, version: int, hosts: Sequence[str] = (*HOSTS, *NEVER_KNOWN)) -> str:
    words = [f"action={chance.choice(('accept', 'drop'))}"]
    where = chance.randrange(4)
    if where == 0:
        words.append(f"dst{version}={chance.choice(NETWORKS[version])}")
    elif where == 1 and hosts:
        words.append(f"dsthost={chance.choice(hosts)}")
    protocol = chance.choice(("", "", "tcp", "udp", "icmp"))
    words += [f"proto={protocol}"] * bool(protocol)
    words += ["specialtarget=dns"] * (chance.randrange(5) == 0)
    if protocol != "icmp" and chance.randrange(2):
        words.append(f"dstports={chance.choice(PORTS)}")
    if protocol == "icmp" and chance.randrange(2):
        words.append(f"icmptype={chance.choice(TYPES)}")
    chance.shuffle(words)
    return " ".join(words)


def drawn(chance: Random, version: int, most: int = 8, hosts: Sequence[str] = (*HOSTS, *NEVER_KNOWN)) -> Drawn:
    """Draw a list, with gaps in its numbers, and of some names what they have."""
    numbers = sorted(chance.sample(range(30), chance.randint(0, most)))
    entries = {f"{number:04}": entry(chance, version, hosts) for number in numbers}
    names = {
        host: frozenset(chance.sample(DESTINATIONS[version], chance.randrange(4)))
        for host in HOSTS
        if chance.randrange(3)
    }
    return Drawn(version, chance.choice(("drop", "drop", "drop", "accept")), entries, names)


def packet(chance: Random, version: int) -> Asked:
    protocol = chance.choice((TCP, UDP, ICMP[version], SCTP, GRE))
    detail = chance.choice(TYPES) if protocol == ICMP[version] else chance.choice(PACKET_PORTS)
    return Asked(chance.choice(DESTINATIONS[version]), protocol, detail)


def every_packet(version: int) -> list[Asked]:
    """All that can be drawn."""
    details = {TCP: PACKET_PORTS, UDP: PACKET_PORTS, ICMP[version]: TYPES, SCTP: (0, 53), GRE: (0,)}
    return [
        Asked(destination, protocol, detail)
        for destination in DESTINATIONS[version]
        for protocol, each in details.items()
        for detail in each
    ]


def passes(found: Drawn, asked: Asked, has: Callable[[str, str], bool] | None = None) -> bool:
    """Whether a packet passes: the first entry that matches, read as text.

    Args:
        found: the list.
        asked: the packet.
        has: whether a name has the destination; by default what is known of it, and a name of which nothing is known
            has no address for an accept and any for a drop.
    """
    for key in sorted(found.entries, key=int):
        given = dict(word.split("=") for word in found.entries[key].split(" "))
        accept = given["action"] == "accept"
        host = given.get("dsthost")
        if host is not None:
            if has is not None:
                in_host = has(host, asked.destination)
            elif host in found.names and host not in NEVER_KNOWN:
                in_host = asked.destination in found.names[host]
            else:
                in_host = not accept
            if not in_host:
                continue
        if all(_fulfilled(found.version, option, value, given, asked) for option, value in given.items()):
            return accept
    return found.policy == "accept"


def may_pass(found: Drawn, asked: Asked) -> bool:
    """Whether a packet passes with some addresses of the names: an accept has its destination, a drop has not."""
    entries = {}
    for key, words in found.entries.items():
        left = [word for word in words.split(" ") if not word.startswith("dsthost=")]
        if len(left) == len(words.split(" ")) or "action=accept" in left:
            entries[key] = " ".join(left)
    return passes(found._replace(entries=entries), asked)


def _fulfilled(version: int, option: str, value: str, given: Mapping[str, str], asked: Asked) -> bool:
    transport = asked.protocol in (TCP, UDP)
    if option in ("dst4", "dst6"):
        address, _, length = value.partition("/")
        bits = 32 if version == 4 else 128
        free = bits - int(length)
        return _number(address) >> free == _number(asked.destination) >> free
    if option == "proto":
        return asked.protocol == {"tcp": 6, "udp": 17, "icmp": ICMP[version]}[value]
    if option == "specialtarget":
        return transport and asked.detail == 53 and asked.destination in DNS[version]
    if option == "dstports":
        first, last = map(int, value.split("-"))
        return transport and first <= asked.detail <= last
    if option == "icmptype":
        return asked.protocol == ICMP[version] and asked.detail == int(value)
    return True


def _number(address: str) -> int:
    return int.from_bytes(ipaddress.ip_address(address).packed, "big")
