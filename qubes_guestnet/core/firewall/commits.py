# SPDX-License-Identifier: GPL-2.0-or-later
"""Which sets of entries are in force: dom0's commit protocol, as one function from state to state.

dom0 removes a folder, writes policy and rules, and at last the empty key that commits them. QubesDB has no transaction,
so what is read may be half of a set, and nothing of it but a missing policy tells so. Rules:

1. A set counts when a commit of its address was seen; what was in force before stays until then.
2. A set that changed while it was read, or that lacks its policy, is read again. The set in force before stays for 100
   ms at most; then everything is refused until a whole set was read.
3. Between the attachment of a vif and the first commit since it was last detached nothing passes, without an answer:
   dom0 writes at once, a lost packet is sent again, and a refused one ends a program's start for good.
4. What QubesDB has of an address without a vif has no effect; nothing removes it there (behaviour B80).
5. When the agent starts, a committed set counts if its address has a vif: a restart changes nothing.

An event is a hint, in no order; so `seen` and `meanwhile` are paths without a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ..namedtuple import NamedTuple
from ..values import IPAddress
from .entries import Stored, told_of
from .parsing import POLICY, parse
from .rules import Ruleset

# Seconds: how long the former set stays in force, and how soon a set that is being written is read again.
PATIENCE, QUIET = 0.100, 0.005


class State(NamedTuple):
    """What one pass leaves for the next.

    Args:
        lists: address → the list in force.
        due: address → when its commit was first seen, while no whole set was read since.
        committed: addresses without a vif of which a commit was seen since they lost it.
        attached: addresses that had a vif.
        kept: addresses of which a former agent's rules, if any, stay loaded until their set is whole.
    """

    lists: Mapping[IPAddress, Ruleset] = {}
    due: Mapping[IPAddress, float] = {}
    committed: frozenset[IPAddress] = frozenset()
    attached: frozenset[IPAddress] = frozenset()
    kept: frozenset[IPAddress] = frozenset()


class Facts(NamedTuple):
    """What a pass has read.

    Args:
        now: monotonic, in seconds.
        stored: the entries.
        seen: paths that the watch gave before the entries were read.
        meanwhile: paths that it gave from then on until the read was over.
        attached: addresses that have a vif.
        detached: addresses of which a vif was detached since the last pass, also when they have one again.
        starts: the agent has just started; its watches were set before the entries were read (behaviour B77).
    """

    now: float
    stored: Stored = Stored()
    seen: Collection[str] = ()
    meanwhile: Collection[str] = ()
    attached: frozenset[IPAddress] = frozenset()
    detached: frozenset[IPAddress] = frozenset()
    starts: bool = False


class Outcome(NamedTuple):
    """What is in force.

    Args:
        state: for the next pass.
        lists: address → its list, of all that have a vif and a set in force.
        waiting: addresses that have a vif and no set: nothing of them passes.
        incomplete: addresses in `lists` that are refused only until their set is whole; their connections stay.
        kept: addresses of which what is loaded stays as it is.
        handled: addresses whose commit was handled now, well or not, for /qubes-firewall-handled/.
        again: when to read again without another event, in seconds of `now`; None: no need.
    """

    state: State
    lists: Mapping[IPAddress, Ruleset]
    waiting: frozenset[IPAddress]
    incomplete: frozenset[IPAddress]
    kept: frozenset[IPAddress]
    handled: frozenset[IPAddress]
    again: float | None


def advance(before: State, facts: Facts) -> Outcome:
    """Return what is in force now.

    Args:
        before: of the last pass; `State()` at the start.
        facts: of this one.
    """
    stirred, commits = _told(facts)
    lost = (before.attached - facts.attached) | facts.detached
    due = _due(before, facts, commits, lost)
    lists = {address: each for address, each in before.lists.items() if address in facts.attached - lost}
    whole = {address for address in due if _is_whole(facts.stored, address) and address not in stirred}
    handled = set(whole)
    lists |= {address: parse(address, facts.stored.sets[address]) for address in sorted(whole, key=_order)}
    late = {address for address, since in due.items() if address not in whole and facts.now >= since + PATIENCE}
    for address in late:
        if not _is_refusal(lists.get(address)):
            lists[address] = parse(address, {})
            handled.add(address)
    kept = (_started(facts) if facts.starts else before.kept & (facts.attached - lost)) - set(lists)
    left = {address: since for address, since in due.items() if address not in whole}
    state = State(
        lists=lists,
        due=left,
        committed=_unattached(before, facts, commits, lost),
        attached=facts.attached,
        kept=kept,
    )
    return Outcome(
        state,
        lists,
        waiting=facts.attached - set(lists) - kept,
        incomplete=frozenset(late),
        kept=kept,
        handled=frozenset(handled),
        again=_again(facts.now, left, late, stirred),
    )


def _told(facts: Facts) -> tuple[frozenset[IPAddress], frozenset[IPAddress]]:
    """Return the addresses whose entries changed while they were read, and those with a commit."""
    meanwhile = {told_of(path) for path in facts.meanwhile}
    seen = meanwhile | {told_of(path) for path in facts.seen}
    stirred = frozenset(address for address, _ in meanwhile if address is not None)
    return stirred, frozenset(address for address, commit in seen if address is not None and commit)


def _started(facts: Facts) -> frozenset[IPAddress]:
    """Return the addresses of which a committed set counts though its commit was not seen."""
    return facts.attached & facts.stored.committed


def _due(
    before: State, facts: Facts, commits: frozenset[IPAddress], lost: frozenset[IPAddress]
) -> dict[IPAddress, float]:
    """Return the addresses with a vif and a commit that was not handled yet, and since when."""
    due = {address: since for address, since in before.due.items() if address in facts.attached - lost}
    fresh = commits | (before.committed - facts.detached)
    if facts.starts:
        fresh |= _started(facts)
    for address in sorted(fresh & facts.attached, key=_order):
        due.setdefault(address, facts.now)
    return due


def _unattached(
    before: State, facts: Facts, commits: frozenset[IPAddress], lost: frozenset[IPAddress]
) -> frozenset[IPAddress]:
    """Return the addresses whose next vif needs no other commit; what QubesDB has no more is forgotten."""
    return (((before.committed - lost) | commits) - facts.attached) & facts.stored.committed


def _is_whole(stored: Stored, address: IPAddress) -> bool:
    return POLICY in stored.sets.get(address, {})


def _is_refusal(ruleset: Ruleset | None) -> bool:
    """Whether a list is the one of a set that is not whole."""
    return ruleset is not None and ruleset == parse(ruleset.address, {})


def _again(
    now: float, due: Mapping[IPAddress, float], late: Collection[IPAddress], stirred: Collection[IPAddress]
) -> float | None:
    """Return when to read again. A set that stays without a policy after all waits for an event."""
    times = [now + QUIET for address in due if address in stirred]
    times += [min(now + QUIET, since + PATIENCE) for address, since in due.items() if address not in late]
    return min(times, default=None)


def _order(address: IPAddress) -> tuple[int, int]:
    return address.version, int(address)


def ordered(addresses: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
    """Return addresses in the order in which they are shown: IPv4 first, by number."""
    return tuple(sorted(addresses, key=_order))
