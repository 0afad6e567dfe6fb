# SPDX-License-Identifier: GPL-2.0-or-later
"""Split the output of `nft -s list table` into chains and rules; other modules parse the rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

# Lines of a chain that are none of its rules.
_HEADS = frozenset({"type", "policy", "comment"})
# What the statement `log` takes; with a group it goes to a program, and not to the kernel's log.
KERNEL_LOG = frozenset({"prefix", "level", "flags", "snaplen"})
ANY_LOG = KERNEL_LOG | {"group", "queue-threshold"}


def chains(listing: str) -> Mapping[str, tuple[str, ...]]:
    """Return the rules of each chain of a table, each on one line; {} for no table.

    Args:
        listing: of one table.

    Raises:
        ValueError: it is not whole.
    """
    lines = listing.splitlines()
    if lines and lines[-1] != "}":
        raise ValueError("the listing is incomplete")
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
    """Join the lines of a long set, which continues in further indented lines."""
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


def words(rule: str) -> list[str]:
    """Return the words of a rule; what is in quotation marks is one, and its comment is none.

    Raises:
        ValueError: a quotation mark is missing.
    """
    parts = rule.split('"')
    if len(parts) % 2 == 0:
        raise ValueError("a quotation mark is missing")
    found: list[str] = []
    for number, part in enumerate(parts):
        found += [f'"{part}"'] if number % 2 else part.split()
    return found[:-2] if found[-2:-1] == ["comment"] else found


def without_log(rule: list[str], options: frozenset[str] = ANY_LOG) -> list[str]:
    """Return the words of a rule without what it writes into the log.

    Args:
        rule: its `words`.
        options: of the statement `log` that go with it; another one stays.
    """
    if "log" not in rule:
        return rule
    begin = rule.index("log")
    end = begin + 1
    while end < len(rule) and rule[end] in options:
        end += 3 if rule[end : end + 1] == ["flags"] and rule[end + 1 : end + 2] in (["tcp"], ["ip"]) else 2
    return [*rule[:begin], *rule[end:]]
