# SPDX-License-Identifier: GPL-2.0-or-later
"""Differences of the two families in the base rules of `rules_text`."""

from __future__ import annotations

from ..namedtuple import NamedTuple
from ..values import IPV4, IPV6
from .guard import LEFT, UNNAMED


class Family(NamedTuple):
    """Words and rules of one family."""

    version: int
    word: str
    address: str
    ping: str
    prohibited: str
    redirect: str
    left: int = LEFT
    neighbours: tuple[str, ...] = ()
    uplink: tuple[str, ...] = ()


FAMILIES = (
    Family(
        IPV4,
        "ip",
        "ipv4_addr",
        "icmp type echo-request",
        "icmp admin-prohibited",
        "icmp type redirect",
        LEFT | UNNAMED,  # the virtual addresses of names are of this family
    ),
    Family(
        IPV6,
        "ip6",
        "ipv6_addr",
        "icmpv6 type echo-request",
        "icmpv6 admin-prohibited",
        "icmpv6 type nd-redirect",
        LEFT,
        # Neighbour discovery is the ARP of IPv6, and passes these rules. A qube, whose addresses antispoof checks, may
        # solicit. Its entries are permanent, so it is never solicited, and its advertisements are about other qubes
        # (behaviour B114).
        (
            "iifgroup 2 icmpv6 type nd-neighbor-solicit accept",
            "iifgroup 2 icmpv6 type nd-neighbor-advert counter drop",
        ),
        (
            # An unsolicited advertisement (without the flag S, RFC 4861) can move an address (B116).
            "iifgroup 1 icmpv6 type nd-neighbor-advert @th,33,1 0 counter drop",
            "iifgroup 1 icmpv6 type nd-neighbor-advert @th,33,1 1 accept",
            "iifgroup 1 icmpv6 type nd-neighbor-solicit accept",
            "iifgroup != { 1, 2 } icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept",
            # Router advertisements are accepted only from a network card: a qube's IPv6 comes from dom0 (B116).
            "iifgroup != { 1, 2 } icmpv6 type nd-router-advert accept",
            # The answer comes from another address than the request went to, so conntrack does not know it (B93).
            "iifgroup != { 1, 2 } ip6 saddr fe80::/64 ip6 daddr fe80::/64 udp dport 546 accept",
        ),
    ),
)
