# SPDX-License-Identifier: GPL-2.0-or-later
"""The lines of a qube's chain: its rules in force, as values and as rules for nft.

Protocols are matched by `meta l4proto`, because `ip6 nexthdr` differs after extension headers and in fragments.
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
        """Return the statement for refused packets, which notifies the sender at once (behaviour B85)."""
        return f"reject with {self.icmp} admin-prohibited"


FAMILIES = {IPV4: Family("ip", "ipv4_addr", "icmp"), IPV6: Family("ip6", "ipv6_addr", "icmpv6")}


class Line(NamedTuple):
    """A rule in force, which becomes one line of the qube's chain.

    Args:
        number: number of the entry.
        accept: accept a matching packet; otherwise refuse it.
        network: match destinations in this network; None for any.
        host: match destinations in the set of this name; None for any.
        dns: match destinations that are name servers.
        protocols: match these protocols; () for any.
        ports: match these destination ports of TCP and UDP; None for any.
        icmp_type: match this ICMP type; None for any.
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
        """Return the comment of its rule, the number in dom0's form."""
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
    """Return a checksum of the rules of a chain, which identifies them, because nft prints rules in another form."""
    data = "\n".join(rules).encode()
    return f"{len(data):x}-{binascii.crc32(data):08x}{binascii.crc_hqx(data, 0):04x}"
