# SPDX-License-Identifier: GPL-2.0-or-later
"""What `status` and `check` say of the firewall of each qube: from its entries, and from what is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..namedtuple import NamedTuple
from ..values import IPAddress
from . import lines, ruleset
from .binding import bind
from .commits import ordered
from .entries import Stored
from .evaluator import shadowed
from .listing import Listed
from .parsing import parse
from .plan import lost_rules
from .rules import Ruleset

IN_FORCE, WAITING, BLOCKED, UNSEEN = "in force", "waiting", "blocked", "not seen"


class Condition(NamedTuple):
    """The firewall of one address.

    Args:
        state: IN_FORCE; WAITING: dom0 has committed no rules since its vif came, and its packets are dropped; BLOCKED:
            all is refused because of an error in the list; UNSEEN: what is loaded cannot be read.
        problems: all that is wrong with the list, in words.
        shadowed: name servers that the list allows as such and that an entry before that refuses, with that entry.
    """

    state: str
    problems: tuple[str, ...] = ()
    shadowed: tuple[tuple[IPAddress, int], ...] = ()


def conditions(
    addresses: Iterable[IPAddress], stored: Stored, listed: Mapping[int, Listed] | None
) -> Mapping[IPAddress, Condition]:
    """Return the condition of each address.

    Args:
        addresses: that have a vif.
        stored: the entries.
        listed: what is loaded, by family; None where it cannot be read.
    """
    return {address: _condition(address, stored, listed) for address in ordered(addresses)}


def _condition(address: IPAddress, stored: Stored, listed: Mapping[int, Listed] | None) -> Condition:
    entries = stored.sets.get(address)
    found = parse(address, entries) if entries is not None else Ruleset(address)
    problems = tuple(map(str, found.problems))
    if listed is None:
        return Condition(UNSEEN, problems)
    table = listed.get(address.version, Listed())
    if address not in table.qubes:
        return Condition(WAITING)
    blocked = table.comments(ruleset.chain_of(address))[-1:] == (lines.BLOCKED,)
    if blocked:
        return Condition(BLOCKED, problems)
    return Condition(IN_FORCE, problems, shadowed(bind(found, {}), table.dns or frozenset()))


def changed(listed: Mapping[int, Listed]) -> tuple[str, ...]:
    """Return table and chain of those that have lost some of our rules to another program."""
    return tuple(
        f"{lines.FAMILIES[version].table} {chain}"
        for version, table in sorted(listed.items())
        for chain in lost_rules(version, table)
    )
