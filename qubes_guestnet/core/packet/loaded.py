# SPDX-License-Identifier: GPL-2.0-or-later
"""All rules of the kernel as values, from `nft -j list ruleset`; the words of a rule are of `nft -a list ruleset`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from ..namedtuple import NamedTuple
from ..nft import listing as nft_listing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

Name = tuple[str, str, str]  # family, table, and a chain, set or map
_HANDLE = re.compile(r" # handle (\d+)$")
_COUNTED = re.compile(r"\bcounter packets \d+ bytes \d+")


class Rule(NamedTuple):
    """One rule.

    Args:
        text: in the words of nft, without what its counter shows.
        comment: its comment; "" for none.
        statements: conditions and statements, as nft prints them in JSON.
    """

    text: str
    comment: str
    statements: tuple[Mapping[str, Any], ...]


class Base(NamedTuple):
    """A chain with a hook.

    Args:
        name: family, table and name.
        kind: filter, nat or route.
        hook: prerouting, forward, input …
        priority: lower is earlier.
        policy: accept or drop.
    """

    name: Name
    kind: str
    hook: str
    priority: int
    policy: str


class Loaded(NamedTuple):
    """The rules in the kernel.

    Args:
        bases: chains with a hook, each hook in the order in which the kernel calls them.
        rules: chain → its rules.
        sets: set or map → its elements, as nft prints them.
        sizes: set → the most elements it takes.
    """

    bases: tuple[Base, ...] = ()
    rules: Mapping[Name, tuple[Rule, ...]] = {}
    sets: Mapping[Name, tuple[Any, ...]] = {}
    sizes: Mapping[Name, int] = {}


def parse(listed: Iterable[Mapping[str, Any]], text: str, dormant: Iterable[tuple[str, str]] = ()) -> Loaded:
    """Return the rules.

    Args:
        listed: the objects of `nft -j list ruleset`.
        text: of `nft -a list ruleset`.
        dormant: family and name of the tables whose chains the kernel does not call.

    Raises:
        ValueError: the listing is not understood.
    """
    words, asleep = dict(_words(text)), frozenset(dormant)
    bases: list[Base] = []
    rules: dict[Name, list[Rule]] = {}
    sets: dict[Name, tuple[Any, ...]] = {}
    sizes: dict[Name, int] = {}
    try:
        for entry in listed:
            for kind, each in entry.items():
                if kind == "chain":
                    name = each["family"], each["table"], each["name"]
                    rules.setdefault(name, [])
                    if "hook" in each and name[:2] not in asleep:
                        policy = each.get("policy", "accept")
                        bases.append(Base(name, each["type"], each["hook"], int(each["prio"]), policy))
                elif kind == "rule":
                    name = each["family"], each["table"], each["chain"]
                    said = words.get((*name[:2], each["handle"]), f"rule with handle {each['handle']}")
                    rules.setdefault(name, []).append(Rule(said, each.get("comment", ""), tuple(each["expr"])))
                elif kind in ("set", "map"):
                    name = each["family"], each["table"], each["name"]
                    sets[name] = tuple(each.get("elem", ()))
                    if "size" in each:
                        sizes[name] = int(each["size"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"unexpected object: {error!r}") from None
    ordered = tuple(sorted(bases, key=lambda base: base.priority))
    return Loaded(ordered, {name: tuple(each) for name, each in rules.items()}, sets, sizes)


def _words(text: str) -> Iterator[tuple[tuple[str, str, int], str]]:
    """Yield the words of each rule, by family, table and handle."""
    for table in re.split(r"^(?=table )", text, flags=re.MULTILINE):
        head = table.split(maxsplit=3)
        if head[:1] != ["table"]:
            continue
        for rules in nft_listing.chains(table.rstrip("\n")).values():
            for rule in rules:
                found = _HANDLE.search(rule)
                if found:
                    yield (head[1], head[2], int(found[1])), _COUNTED.sub("counter", rule[: found.start()])
