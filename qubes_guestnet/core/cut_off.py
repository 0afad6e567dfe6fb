# SPDX-License-Identifier: GPL-2.0-or-later
"""What the rules in `custom-forward` cut off, for `check`: a VPN's kill switch above all (behaviour B142).

Read are the rules of that chain alone, as nft prints them; a rule that jumps elsewhere is not followed.
"""

from __future__ import annotations

from collections.abc import Iterable

from . import nft_listing
from .namedtuple import NamedTuple
from .values import GROUP_UPLINK

CHAIN = "custom-forward"


class Drop(NamedTuple):
    """A rule that drops or refuses.

    Args:
        family: of its table, ip or ip6.
        rule: in nft's words.
        uplink: it drops all that goes out by the Qubes uplink.
    """

    family: str
    rule: str
    uplink: bool = False


def drops(listings: Iterable[tuple[str, str]], uplinks: Iterable[str]) -> tuple[Drop, ...]:
    """The rules that drop or refuse.

    Args:
        listings: family, and what `nft list table FAMILY qubes` prints.
        uplinks: names of this qube's uplinks.

    Raises:
        ValueError: a listing is not whole.
    """
    ways = {("oifgroup", str(GROUP_UPLINK)), *((key, name) for name in uplinks for key in ("oifname", "oif"))}
    found = []
    for family, listing in listings:
        for rule in nft_listing.chains(listing).get(CHAIN, ()):
            words = rule.partition(' comment "')[0].split()
            if "drop" not in words and "reject" not in words:
                continue
            conditions = [word.strip('"') for word in words[: _verdict(words)] if word != "counter"]
            found.append(Drop(family, rule, not conditions or tuple(conditions) in ways))
    return tuple(found)


def _verdict(words: list[str]) -> int:
    """Where the verdict begins."""
    return next(place for place, word in enumerate(words) if word in ("drop", "reject"))
