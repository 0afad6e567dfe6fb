# SPDX-License-Identifier: GPL-2.0-or-later
"""The packets that rules in `custom-forward` drop, for `check`: mainly a VPN's kill switch (behaviour B142).

Only the rules of that chain are parsed, as nft prints them; jumps are not followed.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..namedtuple import NamedTuple
from ..nft import listing as nft_listing
from ..nft.established import understood
from ..values import GROUP_UPLINK

CHAIN = "custom-forward"


class Drop(NamedTuple):
    """A rule that drops or rejects packets.

    Args:
        family: family of its table, ip or ip6.
        rule: the rule as nft prints it.
        uplink: it drops all packets to the Qubes uplink.
    """

    family: str
    rule: str
    uplink: bool = False


def drops(listings: Iterable[tuple[str, str]], uplinks: Iterable[str]) -> tuple[Drop, ...]:
    """Return the rules that drop or reject packets.

    Args:
        listings: pairs of a family and the output of `nft list table FAMILY qubes`.
        uplinks: names of this qube's uplinks.

    Raises:
        ValueError: a listing is incomplete.
    """
    uplinks = tuple(uplinks)
    found = []
    for family, listing in listings:
        for rule in nft_listing.chains(listing).get(CHAIN, ()):
            words = nft_listing.words(rule)
            if "drop" not in words and "reject" not in words:
                continue
            read = understood(nft_listing.without_log(words))
            known = read.conditions if read and not read.changing else None
            everything = known is not None and all(_is_met(*condition, uplinks) for condition in known)
            found.append(Drop(family, rule, everything))
    return tuple(found)


def _is_met(key: str, negated: bool, value: str, uplinks: tuple[str, ...]) -> bool:
    """Return whether a condition matches every TCP or UDP connection from a client qube to an uplink."""
    values = {word.strip('",') for word in value.strip("{} ").replace(",", " ").split()}
    if key == "ct state":
        met = "new" in values
    elif key == "meta l4proto":
        met = values >= {"tcp", "udp"} or values >= {"6", "17"}
    elif key in ("iifgroup", "iifname"):
        met = not values.isdisjoint({"2", "vif*"})
    elif key == "oifgroup":
        met = str(GROUP_UPLINK) in values
    elif key in ("oif", "oifname"):
        met = bool(uplinks) and all(any(_fits(name, word) for word in values) for name in uplinks)
    else:
        return False  # it matches only some of them
    return met != negated


def _fits(name: str, word: str) -> bool:
    return name.startswith(word[:-1]) if word.endswith("*") else name == word
