# SPDX-License-Identifier: GPL-2.0-or-later
"""The condition of each client qube's firewall for `status` and `check`, from its entries and the loaded rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ..namedtuple import NamedTuple
from ..values import IPAddress
from . import lines, ruleset
from .binding import bind
from .commits import ordered
from .entries import Stored
from .evaluator import shadowed
from .listing import Listed
from .name_cache import Cache
from .name_messages import Question
from .name_news import trouble
from .parsing import parse
from .plan import lost_rules
from .rules import Ruleset

_NOTHING = Cache()
IN_FORCE, WAITING, BLOCKED, UNSEEN = "in force", "waiting", "blocked", "not seen"


class Condition(NamedTuple):
    """The firewall of one address.

    Args:
        state: IN_FORCE; WAITING: dom0 has committed no rules since its vif appeared, and its packets are dropped;
            BLOCKED: everything is refused because of an error in the list; UNSEEN: the loaded rules are unreadable.
        problems: all problems of the list, in words.
        shadowed: name servers that the list allows as such but an earlier entry refuses, with that entry.
        names: names with a problem: name, code of `name_news`, and the problem in words.
    """

    state: str
    problems: tuple[str, ...] = ()
    shadowed: tuple[tuple[IPAddress, int], ...] = ()
    names: tuple[tuple[str, str, str], ...] = ()


def conditions(
    addresses: Iterable[IPAddress], stored: Stored, listed: Mapping[int, Listed] | None, cache: Cache = _NOTHING
) -> Mapping[IPAddress, Condition]:
    """Return the condition of each address.

    Args:
        addresses: addresses with a vif.
        stored: the entries.
        listed: the loaded rules, by family; None if unreadable.
        cache: the agent's cache of names.
    """
    sets = stored.sets
    found = (parse(each, sets[each]) if each in sets else Ruleset(each) for each in ordered(addresses))
    return {each.address: condition(each, listed, cache) for each in found}


def condition(found: Ruleset, listed: Mapping[int, Listed] | None, cache: Cache = _NOTHING) -> Condition:
    """Return the condition of one address.

    Args:
        found: its list; an empty one where dom0 has written none.
        listed: what is loaded, by family; None where it cannot be read.
        cache: what the agent knows of names.
    """
    address = found.address
    problems = tuple(map(str, found.problems))
    if listed is None:
        return Condition(UNSEEN, problems)
    table = listed.get(address.version, Listed())
    if address not in table.qubes:
        return Condition(WAITING)
    blocked = table.comments(ruleset.chain_of(address))[-1:] == (lines.BLOCKED,)
    names = tuple(_names(found, cache))
    if blocked:
        return Condition(BLOCKED, problems, names=names)
    return Condition(IN_FORCE, problems, shadowed(bind(found, {}), table.dns or frozenset()), names)


def _names(found: Ruleset, cache: Cache) -> Iterator[tuple[str, str, str]]:
    for host in found.hosts:
        question = Question(found.address.version, host)
        entry = cache.entries.get(question)
        code, words = trouble(question, entry) if entry is not None else ("", "")
        if code:
            yield host, code, words


def changed(listed: Mapping[int, Listed]) -> tuple[str, ...]:
    """Return table and chain of each chain from which another program has removed rules of ours."""
    return tuple(
        f"{lines.FAMILIES[version].table} {chain}"
        for version, table in sorted(listed.items())
        for chain in lost_rules(version, table)
    )
