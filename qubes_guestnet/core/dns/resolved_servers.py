# SPDX-License-Identifier: GPL-2.0-or-later
"""Parse the servers of all links from systemd-resolved; only a provider needs this module.

Replies of other programs are untrusted: any malformed reply is a ValueError. An empty reply once broke all networking
(behaviour B35).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from .. import endpoint
from ..endpoint import DNS_PORT, Endpoint
from ..namedtuple import NamedTuple
from .upstream_servers import LinkServers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# In the service's form: link (0 for none) and server; link and domain without "~".
Server = tuple[int, Endpoint]
Domain = tuple[int, str]
_TLS_ONLY = "yes"  # "opportunistic" sends clear text to a server without TLS


class Ways(NamedTuple):
    """How the servers of one link are used.

    Args:
        default_route: names that match no link's domain are looked up on this link.
        tls_only: queries are sent over TLS, never in clear text.
    """

    default_route: bool = True
    tls_only: bool = False


class Answer(NamedTuple):
    """The reply of the service.

    Args:
        servers: in the order of use.
        domains: search and routing domains.
        ways: link → its settings, 0 for the whole qube; a missing link has the defaults.
    """

    servers: tuple[Server, ...]
    domains: tuple[Domain, ...]
    ways: Mapping[int, Ways] = {}


def link_servers(answer: Answer, uplinks: frozenset[int]) -> tuple[LinkServers, ...]:
    """Return the servers of each link, by index; links without servers are left out.

    They are sorted, because their order on the bus changes with each start of the service.

    Args:
        answer: the service's reply.
        uplinks: interface indexes of this qube's uplinks.
    """
    found: dict[int, list[Endpoint]] = {}
    for ifindex, server in answer.servers:
        found.setdefault(ifindex, []).append(server)
    everything = {ifindex for ifindex, domain in answer.domains if domain in (".", "")}
    return tuple(
        LinkServers(
            ifindex, tuple(servers), ifindex in everything, ifindex in uplinks, *answer.ways.get(ifindex, Ways())
        )
        for ifindex, servers in sorted(found.items())
    )


# --- as the bus gives it -------------------------------------------------------------------------------------------


def bus_answer(untrusted_properties: object) -> Answer:
    """Parse the properties of the manager; `bus_ways` adds the settings of each link.

    Args:
        untrusted_properties: name → (signature, value).

    Raises:
        ValueError: they are not the properties of systemd-resolved.
    """
    listed = _property(untrusted_properties, "DNSEx") or _property(untrusted_properties, "DNS")
    domains = _property(untrusted_properties, "Domains")
    servers = tuple(_bus_server(entry) for entry in _list(listed))
    mode = Ways(tls_only=_property(untrusted_properties, "DNSOverTLS") == _TLS_ONLY)
    return Answer(servers, tuple(_bus_domain(entry) for entry in _list(domains)), {0: mode})


def bus_ways(untrusted_properties: object) -> Ways:
    """Parse the properties of one link, as `bus_answer` does; missing ones have the defaults.

    Raises:
        ValueError: they are not the properties of a link.
    """
    default = _property(untrusted_properties, "DefaultRoute")
    mode = _property(untrusted_properties, "DNSOverTLS")
    if not isinstance(default, bool | None) or not isinstance(mode, str | None):
        raise ValueError("no properties of a link")
    return Ways(default is not False, mode == _TLS_ONLY)


def _property(untrusted_properties: object, name: str) -> Any:
    if not isinstance(untrusted_properties, dict):
        raise ValueError("no properties")
    value = untrusted_properties.get(name)
    if value is None:
        return None
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"no property: {name}")
    return value[1]


def _list(untrusted: object) -> Iterable[object]:
    if not isinstance(untrusted, list | tuple):
        raise ValueError("no list")
    return untrusted


def _bus_server(entry: Any) -> Server:
    """Parse (link, family, octets) of DNS; DNSEx adds (port, name in the certificate)."""
    if not isinstance(entry, tuple | list) or len(entry) not in (3, 5):
        raise ValueError("no server")
    ifindex, _, octets, *more = entry
    number = more[0] if more else 0
    if type(ifindex) is not int or type(number) is not int or not isinstance(octets, bytes | list):
        raise ValueError("no server")
    try:
        return ifindex, Endpoint(ipaddress.ip_address(bytes(octets)), number or DNS_PORT)
    except TypeError:
        raise ValueError("no address") from None


def _bus_domain(entry: Any) -> Domain:
    if not isinstance(entry, tuple | list) or len(entry) != 3 or type(entry[0]) is not int:
        raise ValueError("no domain")
    return entry[0], str(entry[1])


# --- as resolvectl prints it ---------------------------------------------------------------------------------------


def printed_answer(dns: str, domain: str, default_route: str, tls: str) -> Answer:
    """Parse the output of resolvectl's verbs `dns`, `domain`, `default-route` and `dnsovertls`.

    Raises:
        ValueError: the output is malformed.
    """
    usual, modes = dict(_one_by_link(default_route)), dict(_one_by_link(tls))
    links = {ifindex for ifindex, _ in _by_link(dns)}
    ways = {ifindex: Ways(usual.get(ifindex) != "no", modes.get(ifindex) == _TLS_ONLY) for ifindex in links}
    return Answer(tuple(printed_servers(dns)), tuple(printed_domains(domain)), ways)


def printed_servers(dns: str) -> list[Server]:
    """Parse the output of `resolvectl dns`. A server may be followed by a port, a link, and its certificate's name.

    Raises:
        ValueError: the output is malformed.
    """
    return [(ifindex, _server(word)) for ifindex, word in _by_link(dns)]


def printed_domains(domain: str) -> list[Domain]:
    """Parse the output of `resolvectl domain`.

    Raises:
        ValueError: the output is malformed.
    """
    return [(ifindex, word.removeprefix("~")) for ifindex, word in _by_link(domain)]


def _one_by_link(text: str) -> Iterable[tuple[int, str]]:
    """Yield the links with exactly one word; other lines, which `default-route` prints globally, are ignored."""
    for line in text.splitlines():
        title, colon, rest = line.partition(":")
        words = title.split()
        if colon and words[:1] == ["Global"]:
            yield 0, rest.strip()
        elif colon and words[:1] == ["Link"] and len(words) > 1 and words[1].isdecimal():
            yield int(words[1]), rest.strip()


def _by_link(text: str) -> list[tuple[int, str]]:
    """Return the words of lines such as `Global: …` and `Link 2 (eth0): …`, which indented lines continue."""
    found, ifindex = [], -1
    for line in text.splitlines():
        rest = line
        if not line.startswith(" "):
            title, colon, rest = line.partition(":")
            words = title.split()
            link = words[:1] == ["Link"] and len(words) > 1 and words[1].isdecimal()
            if not colon or not (link or words[:1] == ["Global"]):
                raise ValueError(f"unexpected output of resolvectl: {line[:60]!r}")
            ifindex = int(words[1]) if link else 0
        found += [(ifindex, word) for word in rest.split()]
    if ifindex < 0:
        raise ValueError("resolvectl printed nothing")
    return found


def _server(word: str) -> Endpoint:
    """Parse `10.8.0.1`, `10.8.0.1:853` or `[fd00::1]:853`, each optionally followed by `%LINK` and `#NAME`."""
    text = word.partition("#")[0].partition("%")[0]
    if text.startswith("["):
        host, _, number = text[1:].partition("]")
    elif "." in text and text.count(":") == 1:
        host, _, number = text.partition(":")
    else:
        host, number = text, ""
    number = number.removeprefix(":")
    return Endpoint(ipaddress.ip_address(host), endpoint.port(number) if number else DNS_PORT)
