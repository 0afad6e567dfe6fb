# SPDX-License-Identifier: GPL-2.0-or-later
"""The loaded rules, parsed from `nft -s list table` of our tables, as far as a plan needs them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping

from ..namedtuple import NamedTuple
from ..nft import listing as nft_listing
from ..nft.listing_blocks import taken_apart
from ..nft.tables import DNS_SET, FIREWALL_MAP
from ..values import IPAddress
from . import ruleset
from .lines import host_of

_COMMENT = re.compile(r' comment "([^"]*)"$')
_COUNTER = re.compile(r'\bcounter packets (\d+) bytes \d+ .*comment "([^"]*)"$')
_TARGET = re.compile(r"\b(?:jump|goto) ([^\s,]+)")
_ELEMENT = re.compile(r'([0-9a-f.:]+)(?: comment "([^"]*)")? : (.+)')


class Element(NamedTuple):
    """An element of the map.

    Args:
        verdict: as nft prints it: "jump" and a chain.
        comment: the signature of the rules in that chain.
    """

    verdict: str
    comment: str


class Listed(NamedTuple):
    """The content of one family's table; empty if the table is missing.

    Args:
        rules: chain → its rules.
        qubes: address → its element.
        names: host name → its addresses.
        dns: the name servers; None: the set is missing.
        targets: chains to which rules, or elements of other maps, jump.
        is_whole: the map and all chains exist, nothing is dormant, and the policy is drop.
    """

    rules: Mapping[str, tuple[str, ...]] = {}
    qubes: Mapping[IPAddress, Element] = {}
    names: Mapping[str, frozenset[IPAddress]] = {}
    dns: frozenset[IPAddress] | None = None
    targets: frozenset[str] = frozenset()
    is_whole: bool = False

    def comments(self, chain: str) -> tuple[str, ...]:
        """Return the comment of each rule of a chain, "" for one without."""
        return tuple(match[1] if (match := _COMMENT.search(rule)) else "" for rule in self.rules.get(chain, ()))


def parse(text: str) -> Listed:
    """Parse the content of a table.

    Args:
        text: output of `nft -s list table ip qubes-firewall`, or ip6; "" for a missing table.

    Raises:
        ValueError: the listing is incomplete.
    """
    own, blocks = taken_apart(text)
    qubes: dict[IPAddress, Element] = {}
    names: dict[str, frozenset[IPAddress]] = {}
    dns, targets = None, set[str]()
    for head, block in blocks.items():
        kind, name = head.split()[:2]
        host = host_of(name)
        if kind == "map" and name == FIREWALL_MAP:
            qubes = dict(_elements(block))
            continue
        targets.update(_TARGET.findall(block))
        if kind == "set" and name == DNS_SET:
            dns = frozenset(map(ipaddress.ip_address, _members(block)))
        elif kind == "set" and host is not None:
            names[host] = frozenset(map(ipaddress.ip_address, _members(block)))
    heads = (f"map {FIREWALL_MAP} {{", *(f"chain {chain} {{" for chain in ruleset.CHAINS))
    is_whole = (
        "dormant" not in own
        and all(head in blocks for head in heads)
        and all(f"\t{hook}\n" in blocks[f"chain {chain} {{"] for chain, hook in ruleset.HOOKS.items())
    )
    return Listed(nft_listing.chains(text), qubes, names, dns, frozenset(targets), is_whole)


def packets(text: str) -> dict[str, dict[str, int]]:
    """Return the packet counts of each qube's rules: chain → comment → number.

    The rules see only the first packet of a connection, and each repetition of a refused one.

    Args:
        text: output of `nft list table`, with its counters.

    Raises:
        ValueError: the listing is incomplete.
    """
    found: dict[str, dict[str, int]] = {}
    for chain, rules in nft_listing.chains(text).items():
        if ruleset.is_chain(chain):
            counts = filter(None, map(_COUNTER.search, rules))
            found[chain] = {match[2]: int(match[1]) for match in counts}
    return found


def _elements(block: str) -> Iterator[tuple[IPAddress, Element]]:
    """Return the elements of our map."""
    for match in map(_ELEMENT.fullmatch, _members(block)):
        if match is not None:
            yield ipaddress.ip_address(match[1]), Element(match[3], match[2] or "")


def _members(block: str) -> Iterator[str]:
    """Return the elements of a set's block, which may span several lines."""
    _, found, tail = block.partition("elements = {")
    for member in " ".join(tail.partition("}")[0].split()).split(","):
        if found and member.strip():
            yield member.strip()
