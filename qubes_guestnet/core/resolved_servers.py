# SPDX-License-Identifier: GPL-2.0-or-later
"""The servers of all links as systemd-resolved tells them. Only a provider asks, so this is a module of its own."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from .nameservers import LinkServers
from .values import IPAddress

# As the service gives them: link (0 for none), address; and link, domain without "~".
Server = tuple[int, IPAddress]
Domain = tuple[int, str]


def link_servers(
    servers: Iterable[Server], domains: Iterable[Domain], uplinks: frozenset[int]
) -> tuple[LinkServers, ...]:
    """Servers and domains of all links, link by link; a link without servers is none of interest.

    Args:
        servers: in the order of use.
        domains: that are searched, or whose names are asked there.
        uplinks: interface indexes of this qube's uplinks.
    """
    found: dict[int, list[IPAddress]] = {}
    for ifindex, address in servers:
        found.setdefault(ifindex, []).append(address)
    everything = {ifindex for ifindex, domain in domains if domain in (".", "")}
    return tuple(
        LinkServers(ifindex, tuple(addresses), ifindex in everything, ifindex in uplinks)
        for ifindex, addresses in found.items()
    )


def bus_servers(untrusted_entries: Iterable[tuple[int, int, bytes]]) -> list[Server]:
    """The service's property DNS, a(iiay): link, address family, octets.

    Raises:
        ValueError: of octets that are no address.
    """
    return [(ifindex, ipaddress.ip_address(bytes(octets))) for ifindex, _, octets in untrusted_entries]


def printed_servers(dns: str) -> list[Server]:
    """What `resolvectl dns` prints. A server can be followed by a port, a link, and the name in its certificate.

    Raises:
        ValueError: it is something else.
    """
    return [(ifindex, _address(word)) for ifindex, word in _by_link(dns)]


def printed_domains(domain: str) -> list[Domain]:
    """What `resolvectl domain` prints.

    Raises:
        ValueError: it is something else.
    """
    return [(ifindex, word.removeprefix("~")) for ifindex, word in _by_link(domain)]


def _by_link(text: str) -> list[tuple[int, str]]:
    """Words of lines such as `Global: …` and `Link 2 (eth0): …`, which goes on in indented lines."""
    found, ifindex = [], -1
    for line in text.splitlines():
        rest = line
        if not line.startswith(" "):
            title, colon, rest = line.partition(":")
            words = title.split()
            if not colon or words[:1] not in (["Global"], ["Link"]):
                raise ValueError(f"no line of resolvectl: {line[:60]!r}")
            ifindex = int(words[1]) if words[0] == "Link" else 0
        found += [(ifindex, word) for word in rest.split()]
    if ifindex < 0:
        raise ValueError("resolvectl says nothing")
    return found


def _address(word: str) -> IPAddress:
    text = word.partition("#")[0].partition("%")[0]
    if text.startswith("["):
        return ipaddress.IPv6Address(text[1:].partition("]")[0])
    return ipaddress.ip_address(text.partition(":")[0] if "." in text and text.count(":") == 1 else text)
