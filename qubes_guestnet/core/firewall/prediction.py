# SPDX-License-Identifier: GPL-2.0-or-later
"""Predict the listing after a plan, without running nft.

Listing the rules of 50 qubes takes longer than loading those of one. While the generation of the ruleset shows that no
other program has changed anything, the prediction replaces the listing. Its rules are those of our texts, not as nft
prints them; their comments, by which a plan compares them, are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..values import IPAddress
from . import ruleset
from .binding import Bound
from .lines import FAMILIES
from .listing import Element, Listed
from .operations import (
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
    from typing import TypeVar

    from .operations import Operation

    Key = TypeVar("Key")
    Value = TypeVar("Value")


def after(listed: Mapping[int, Listed], operations: Iterable[Operation]) -> dict[int, Listed]:
    """Return the listing after these operations, by family.

    Args:
        listed: the listing before them.
        operations: all operations of one plan, in order, all carried out.
    """
    found = {version: listed.get(version, Listed()) for version in FAMILIES}
    for operation in operations:
        version = _version(operation)
        found[version] = _after(found[version], operation)
    return found


def _version(operation: Operation) -> int:
    if isinstance(operation, SetQubeRules):
        return operation.bound.ruleset.address.version
    return operation.address.version if isinstance(operation, RemoveQubeRules) else operation.version


def _after(listed: Listed, operation: Operation) -> Listed:
    if isinstance(operation, SetQubeRules):
        return _with_qube(listed, operation.bound)
    if isinstance(operation, RemoveQubeRules):
        return listed._replace(qubes=_without(listed.qubes, operation.address))
    if isinstance(operation, ChangeName):
        before = listed.names.get(operation.host, frozenset[IPAddress]())
        addresses = (before - frozenset(operation.remove)) | frozenset(operation.add)
        return listed._replace(names={**listed.names, operation.host: addresses})
    if isinstance(operation, RemoveName):
        return listed._replace(names=_without(listed.names, operation.host))
    if isinstance(operation, SetDnsServers):
        return listed._replace(dns=frozenset(operation.servers))
    if isinstance(operation, RemoveQubeChain):
        rules = _without(listed.rules, operation.chain)
        return listed._replace(rules={**rules, operation.chain: ()} if operation.keep else rules)
    return _with_table(listed, operation)


def _with_qube(listed: Listed, bound: Bound) -> Listed:
    address = bound.ruleset.address
    element = Element(ruleset.verdict(address), bound.signature)
    return listed._replace(
        rules={**listed.rules, ruleset.chain_of(address): bound.rules},
        qubes={**listed.qubes, address: element},
    )


def _with_table(listed: Listed, operation: LoadFirewallTable) -> Listed:
    rules = {chain: listed.rules.get(chain, ()) for chain in ruleset.CHAINS}
    for chain, own in ruleset.own_rules(operation.version).items():
        if chain in operation.fill:
            rules[chain] += tuple(f'{rule} comment "{ruleset.COMMENT}"' for rule in own)
    targets = listed.targets | {ruleset.QUBES_FORWARD}
    return listed._replace(
        rules={**listed.rules, **rules}, dns=listed.dns or frozenset(), targets=targets, is_whole=True
    )


def _without(found: Mapping[Key, Value], key: Key) -> dict[Key, Value]:
    return {each: value for each, value in found.items() if each != key}
