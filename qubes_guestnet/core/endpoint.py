# SPDX-License-Identifier: GPL-2.0-or-later
"""A name server: an address and a port."""

from __future__ import annotations

import ipaddress

from . import checks
from .namedtuple import NamedTuple
from .values import IPAddress

DNS_PORT = 53


class Endpoint(NamedTuple):
    """The socket address of a name server.

    Args:
        address: its address, of either family.
        port: its port, for UDP and TCP.
    """

    address: IPAddress
    port: int = DNS_PORT

    def __str__(self) -> str:
        """Return the target for nftables' `dnat to`; the default port is omitted."""
        if self.port == DNS_PORT:
            return str(self.address)
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


def port(text: str) -> int:
    """Return a port from 1 to 65535 in decimal digits. Raises ValueError."""
    if not checks.is_decimal(text, 5) or not 0 < int(text) < 65536:
        raise ValueError(f"no port: {text[:8]!r}")
    return int(text)


def parse(text: str) -> Endpoint:
    """Parse `10.8.0.1` or `10.8.0.1:5353`, a server to which the virtual addresses can be redirected.

    Raises:
        ValueError: it is not the IPv4 address of a host, with or without a port.
    """
    host, colon, number = text.partition(":")
    address = checks.host4(host.encode())
    return Endpoint(address, port(number) if colon else DNS_PORT)


def of(addresses: tuple[IPAddress, ...]) -> tuple[Endpoint, ...]:
    """Return the servers with these addresses at port 53."""
    return tuple(Endpoint(address) for address in addresses)


def host_of(address: IPAddress) -> ipaddress.IPv4Address | None:
    """Return the address if client qubes can reach it through the virtual addresses; else None."""
    return address if isinstance(address, ipaddress.IPv4Address) and checks.is_host(address) else None
