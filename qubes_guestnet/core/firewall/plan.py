# SPDX-License-Identifier: GPL-2.0-or-later
"""The difference between the loaded and the desired rules, as ordered operations.

Equal lists cost no transaction (F-32), and rules of other programs are not touched. Rules of ours that another program
deleted from `forward` stay deleted as long as one of ours is left there, because kill switches delete them. A chain
`qbs-…` belongs only to us, and is replaced if it differs from what was loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..namedtuple import NamedTuple
from ..values import IPAddress
from . import ruleset
from .binding import Bound
from .commits import ordered
from .lines import FAMILIES, set_of
from .listing import Element, Listed
from .operations import (
    ORDER,
    ChangeName,
    LoadFirewallTable,
    RemoveName,
    RemoveQubeChain,
    RemoveQubeRules,
    SetDnsServers,
    SetQubeRules,
)

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from .operations import Operation


class Wanted(NamedTuple):
    """The desired rules.

    Args:
        lists: address → its list, of both families.
        dns: the name servers by family; a missing family is left unchanged.
        kept: addresses whose loaded rules, if any, stay unchanged.
    """

    lists: Mapping[IPAddress, Bound] = {}
    dns: Mapping[int, frozenset[IPAddress]] = {}
    kept: frozenset[IPAddress] = frozenset()


def plan(listed: Mapping[int, Listed], wanted: Wanted) -> tuple[Operation, ...]:
    """Return the operations that turn the loaded rules into the desired ones; empty if they are equal.

    Args:
        listed: the loaded rules by family; a missing family has no table.
        wanted: the desired rules of both families.
    """
    found = [operation for version in FAMILIES for operation in _family(version, listed.get(version, Listed()), wanted)]
    return tuple(sorted(found, key=lambda operation: ORDER.index(type(operation))))


def is_missing(listed: Mapping[int, Listed]) -> bool:
    """Return whether a table, or a part of it that each qube needs, is missing or was changed."""
    return any(True for version in FAMILIES for _ in _table(version, listed.get(version, Listed())))


def lost_rules(version: int, listed: Listed) -> tuple[str, ...]:
    """Return the chains from which another program deleted some of our rules, for `check`."""
    rules = ruleset.own_rules(version)
    return tuple(chain for chain, own in rules.items() if listed.comments(chain).count(ruleset.COMMENT) < len(own))


def _family(version: int, listed: Listed, wanted: Wanted) -> Iterator[Operation]:
    lists = {address: bound for address, bound in wanted.lists.items() if address.version == version}
    kept = {address for address in wanted.kept if address.version == version} - set(lists)
    yield from _table(version, listed)
    servers = wanted.dns.get(version)
    if servers is not None and servers != (listed.dns or frozenset()):
        yield SetDnsServers(version, ordered(servers))
    yield from _names(version, listed, lists, kept)
    for address in ordered(lists):
        if not _is_loaded(listed, lists[address]):
            element = listed.qubes.get(address)
            displaces = element is not None and element.verdict != ruleset.verdict(address)
            yield SetQubeRules(lists[address], displaces)
    yield from _left(version, listed, lists, kept)


def _table(version: int, listed: Listed) -> Iterator[Operation]:
    """Yield the load of the table if a part of it is missing or changed, or if a chain has no rule of ours."""
    empty = tuple(chain for chain in ruleset.own_rules(version) if ruleset.COMMENT not in listed.comments(chain))
    if empty or listed.dns is None or not listed.is_whole:
        yield LoadFirewallTable(version, empty)


def _is_loaded(listed: Listed, bound: Bound) -> bool:
    """Return whether the rules of a qube are loaded. Another program may delete a rule and leave the element."""
    address = bound.ruleset.address
    chain = ruleset.chain_of(address)
    element = Element(ruleset.verdict(address), bound.signature)
    return listed.qubes.get(address) == element and listed.comments(chain) == bound.comments


def _names(version: int, listed: Listed, lists: Mapping[IPAddress, Bound], kept: set[IPAddress]) -> Iterator[Operation]:
    """Yield changes of the addresses of names, and removals of unused sets."""
    used: dict[str, frozenset[IPAddress]] = {}
    for bound in lists.values():
        for host in bound.hosts:
            used.setdefault(host, frozenset(bound.of(host).addresses))
    for host, addresses in sorted(used.items()):
        there = listed.names.get(host)
        if there != addresses:
            before = there or frozenset()
            yield ChangeName(version, host, ordered(addresses - before), ordered(before - addresses), there is None)
    staying = {ruleset.chain_of(address) for address in kept}
    for host in sorted(set(listed.names) - set(used)):
        word = f"@{set_of(host)} "
        foreign = (chain for chain in listed.rules if chain in staying or not ruleset.is_chain(chain))
        if not any(word in f"{rule} " for chain in foreign for rule in listed.rules[chain]):
            yield RemoveName(version, host)


def _left(version: int, listed: Listed, lists: Mapping[IPAddress, Bound], kept: set[IPAddress]) -> Iterator[Operation]:
    """Yield the removal of the loaded rules of qubes that are no longer attached."""
    for address in ordered(set(listed.qubes) - set(lists) - kept):
        yield RemoveQubeRules(address)
    staying = {ruleset.chain_of(address) for address in (*lists, *kept)}
    for chain in sorted(chain for chain in listed.rules if ruleset.is_chain(chain) and chain not in staying):
        keep = chain in listed.targets
        if not keep or listed.rules[chain]:
            yield RemoveQubeChain(version, chain, keep)
