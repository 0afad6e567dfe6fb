# SPDX-License-Identifier: GPL-2.0-or-later
"""The operations that load the base rules, restore rules of other programs, and delete all of them."""

from __future__ import annotations

from collections.abc import Iterable

from ..namedtuple import NamedTuple, distinct
from ..nft.tables import ARP, QUBES
from ..values import IPAddress

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from .user_rules import Block


@distinct
class LoadRules(NamedTuple):
    """Load the base rules in one transaction, with everything that must be in force at the same moment.

    Args:
        families: families of the tables.
        rules: text for nft: end of the offload, the rules, and the elements of their sets.
        put_back: lost parts of other programs in these tables.
        without_arp: the text for a kernel without nftables for ARP, if that is not known yet.
    """

    families: tuple[str, ...]
    rules: str
    put_back: tuple[Block, ...] = ()
    without_arp: str = ""

    @property
    def text(self) -> str:
        """Return the whole transaction, as text for nft."""
        return self.rules + _text(self.put_back)

    @property
    def instead(self) -> LoadRules | None:
        """Return the operation without ARP, for a refused transaction."""
        families = tuple(family for family in self.families if family != "arp")
        return LoadRules(families, self.without_arp, self.put_back) if self.without_arp else None

    def __str__(self) -> str:
        words = f"nft -f: base rules of the tables {_named(self.families)}"
        others = f"; restore other programs' parts of our tables: {_words(self.put_back)}" if self.put_back else ""
        return f"{words}{others}"


@distinct
class LoadRulesInParts(NamedTuple):
    """After a refusal, load the base rules, and then each part of other programs in a transaction of its own.

    Args:
        families, rules: as for `LoadRules`.
        put_back: the parts, some of which nft may refuse.
    """

    families: tuple[str, ...]
    rules: str
    put_back: tuple[Block, ...]

    def __str__(self) -> str:
        return f"{LoadRules(self.families, self.rules, self.put_back)}, each part alone"


@distinct
class UnloadRules(NamedTuple):
    """Delete our tables, with sets and users' chains, and the offload, which bypasses their rules.

    Args:
        families: families of the tables.
    """

    families: tuple[str, ...]

    @property
    def text(self) -> str:
        """Return the text for nft."""
        from ..nft import flowtable, rules_text

        return flowtable.END + rules_text.unload(arp=ARP in self.families)

    def __str__(self) -> str:
        return f"nft -f: tables {_named(self.families)} deleted"


@distinct
class PurgeUntranslated(NamedTuple):
    """Delete the connections of these addresses that began without translation (behaviour B126)."""

    addresses: tuple[IPAddress, ...]

    def __str__(self) -> str:
        return "conntrack -D: untranslated entries of the qubes"


def _named(families: Iterable[str]) -> str:
    """Return the names of our tables, for a line of text."""
    *first, last = (f"{family} {QUBES}" for family in families)
    return f"{', '.join(first)} and {last}"


def _text(blocks: Iterable[Block]) -> str:
    from . import user_rules  # a boot has lost nothing

    return user_rules.text(blocks) if blocks else ""


def _words(blocks: Iterable[Block]) -> str:
    from . import user_rules

    return user_rules.words(blocks)


if TYPE_CHECKING:
    RulesOperation = LoadRules | LoadRulesInParts | UnloadRules | PurgeUntranslated
