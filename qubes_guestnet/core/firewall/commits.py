# SPDX-License-Identifier: GPL-2.0-or-later
"""The sets of entries in force: dom0's commit protocol, as one function from state to state.

dom0 removes a folder, writes policy and rules, and finally the empty key that commits them. QubesDB has no transaction,
so a reading may contain half of a set, possibly of a second one that dom0 began after the commit. Rules:

1. A set takes effect when a commit of its address was seen; until then the former set stays in force.
2. A set is complete if it has its policy, did not change while it was read, and the last event of its address is a
   commit. Until it is complete, the former set stays in force for at most 100 ms; then everything is refused.
3. From the attachment of a vif until its first commit all its packets are dropped without an answer: dom0 writes soon,
   and programs re-send a lost packet, but give up after a refused one.
4. Entries of an address without a vif have no effect, and stay in QubesDB (behaviour B80).
5. When the agent starts, a committed set takes effect if its address has a vif: a restart changes nothing.
6. When the provider boots, a committed set takes effect for the first vif of its address: by then dom0 has written the
   lists of all running qubes, and attaches their vifs without another commit.
7. For a vif that existed before the agent was notified of it, and for one that gets a late fake address (#9318), dom0
   has already committed: a committed set takes effect, and one in force stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..namedtuple import NamedTuple
from ..values import IPAddress
from .entries import Stored, told_of
from .parsing import POLICY, parse
from .rules import Ruleset

# Seconds: how long the former set stays in force, how soon a set that is being written is read again, and when a write
# without a commit has ended: dom0 was stopped, or the events came in another order.
PATIENCE, QUIET, ABANDONED = 0.100, 0.005, 1.0


class State(NamedTuple):
    """The state between passes.

    Args:
        lists: address → the list in force.
        due: address → when its commit was first seen, if no complete set was read since.
        writing: address → time of its last event, if that was not a commit.
        committed: addresses without a vif that have a commit since they lost it, or since the boot.
        attached: addresses that had a vif.
        kept: addresses for which a former agent's rules, if any, stay loaded until their set is complete.
    """

    lists: Mapping[IPAddress, Ruleset] = {}
    due: Mapping[IPAddress, float] = {}
    writing: Mapping[IPAddress, float] = {}
    committed: frozenset[IPAddress] = frozenset()
    attached: frozenset[IPAddress] = frozenset()
    kept: frozenset[IPAddress] = frozenset()


class Facts(NamedTuple):
    """The facts that a pass has read.

    Args:
        now: monotonic, in seconds.
        stored: the entries.
        seen: paths from the watch before the entries were read, in order.
        meanwhile: paths from the watch while the entries were read, in order.
        attached: addresses that have a vif.
        detached: addresses whose vif was detached since the last pass, even if they have one again.
        starts: the agent has just started, or has connected to QubesDB again and may have missed commits. The watches
            were set before the entries were read (behaviour B77).
        boots: nothing has been enforced since this qube booted.
        found: addresses of vifs that the agent itself found, not announced by Xen's hotplug (rule 7).
    """

    now: float
    stored: Stored = Stored()
    seen: tuple[str, ...] = ()
    meanwhile: tuple[str, ...] = ()
    attached: frozenset[IPAddress] = frozenset()
    detached: frozenset[IPAddress] = frozenset()
    starts: bool = False
    boots: bool = False
    found: frozenset[IPAddress] = frozenset()


class Outcome(NamedTuple):
    """The lists in force.

    Args:
        state: for the next pass.
        incomplete: addresses in `lists` that are refused only until their set is complete. Their connections stay; the
            next list is compared with no former one (`connections.to_end`).
        handled: addresses whose commit was handled now, successfully or not, for /qubes-firewall-handled/.
        again: when to read again without another event, on the clock of `now`; None for never.
    """

    state: State = State()
    incomplete: frozenset[IPAddress] = frozenset()
    handled: frozenset[IPAddress] = frozenset()
    again: float | None = None

    @property
    def lists(self) -> Mapping[IPAddress, Ruleset]:
        """Return address → list, for all addresses with a vif and a set in force."""
        return self.state.lists

    @property
    def kept(self) -> frozenset[IPAddress]:
        """Return the addresses whose loaded rules stay unchanged."""
        return self.state.kept

    @property
    def waiting(self) -> frozenset[IPAddress]:
        """Return the addresses with a vif but without a set, whose packets are dropped."""
        return self.state.attached - set(self.lists) - self.kept


def advance(before: State, facts: Facts) -> Outcome:
    """Return the lists in force now.

    Args:
        before: state of the last pass; `State()` at the start.
        facts: facts of this pass.
    """
    told = map(told_of, (*facts.seen, *facts.meanwhile))
    commits = frozenset(address for address, commit in told if commit and address is not None)
    lost = (before.attached - facts.attached) | facts.detached
    due = _due(before, facts, commits, lost)
    writing = _writing(before, facts)
    read = _Read(facts, writing)
    lists = {address: each for address, each in before.lists.items() if address in facts.attached - lost}
    whole = {address for address in due if read.is_whole(address)}
    handled = set(whole)
    lists |= {address: parse(address, facts.stored.sets[address]) for address in ordered(whole)}
    late = {address for address, since in due.items() if address not in whole and facts.now >= since + PATIENCE}
    for address in late:
        refusal = parse(address, {})
        if lists.get(address) != refusal:
            lists[address] = refusal
            handled.add(address)
    kept = (_started(facts) if facts.starts else before.kept & (facts.attached - lost)) - set(lists)
    left = {address: since for address, since in due.items() if address not in whole}
    committed = _unattached(before, facts, commits, lost)
    return Outcome(
        State(lists, left, writing, committed, facts.attached, kept),
        incomplete=frozenset(late),
        handled=frozenset(handled),
        again=read.again(left, late),
    )


def _writing(before: State, facts: Facts) -> dict[IPAddress, float]:
    """Return the addresses whose set is being written, and the time of their last event."""
    writing = dict(before.writing)
    known = facts.attached | set(facts.stored.sets) | {address for address, _ in map(told_of, facts.meanwhile)}
    for address, commit in map(told_of, (*facts.seen, *facts.meanwhile)):
        if address is not None:
            writing[address] = facts.now
        if address is not None and commit:
            del writing[address]
    return {each: since for each, since in writing.items() if each in known}


class _Read:
    """The entries, and which sets among them are complete."""

    def __init__(self, facts: Facts, writing: Mapping[IPAddress, float]) -> None:
        self._now, self._sets, self._writing = facts.now, facts.stored.sets, writing
        self._stirred = frozenset(address for address, _ in map(told_of, facts.meanwhile))

    def is_whole(self, address: IPAddress) -> bool:
        """Return whether the set of an address is complete."""
        return (
            POLICY in self._sets.get(address, {})
            and address not in self._stirred
            and self._now >= self._writing.get(address, -ABANDONED) + ABANDONED
        )

    def again(self, due: Mapping[IPAddress, float], late: Iterable[IPAddress]) -> float | None:
        """Return when to read again. A set that still has no policy after that waits for an event."""
        times = [min(self._now + QUIET, since + PATIENCE) for address, since in due.items() if address not in late]
        for address in late:
            ended = self._writing.get(address, self._now) + ABANDONED
            times += [self._now + QUIET] * (address in self._stirred)
            times += [ended] * (address in self._writing and ended > self._now)
        return min(times, default=None)


def _started(facts: Facts) -> frozenset[IPAddress]:
    """Return the addresses whose committed set takes effect although its commit was not seen."""
    return facts.attached & facts.stored.committed


def _due(
    before: State, facts: Facts, commits: frozenset[IPAddress], lost: frozenset[IPAddress]
) -> dict[IPAddress, float]:
    """Return the addresses with a vif and an unhandled commit, and the time of the commit."""
    due = {address: since for address, since in before.due.items() if address in facts.attached - lost}
    fresh = commits | (before.committed - facts.detached) | ((facts.found & facts.stored.committed) - set(before.lists))
    if facts.starts:
        fresh |= _started(facts)
    for address in ordered(fresh & facts.attached):
        due.setdefault(address, facts.now)
    return due


def _unattached(
    before: State, facts: Facts, commits: frozenset[IPAddress], lost: frozenset[IPAddress]
) -> frozenset[IPAddress]:
    """Return the addresses whose next vif needs no other commit, if QubesDB still has their entries."""
    known = facts.stored.committed if facts.boots else frozenset[IPAddress]()
    # A commit that was written while the entries were read is not among them.
    stored = facts.stored.committed | {address for address, commit in map(told_of, facts.meanwhile) if commit}
    return frozenset(((before.committed - lost) | commits | known) - facts.attached) & stored


def ordered(addresses: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
    """Return addresses in display order: IPv4 first, by number."""
    return tuple(sorted(addresses, key=lambda address: (address.version, int(address))))
