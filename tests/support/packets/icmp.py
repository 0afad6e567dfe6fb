# SPDX-License-Identifier: GPL-2.0-or-later
"""ICMP of both families as an attacker makes it, and as a router that means well does: with right checksums."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from tests.support.packets.ports import ICMP, ICMP6, packet_of
from tests.support.packets.wire import sum_of

# Type, code and the word behind the checksum, of all errors that quote a packet; 1300 bytes are a path MTU.
ERRORS: dict[int, dict[str, tuple[int, int, int]]] = {
    4: {
        "port unreachable": (3, 3, 0),
        "host unreachable": (3, 1, 0),
        "admin prohibited": (3, 13, 0),
        "fragmentation needed": (3, 4, 1300),
        "source quench": (4, 0, 0),
        "time exceeded": (11, 0, 0),
        "parameter problem": (12, 0, 0),
    },
    6: {
        "port unreachable": (1, 4, 0),
        "address unreachable": (1, 3, 0),
        "admin prohibited": (1, 1, 0),
        "packet too big": (2, 0, 1300),
        "time exceeded": (3, 0, 0),
        "parameter problem": (4, 0, 0),
    },
}
ALL_NODES, ALL_ROUTERS = "ff02::1", "ff02::2"
ROUTER_SOLICIT, ROUTER_ADVERT, NEIGHBOUR_SOLICIT, NEIGHBOUR_ADVERT = 133, 134, 135, 136
_TARGET_MAC, _SOURCE_MAC, _PREFIX = 2, 1, 3


def error(source: str, target: str, kind: tuple[int, int, int], about: bytes) -> bytes:
    """A packet that says that another one, of the same family, did not get there."""
    number, code, rest = kind
    quoted = about[:120]
    return message(source, target, struct.pack("!BBHI", number, code, 0, rest) + quoted)


def message(source: str, target: str, body: bytes, hops: int = 64) -> bytes:
    """An ICMP message whose checksum is not computed yet as a packet."""
    own, other = ip_address(source), ip_address(target)
    pseudo, protocol = b"", ICMP
    if own.version == 6:
        pseudo, protocol = own.packed + other.packed + struct.pack("!II", len(body), ICMP6), ICMP6
    packet = packet_of(source, target, body[:2] + struct.pack("!H", sum_of(pseudo + body)) + body[4:], protocol)
    return packet if hops == 64 else packet[:7] + bytes((hops,)) + packet[8:]  # IPv6 has no sum over its header


def advertised_router(source: str, mac: str, prefix: str) -> bytes:
    """A router advertisement for the whole link, with a prefix to make addresses of."""
    option = struct.pack("!BBBBIII", _PREFIX, 4, 64, 0xC0, 86400, 14400, 0) + ip_address(prefix).packed
    link = bytes((_SOURCE_MAC, 1)) + _octets(mac)
    body = struct.pack("!BBHBBHII", ROUTER_ADVERT, 0, 0, 64, 0, 1800, 0, 0) + link + option
    return message(source, ALL_NODES, body, hops=255)


def solicited_router(source: str, mac: str) -> bytes:
    """A router solicitation that names its sender's MAC address."""
    link = bytes((_SOURCE_MAC, 1)) + _octets(mac)
    return message(source, ALL_ROUTERS, struct.pack("!BBHI", ROUTER_SOLICIT, 0, 0, 0) + link, hops=255)


def advertised_neighbour(source: str, target: str, about: str, mac: str, *, solicited: bool) -> bytes:
    """A neighbour advertisement that overrides what was known."""
    flags = 0x20000000 | (0x40000000 if solicited else 0)
    option = bytes((_TARGET_MAC, 1)) + _octets(mac)
    body = struct.pack("!BBHI", NEIGHBOUR_ADVERT, 0, 0, flags) + ip_address(about).packed + option
    return message(source, target, body, hops=255)


def solicited_neighbour(source: str, target: str, about: str, mac: str) -> bytes:
    """A neighbour solicitation that names its sender's MAC address."""
    option = bytes((_SOURCE_MAC, 1)) + _octets(mac)
    body = struct.pack("!BBHI", NEIGHBOUR_SOLICIT, 0, 0, 0) + ip_address(about).packed + option
    return message(source, target, body, hops=255)


def arp(operation: int, sender: str, sender_mac: str, target: str) -> bytes:
    """What follows the Ethernet header of an ARP frame: 1 asks, 2 answers."""
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + _octets(sender_mac)
    return head + ip_address(sender).packed + bytes(6) + ip_address(target).packed


def _octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
