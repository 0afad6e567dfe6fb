# SPDX-License-Identifier: GPL-2.0-or-later
"""What `nft -s list table` prints, chain by chain and rule by rule. What a rule says is for others to know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

# Lines of a chain that are none of its rules.
_HEADS = frozenset({"type", "policy", "comment"})


def chains(listing: str) -> Mapping[str, tuple[str, ...]]:
    """The rules of each chain of a table, each on one line; {} for no table.

    Args:
        listing: of one table.

    Raises:
        ValueError: it is not whole.
    """
    lines = listing.splitlines()
    if lines and lines[-1] != "}":
        raise ValueError("the listing is not whole")
    found: dict[str, tuple[str, ...]] = {}
    name, block = "", list[str]()
    for line in lines:
        if line.startswith("\tchain "):
            name, block = line.split()[1], []
        elif name and line == "\t}":
            found[name], name = tuple(_rules(block)), ""
        elif name:
            block.append(line)
    return found


def _rules(block: list[str]) -> Iterator[str]:
    """A long set goes on in lines that are indented further."""
    rule = ""
    for line in block:
        if line[:3].strip():
            if rule:
                yield rule
            rule = "" if line.split()[0] in _HEADS else line.strip()
        else:
            rule = f"{rule} {line.strip()}" if rule else ""
    if rule:
        yield rule
