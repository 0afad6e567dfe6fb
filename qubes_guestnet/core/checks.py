# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks: parse untrusted bytes into a value, or raise ValueError; and the texts of the valid forms for errors.

A check first tests the raw bytes for allowed bytes and length, and only then decodes and parses: `ipaddress` on its own
reads four raw bytes as a packed address, `fe80::1%eth0` as an address with a scope, and
`0.0.0.255` as a netmask of length 24.
"""

from __future__ import annotations

import ipaddress

from .values import BACKEND_MAC, IPAddress, IPNetwork

# The caller inserts an example.
HOST4_EXPECTED = "the IPv4 address of a host such as {}, not 0.x, loopback, multicast or broadcast"
HOST6_EXPECTED = "the IPv6 address of a host such as {}, not ::, loopback, multicast or IPv4-mapped"

_DECIMAL = frozenset(b"0123456789")
_HEX = frozenset(b"0123456789abcdefABCDEF")
_IPV4_BYTES = _DECIMAL | frozenset(b".")
_IPV6_BYTES = _HEX | frozenset(b":.")
_WORD_BYTES = frozenset(b"-_.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")

# Never the address of a host (RFC 6890), and the kernel refuses or misroutes them.
_NO_HOST: tuple[IPNetwork, ...] = (
    *map(ipaddress.IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "255.255.255.255")),
    *map(ipaddress.IPv6Network, ("::/128", "::1/128", "::ffff:0:0/96", "ff00::/8")),
)
LINK_LOCAL6 = ipaddress.IPv6Network("fe80::/10")


def is_decimal(untrusted_value: str | bytes, longest: int) -> bool:
    """Return whether it is a number of 1 to `longest` digits, which `int` reads; leading zeros count."""
    return 0 < len(untrusted_value) <= longest and untrusted_value.isascii() and untrusted_value.isdigit()


def is_host(address: IPAddress) -> bool:
    """Return whether it can be the address of a single other host."""
    return not any(address in network for network in _NO_HOST)


def host4(untrusted_value: bytes) -> ipaddress.IPv4Address:
    """Return the IPv4 address of a host."""
    address = ipaddress.IPv4Address(_text(untrusted_value, _IPV4_BYTES, 15))
    if not is_host(address):
        raise ValueError("not the address of a host")
    return address


def host6(untrusted_value: bytes) -> ipaddress.IPv6Address:
    """Return the IPv6 address of a host; it may be link-local."""
    address = ipaddress.IPv6Address(_text(untrusted_value, _IPV6_BYTES, 45))
    if not is_host(address):
        raise ValueError("not the address of a host")
    return address


def address6(untrusted_value: bytes) -> ipaddress.IPv6Address:
    """Return the IPv6 address of a qube."""
    # The kernel adds link-local addresses by itself; a qube with only such an address would have no network.
    address = host6(untrusted_value)
    if address in LINK_LOCAL6:
        raise ValueError("link-local")
    return address


def address(untrusted_value: bytes) -> IPAddress:
    """Return the address of a qube, of either family."""
    return address6(untrusted_value) if b":" in untrusted_value else host4(untrusted_value)


def netmask4(untrusted_value: bytes) -> int:
    """Return a prefix length from 1 to 32, from a length or a netmask."""
    if b"." not in untrusted_value:
        return _length(untrusted_value, 32)
    host_bits = 0xFFFFFFFF ^ int(ipaddress.IPv4Address(_text(untrusted_value, _IPV4_BYTES, 15)))
    # A netmask is ones, then zeros: its complement is 0…01…1, one less than a power of two.
    if host_bits & (host_bits + 1) or host_bits == 0xFFFFFFFF:
        raise ValueError("no netmask")
    return 32 - host_bits.bit_length()


def netmask6(untrusted_value: bytes) -> int:
    """Return a prefix length from 1 to 128."""
    return _length(untrusted_value, 128)


def mac(untrusted_value: bytes) -> str:
    """Return the link-layer address of one interface, in lower case."""
    octets = untrusted_value.split(b":")
    if len(octets) != 6 or not all(len(octet) == 2 and _HEX.issuperset(octet) for octet in octets):
        raise ValueError("no MAC address")
    found = untrusted_value.decode("ascii").lower()
    # Every vif of a provider has the backend's address: as `/qubes-mac` it would make a vif the uplink.
    if int(octets[0], 16) & 1 or found in ("00:00:00:00:00:00", BACKEND_MAC):
        raise ValueError("not the MAC address of a single interface")
    return found


def word(untrusted_value: bytes) -> str:
    """Return a word that is safe as an argument of a program, at most 32 characters; empty for none."""
    if untrusted_value.startswith(b"-"):
        raise ValueError("an option instead of a word")
    return _text(untrusted_value, _WORD_BYTES, 32)


def _text(untrusted_value: bytes, allowed: frozenset[int], longest: int) -> str:
    """Return the value as text. Raises ValueError if it is too long or has a disallowed byte."""
    if len(untrusted_value) > longest or not allowed.issuperset(untrusted_value):
        raise ValueError("disallowed bytes or length")
    return untrusted_value.decode("ascii")


def _length(untrusted_value: bytes, longest: int) -> int:
    """Return a prefix length from 1 to `longest`. With 0 the whole Internet would count as directly connected."""
    digits = _text(untrusted_value, _DECIMAL, 3)
    if digits.startswith("0") or not 1 <= int(digits) <= longest:
        raise ValueError("no prefix length")
    return int(digits)
