# SPDX-License-Identifier: GPL-2.0-or-later
"""The entries of a list that never decide, because an earlier entry matches all of their packets."""

from __future__ import annotations

from collections.abc import Mapping

from .binding import Bound
from .rules import EVERY_PORT, PROTOCOLS, Rule


def covered(bound: Bound) -> Mapping[int, int]:
    """Return the entries that never decide, each with the first entry that matches all of its packets.

    Only a single earlier entry is considered, not several together. An entry with a name covers only entries with the
    same name.

    Args:
        bound: the list.
    """
    found: dict[int, int] = {}
    deciding: list[Rule] = []
    for rule in bound.ruleset.rules:
        if rule.is_empty:
            continue
        earlier = next((each for each in deciding if _covers(each, rule)), None)
        if earlier is None:
            deciding.append(rule)
        else:
            found[rule.number] = earlier.number
    return found


def _covers(earlier: Rule, rule: Rule) -> bool:
    """Return whether a rule matches each packet that another one matches."""
    if earlier.network is not None and (rule.network is None or not _is_within(rule, earlier)):
        return False
    if earlier.host is not None and (earlier.host != rule.host or not earlier.host):
        return False
    if earlier.dns and not rule.dns:
        return False
    if not _protocols(earlier).issuperset(_protocols(rule)):
        return False
    if earlier.icmp_type is not None and earlier.icmp_type != rule.icmp_type:
        return False
    ports, own = earlier.destination_ports, rule.destination_ports
    if ports is None or (ports == EVERY_PORT and own is not None):
        return True
    return own is not None and ports.first <= own.first and own.last <= ports.last


def _is_within(rule: Rule, earlier: Rule) -> bool:
    one, other = rule.network, earlier.network
    assert one is not None
    assert other is not None
    return one.prefixlen >= other.prefixlen and one.network_address in other


def _protocols(rule: Rule) -> frozenset[str]:
    """Return the protocols that a rule matches, including "" if it matches other protocols too."""
    return frozenset(rule.protocols or (*PROTOCOLS, ""))
