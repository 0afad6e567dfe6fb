# SPDX-License-Identifier: GPL-2.0-or-later
"""The lines of a qube's chain: its rules as they are in force, as values, and each as a rule for nft.

Protocols are matched by `meta l4proto`: behind extension headers and in fragments `ip6 nexthdr` is another one.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable

from ..namedtuple import NamedTuple
from ..nft.tables import DNS_SET, NAME_SETS
from ..nft.tables import FIREWALL as TABLE
from ..values import IPV4, IPV6, IPNetwork
from .rules import EVERY_PORT, ICMP, Ports

# Comments of the last rule of a chain; those of the others are the numbers of their entries.
POLICY, BLOCKED = "policy", "blocked"


class Family(NamedTuple):
    """Words of one family."""

    word: str
    address: str
    icmp: str

    @property
    def table(self) -> str:
        """Family and name of the table."""
        return f"{self.word} {TABLE}"

    @property
    def refuse(self) -> str:
        """The statement for what is refused: the sender learns it at once (behaviour B85)."""
        return f"reject with {self.icmp} admin-prohibited"


FAMILIES = {IPV4: Family("ip", "ipv4_addr", "icmp"), IPV6: Family("ip6", "ipv6_addr", "icmpv6")}


class Line(NamedTuple):
    """A rule as it is in force: what becomes one line of the qube's chain.

    Args:
        number: of the entry.
        accept: else a packet that matches is refused.
        network: the destination is in it; None: any.
        host: the destination is in the set of this name; None: any.
        dns: the destination is one of the name servers.
        protocols: that it matches; () for any.
        ports: the destination port, of TCP and UDP; None: any.
        icmp_type: None: any.
    """

    number: int
    accept: bool
    network: IPNetwork | None = None
    host: str | None = None
    dns: bool = False
    protocols: tuple[str, ...] = ()
    ports: Ports | None = None
    icmp_type: int | None = None

    @property
    def comment(self) -> str:
        """The comment of its rule: the number as dom0 writes it."""
        return f"{self.number:04}"


def set_of(host: str) -> str:
    """Return the name of the set of a host name."""
    return NAME_SETS + host


def host_of(name: str) -> str | None:
    """Return the host name of a set; None for another set."""
    return name.removeprefix(NAME_SETS) if name.startswith(NAME_SETS) else None


def rule(line: Line, version: int) -> str:
    """Return the rule of a line.

    Args:
        line: of a list.
        version: of its family.
    """
    family, words = FAMILIES[version], ""
    if line.network is not None and line.network.prefixlen:
        words += f"{family.word} daddr {line.network} "
    if line.host is not None:
        words += f"{family.word} daddr @{set_of(line.host)} "
    if line.dns:
        words += f"{family.word} daddr @{DNS_SET} "
    if line.protocols:
        protocols = [family.icmp if each == ICMP else each for each in line.protocols]
        words += f"meta l4proto {protocols[0] if len(protocols) == 1 else '{ ' + ', '.join(protocols) + ' }'} "
    if line.ports is not None and line.ports != EVERY_PORT:
        words += f"th dport {line.ports} "
    if line.icmp_type is not None:
        words += f"{family.icmp} type {line.icmp_type} "
    return words + last_rule(line.accept, line.comment, version)


def last_rule(accept: bool, comment: str, version: int) -> str:
    """Return the rule for every packet: the last one of a chain."""
    return f'counter {"accept" if accept else FAMILIES[version].refuse} comment "{comment}"'


def signature(rules: Iterable[str]) -> str:
    """Return a checksum of the rules of a chain, by which they are known again: nft prints them in other words."""
    data = "\n".join(rules).encode()
    return f"{len(data):x}-{binascii.crc32(data):08x}{binascii.crc_hqx(data, 0):04x}"
