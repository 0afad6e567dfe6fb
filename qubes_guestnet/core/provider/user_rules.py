# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of users and other programs in our tables, and the names of their tables, stored to detect their loss.

`nft flush ruleset`, and so a restart of nftables.service, removes our rules and the users' rules. Restoring only ours
would open a qube that a kill switch had closed (behaviour B125). So rules in our tables are restored as they were;
tables of other programs are only reported, because those programs must recreate them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ..namedtuple import NamedTuple
from ..nft.listing_blocks import rules, taken_apart
from ..nft.rules_text import CHAINS, base
from ..nft.tables import ARP, FAMILIES, GUARD, LIMITS, LOG, QUBES

_HEADER = "# What others had in the tables of qubes-guestnet, and tables of others. Written by it; do not edit.\n"
_NAMED, _LEFT = "# table ", "# without its elements: "
# Those that come and go with a process of ours.
_PASSING = frozenset({f"inet {GUARD}", f"inet {LOG}", "inet qubes-offload"})
_ON_THE_WAY = ("prerouting", "antispoof", "forward", "postrouting", "egress")
LONGEST = 1 << 18  # bytes of what is kept besides chains; a list of blocked addresses belongs into a table of its own
_ELEMENTS = "\t\telements = {"


Block = tuple[str, str, str]  # family, first line, text; see `Kept`


class Kept(NamedTuple):
    """The rules and tables of other programs.

    Args:
        blocks: in our tables: family, the first line as "chain custom-forward {", and the whole text of each.
        tables: family and name of each table that is not ours.
        emptied: family and first line of the sets and maps in `blocks` that are kept without their elements, because
            these are too many. Without the set itself the rules that name it could not be loaded.
    """

    blocks: tuple[tuple[str, str, str], ...] = ()
    tables: tuple[str, ...] = ()
    emptied: tuple[tuple[str, str], ...] = ()


def found(listings: Mapping[str, str], tables: Iterable[str]) -> Kept:
    """Return what others have now.

    Args:
        listings: `nft -s list table` of ours, by family.
        tables: family and name of each that there is.
    """
    own = {f"{family} {name}" for family in listings for name in (QUBES, LIMITS)} | _PASSING
    others = tuple(name for name in tables if name not in own)
    blocks = tuple(
        (family, head, text)
        for family, listing in listings.items()
        for head, text in taken_apart(listing)[1].items()
        if not _is_ours(head) and not _is_empty(head, text)
    )
    emptied = _too_large(blocks)
    return Kept(tuple(_emptied(block) if block[:2] in emptied else block for block in blocks), others, emptied)


def gone(listings: Mapping[str, str]) -> frozenset[str]:
    """Return the families whose table is not there, or has no rule of ours any more: all of it was taken away."""
    return frozenset(
        family
        for family, listing in listings.items()
        if not any(
            rules(text)
            for head, text in taken_apart(listing)[1].items()
            if (family, head.removeprefix("chain ").removesuffix(" {")) in CHAINS
        )
    )


def lost(kept: Kept, listings: Mapping[str, str], tables: Iterable[str]) -> Kept:
    """Return rules of other programs that were lost together with ours, not those that they removed separately.

    Args:
        kept: what there was before.
        listings, tables: as for `found`, now.
    """
    families = gone(listings)
    now = {(family, head) for family, head, _ in found(listings, ()).blocks}
    there = frozenset(tables)
    blocks = tuple(block for block in kept.blocks if block[0] in families and block[:2] not in now)
    emptied = tuple(name for name in kept.emptied if name in {block[:2] for block in blocks})
    return Kept(blocks, tuple(name for name in kept.tables if name not in there) if families else (), emptied)


def passable(listings: Mapping[str, str], *, ipv6: bool) -> bool:
    """Return whether something may have been forwarded that is not to be, or untranslated: a rule for that is missing.

    Args:
        listings: as for `found`.
        ipv6: whether the qubes have IPv6.
    """
    lines = base(ipv6=ipv6).splitlines()
    for family, listing in listings.items():
        if family == ARP:
            continue  # it is not forwarded
        own, blocks = taken_apart(listing)
        if "dormant" in own:
            return True
        for chain in _ON_THE_WAY:
            wanted = sum(line.startswith(f"add rule {family} {QUBES} {chain} ") for line in lines)
            there = rules(blocks.get(f"chain {chain} {{", ""))
            if len(there) < wanted or (chain == "postrouting" and "masquerade" not in there):
                return True
    return False


def text(blocks: Iterable[tuple[str, str, str]]) -> str:
    """Return what puts them back, to be loaded behind the base rules, in the same transaction.

    All blocks of a family are in one: only there nft makes all chains and sets before the rules and elements that name
    them. With a block for each chain a `jump` to one further down was refused (behaviour B125).
    """
    blocks = tuple(blocks)
    return "".join(
        f"table {family} {QUBES} {{\n{''.join(block for word, _, block in blocks if word == family)}}}\n"
        for family in dict.fromkeys(family for family, _, _ in blocks)
    )


def one_by_one(blocks: Iterable[tuple[str, str, str]]) -> tuple[tuple[str, tuple[str, str, str]], ...]:
    """Return the same as `text` in many transactions, for when it is refused: each text, and the block that it is of.

    First come the chains without rules, so that none fails for want of another.
    """
    blocks = tuple(blocks)
    regular = tuple(block for block in blocks if _is_regular(block))
    bare = ((text(((family, head, f"\t{head}\n\t}}\n"),)), (family, head, block)) for family, head, block in regular)
    return (*bare, *((text((block,)), block) for block in blocks))


def back(blocks: Iterable[Block], listings: Mapping[str, str]) -> tuple[Block, ...]:
    """Return which of these blocks are there again, with what belongs into them.

    Args:
        blocks: that were put back.
        listings: as for `found`, now.
    """
    now = {
        (family, head): text for family, listing in listings.items() for head, text in taken_apart(listing)[1].items()
    }
    there = ((block, now.get(block[:2])) for block in blocks)
    return tuple(
        block for block, text in there if text is not None and (_holds((*block[:2], text)) or not _holds(block))
    )


def holding(kept: Kept) -> tuple[tuple[str, str, str], ...]:
    """Blocks that are there with what belongs into them: not a chain without rules, nor a set without elements."""
    return tuple(block for block in kept.blocks if block[:2] in kept.emptied or _holds(block))


def words(blocks: Iterable[tuple[str, str, str]]) -> str:
    """Return blocks for a line of text."""
    return ", ".join(f"{family} {QUBES} {head.removesuffix(' {')}" for family, head, _ in blocks)


def render(kept: Kept) -> bytes:
    """As the file holds it."""
    named = "".join(f"{_NAMED}{name}\n" for name in kept.tables)
    named += "".join(f"{_LEFT}{family} {head}\n" for family, head in kept.emptied)
    return (_HEADER + named + text(kept.blocks)).encode()


def parse(data: bytes) -> Kept:
    """Return the content of the file."""
    content = data.decode("utf-8", "replace")
    emptied = tuple((family, head) for family, _, head in (name.partition(" ") for name in _lines(content, _LEFT)))
    return Kept(tuple(_blocks(content)), tuple(_lines(content, _NAMED)), emptied)


def _lines(content: str, begin: str) -> Iterator[str]:
    yield from (line.removeprefix(begin) for line in content.splitlines() if line.startswith(begin))


def _blocks(content: str) -> Iterator[tuple[str, str, str]]:
    for family in FAMILIES:
        for part in content.split(f"table {family} {QUBES} {{\n")[1:]:
            table = part.partition("\n}\n")[0] + "\n"
            yield from ((family, head, block) for head, block in taken_apart(table)[1].items())


def _too_large(blocks: Iterable[tuple[str, str, str]]) -> tuple[tuple[str, str], ...]:
    """Sets and maps for whose elements there is no room, the smaller ones first; chains are always kept."""
    left, found = LONGEST, []
    for family, head, block in sorted(blocks, key=lambda block: len(block[2])):
        if _has_elements(head):
            left -= len(block)
            if left < 0:
                found.append((family, head))
    return tuple(sorted(found))


def _emptied(block: tuple[str, str, str]) -> tuple[str, str, str]:
    """A set or map without its elements, which nft lists last."""
    return (*block[:2], block[2].partition(_ELEMENTS)[0].removesuffix("\t}\n") + "\t}\n")


def _holds(block: tuple[str, str, str]) -> bool:
    _, head, lines = block
    if _has_elements(head):
        return _ELEMENTS in lines
    return bool(rules(lines)) or not _is_regular(block)


def _has_elements(head: str) -> bool:
    return head.startswith(("set ", "map "))


def _is_regular(block: tuple[str, str, str]) -> bool:
    """Return whether it is a chain without a hook, to which other programs' rules can jump."""
    return block[1].startswith("chain ") and "\t\ttype " not in block[2]


def _is_ours(head: str) -> bool:
    """Return whether a block is a part of the base rules, whose text contains its name."""
    kind, name = head.split()[:2]
    return not name.startswith("custom-") and f"  {kind} {name} {{" in base(ipv6=True)


def _is_empty(head: str, block: str) -> bool:
    return head.startswith("chain custom-") and not rules(block)
