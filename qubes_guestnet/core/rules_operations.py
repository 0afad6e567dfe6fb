# SPDX-License-Identifier: GPL-2.0-or-later
"""The operations that load the base rules, and restore rules of other programs."""

from __future__ import annotations

from collections.abc import Iterable

from .namedtuple import NamedTuple, distinct
from .values import IPAddress

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/lean)
if TYPE_CHECKING:
    from .user_rules import Block

_TABLE = "qubes"


@distinct
class LoadRules(NamedTuple):
    """Load the base rules in one transaction, with all that is to be in force from their first moment on.

    Args:
        families: of the tables that it fills.
        rules: text for nft: what ends before, the rules, and what their sets hold.
        put_back: what others had in these tables and have lost.
        without_arp: the text for a kernel that has no nftables for ARP, where it is not known yet whether it has.
    """

    families: tuple[str, ...]
    rules: str
    put_back: tuple[Block, ...] = ()
    without_arp: str = ""

    @property
    def text(self) -> str:
        """The whole transaction, as nft takes it."""
        return self.rules + _text(self.put_back)

    @property
    def instead(self) -> LoadRules | None:
        """Where it is refused, the same without ARP."""
        families = tuple(family for family in self.families if family != "arp")
        return LoadRules(families, self.without_arp, self.put_back) if self.without_arp else None

    def __str__(self) -> str:
        *first, last = (f"{family} {_TABLE}" for family in self.families)
        words = f"nft -f: base rules of the tables {', '.join(first)} and {last}"
        return f"{words}; put back what others had in our tables: {_words(self.put_back)}" if self.put_back else words


@distinct
class LoadRulesInParts(NamedTuple):
    """The same after a refusal: the base rules, and then each part of what others had in a transaction of its own.

    Args:
        families, rules: as for `LoadRules`.
        put_back: of which some may be refused.
    """

    families: tuple[str, ...]
    rules: str
    put_back: tuple[Block, ...]

    def __str__(self) -> str:
        return f"{LoadRules(self.families, self.rules, self.put_back)}, each part alone"


@distinct
class PurgeUntranslated(NamedTuple):
    """Forget the connections of these addresses that began while nothing was translated (behaviour B126)."""

    addresses: tuple[IPAddress, ...]

    def __str__(self) -> str:
        return "conntrack -D: untranslated entries of the qubes"


def _text(blocks: Iterable[Block]) -> str:
    from . import user_rules  # a boot has lost nothing

    return user_rules.text(blocks) if blocks else ""


def _words(blocks: Iterable[Block]) -> str:
    from . import user_rules

    return user_rules.words(blocks)


if TYPE_CHECKING:
    RulesOperation = LoadRules | LoadRulesInParts | PurgeUntranslated
