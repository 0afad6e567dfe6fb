# SPDX-License-Identifier: GPL-2.0-or-later
"""Split the output of `nft list table` for our tables into blocks: sets, chains and other objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping


def taken_apart(table: str) -> tuple[str, dict[str, str]]:
    """Return the lines of the table itself (one that is dormant says so there), and its blocks by their first line."""
    own, blocks, head = "", dict[str, str](), ""
    for line in table.splitlines():
        if head:
            blocks[head] += f"{line}\n"
            head = "" if line == "\t}" else head
        elif line.startswith("\t") and line.endswith("{"):
            head = line.strip()
            blocks[head] = f"{line}\n"
        elif line not in ("", "}"):
            own += f"{line}\n"
    return own, blocks


def chosen(tables: Mapping[str, str], kind: str, wanted: Iterable[tuple[str, str]]) -> str:
    """Return some blocks, each table with what it says of itself; "" when one of them is not there.

    Args:
        tables: listing of each family's.
        kind: "chain" or "set".
        wanted: family and name of each.
    """
    found = tuple(_found(tables, kind, tuple(wanted)))
    return "" if any("" in blocks for _, blocks in found) else _text(found)


def there(tables: Mapping[str, str], kind: str, wanted: Iterable[tuple[str, str]]) -> str:
    """Return those of some blocks that are there; see `chosen`."""
    return _text(_found(tables, kind, tuple(wanted)))


def _found(
    tables: Mapping[str, str], kind: str, wanted: tuple[tuple[str, str], ...]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield of each family what its table says of itself, and the blocks, "" for one that is not there."""
    for family in dict.fromkeys(family for family, _ in wanted):
        own, blocks = taken_apart(tables[family])
        yield own, tuple(blocks.get(f"{kind} {name} {{", "") for word, name in wanted if word == family)


def _text(found: Iterable[tuple[str, tuple[str, ...]]]) -> str:
    return "".join(f"{own}{''.join(blocks)}}}\n" for own, blocks in found)


def rules(block: str) -> tuple[str, ...]:
    """Return the lines of a chain's block that are rules."""
    lines = (line.strip() for line in block.splitlines()[1:-1])
    return tuple(line for line in lines if line and line.split()[0] not in ("type", "policy", "comment"))
