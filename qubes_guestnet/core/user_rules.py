# SPDX-License-Identifier: GPL-2.0-or-later
"""What users and other programs have in our tables, and which tables they have: kept, so that its loss is known.

`nft flush ruleset`, and with it a restart of nftables.service, takes our rules away and the users' with them. Ours come
back; without the users' own a qube would be open that a kill switch had closed (behaviour B125). What was in our tables
is put back as it was. What was in tables of others is theirs to bring back, and is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from .listings import rules, taken_apart
from .namedtuple import NamedTuple
from .nftables import CHAINS, GUARD, TABLE, base

_HEADER = "# What others had in the tables of qubes-guestnet, and tables of others. Written by it; do not edit.\n"
_NAMED = "# table "
# Those that come and go with a process of ours.
_PASSING = frozenset({f"inet {GUARD}", "inet qubes-offload"})
_ON_THE_WAY = ("prerouting", "antispoof", "forward", "postrouting", "egress")
LONGEST = 1 << 18  # bytes of what is kept; a list of blocked addresses belongs into a table of its own


class Kept(NamedTuple):
    """What others have.

    Args:
        blocks: in our tables: family, the first line as "chain custom-forward {", and the whole text of each.
        tables: family and name of each table that is not ours.
    """

    blocks: tuple[tuple[str, str, str], ...] = ()
    tables: tuple[str, ...] = ()


def found(listings: Mapping[str, str], tables: Iterable[str]) -> Kept:
    """What others have now.

    Args:
        listings: `nft -s list table` of ours, by family.
        tables: family and name of each that there is.
    """
    own = {f"{family} {TABLE}" for family in listings} | _PASSING
    others = tuple(name for name in tables if name not in own)
    blocks = tuple(
        (family, head, text)
        for family, listing in listings.items()
        for head, text in taken_apart(listing)[1].items()
        if not _is_ours(head) and not _is_empty(head, text)
    )
    return Kept(blocks if sum(len(text) for _, _, text in blocks) <= LONGEST else (), others)


def gone(listings: Mapping[str, str]) -> frozenset[str]:
    """Families whose table is not there, or has no rule of ours any more: all that was in it was taken away."""
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
    """What others had and have no more, where it went together with our rules. What they took away alone is no loss.

    Args:
        kept: what there was before.
        listings, tables: as for `found`, now.
    """
    families = gone(listings)
    now = {(family, head) for family, head, _ in found(listings, ()).blocks}
    there = frozenset(tables)
    blocks = tuple(block for block in kept.blocks if block[0] in families and block[:2] not in now)
    return Kept(blocks, tuple(name for name in kept.tables if name not in there) if families else ())


def passable(listings: Mapping[str, str], *, ipv6: bool) -> bool:
    """Whether something may have been forwarded that is not to be, or untranslated: a rule for that is missing.

    Args:
        listings: as for `found`.
        ipv6: whether the qubes have IPv6.
    """
    lines = base(ipv6=ipv6).splitlines()
    for family, listing in listings.items():
        own, blocks = taken_apart(listing)
        if "dormant" in own:
            return True
        for chain in _ON_THE_WAY:
            wanted = sum(line.startswith(f"add rule {family} {TABLE} {chain} ") for line in lines)
            there = rules(blocks.get(f"chain {chain} {{", ""))
            if len(there) < wanted or (chain == "postrouting" and "masquerade" not in there):
                return True
    return False


def text(blocks: Iterable[tuple[str, str, str]]) -> str:
    """What puts them back, to be loaded behind the base rules, in the same transaction."""
    return "".join(f"table {family} {TABLE} {{\n{block}}}\n" for family, _, block in blocks)


def words(blocks: Iterable[tuple[str, str, str]]) -> str:
    """Blocks for a line of text."""
    return ", ".join(f"{family} {TABLE} {head.removesuffix(' {')}" for family, head, _ in blocks)


def render(kept: Kept) -> bytes:
    """As the file holds it."""
    named = "".join(f"{_NAMED}{name}\n" for name in kept.tables)
    return (_HEADER + named + text(kept.blocks)).encode()


def parse(data: bytes) -> Kept:
    """The content of the file."""
    return Kept(tuple(_blocks(data.decode("utf-8", "replace"))), tuple(_tables(data.decode("utf-8", "replace"))))


def _tables(content: str) -> Iterator[str]:
    yield from (line.removeprefix(_NAMED) for line in content.splitlines() if line.startswith(_NAMED))


def _blocks(content: str) -> Iterator[tuple[str, str, str]]:
    for family in ("ip", "ip6"):
        for part in content.split(f"table {family} {TABLE} {{\n")[1:]:
            table = part.partition("\n}\n")[0] + "\n"
            yield from ((family, head, block) for head, block in taken_apart(table)[1].items())


def _is_ours(head: str) -> bool:
    """Whether a block is one of the base rules', from whose text its name is taken."""
    kind, name = head.split()[:2]
    return not name.startswith("custom-") and f"  {kind} {name} {{" in base(ipv6=True)


def _is_empty(head: str, block: str) -> bool:
    return head.startswith("chain custom-") and not rules(block)
