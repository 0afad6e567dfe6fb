# SPDX-License-Identifier: GPL-2.0-or-later
"""The redirection of the virtual DNS addresses, from what nft lists of it to operations.

Rules of another program in `dnat-dns` stay in place of ours if `foreign_redirection` keeps them (behaviour B123).
They are told from ours by the sum of what nft listed after our last load. The record says beforehand where a
redirection is about to lead: a killed agent would else take it for another program's (B148).
"""

from __future__ import annotations

from ipaddress import IPv4Address

from .. import endpoint
from ..endpoint import Endpoint
from ..namedtuple import NamedTuple
from ..nft import rules_text
from ..nft.listing_blocks import chosen
from ..operations import Outcome, Planned
from ..owned_state import DOUBTED, FOREIGN, MISSING, Loaded, Record, checksum
from ..shared_operations import PurgeConntrack
from . import foreign_redirection, upstream_servers
from .foreign_redirection import Judgement
from .redirection_operations import KeepForeignRedirection, LoadRedirection
from .upstream_servers import Choice


class Asked(NamedTuple):
    """What is asked for.

    Args:
        virtual: the addresses that the qubes ask.
        choice: where they are to lead.
    """

    virtual: tuple[IPv4Address, ...]
    choice: Choice

    @property
    def load(self) -> LoadRedirection:
        """The operation that does it where no rule of another program is kept."""
        refused = (
            "" if self.choice.servers else ("rejected" if self.choice.problem else f"rejected, {self.choice.reason}")
        )
        return LoadRedirection(self.virtual, self.choice.servers, refused)

    @property
    def ways(self) -> _Ways:
        """What rules of other programs are judged for."""
        return self.virtual, self.choice.servers


_Ways = tuple[tuple[IPv4Address, ...], tuple[Endpoint, ...]]


class Facts(NamedTuple):
    """All that is looked at.

    Args:
        generation: of the rules, before they were listed.
        listing: `nft -s list table ip qubes`.
        undisturbed: between our last transaction and the end of the listing no other program changed rules.
        ours: the generation that our last transaction made.
        now: in seconds.
        patient: another program may still be at work on the chain, and is waited for. A command ends and cannot wait.
    """

    generation: int
    listing: str = ""
    undisturbed: bool = True
    ours: int = -1
    now: float = 0
    patient: bool = False

    @property
    def sum(self) -> str:
        """Of the chains as they are now."""
        listed = chosen({"ip": self.listing}, "chain", rules_text.DNS_CHAINS)
        return checksum(listed.encode()) if listed else MISSING


class Memory(NamedTuple):
    """What one process remembers from pass to pass.

    Args:
        foreign: what rules of another program were kept for, and where they lead; None: none are kept.
        judged: generation of the rules when they were judged.
        disturbed: when the chain was first seen changed by another program, when it changed last, and its sum then.
    """

    foreign: tuple[_Ways, Judgement] | None = None
    judged: int = -1
    disturbed: tuple[float, float, str] | None = None


class Decision(NamedTuple):
    """What comes of it.

    Args:
        planned: operations, and the record before them.
        memory: for the next time.
        choice: where names go; by rules of another program, where these are kept.
        right: the generation of the rules at which the chains are as they should be; None: at none.
    """

    planned: Planned
    memory: Memory
    choice: Choice
    right: int | None = None


def known(asked: Asked, memory: Memory, record: Record) -> Choice | None:
    """Return the redirection known from the last listing; None if the chains have to be listed.

    Args:
        asked: what is wanted now.
        memory: of the process.
        record: the owned record.
    """
    there = record.provided.names.text
    if there == FOREIGN and memory.foreign is not None and memory.foreign[0] == asked.ways:
        return _by_others(memory.foreign[1], asked.choice)
    return asked.choice if there == _sum(asked) else None


def plan(asked: Asked, facts: Facts, memory: Memory, record: Record, so_far: Outcome) -> Decision:
    """Return the pending operations.

    Args:
        asked: what is wanted.
        facts: observed.
        memory: of the process.
        record: the owned record.
        so_far: what came of the operations of this pass.
    """
    if any(isinstance(op, LoadRedirection | KeepForeignRedirection) for op in so_far.done):
        return _loaded(asked, facts, memory, record, so_far)
    there, now = record.provided.names, facts.sum
    if (there.text, there.seen) == (_sum(asked), now):
        memory = memory._replace(disturbed=None)
        purge = (PurgeConntrack(asked.virtual),) if asked.virtual and record.provided.pending is not None else ()
        if purge and purge[0] not in so_far.done:  # the same was loaded again by an agent that was killed after it
            return Decision(Planned(purge, record), memory, asked.choice)
        return Decision(Planned((), _noted(record, pending=None)), memory, asked.choice, facts.generation)
    changed = now not in (there.seen, MISSING)
    if not changed and there.text != FOREIGN:
        return _replaced(asked, memory, record)
    found = _Found(asked, facts, record)
    # The same as ours is ours: left behind by a script that did this before, or by an agent without its record, or by
    # one that was killed between the load and the record (behaviour B148).
    if found.judgement.kept and not found.same:
        return _kept(asked, facts, found, record, so_far, changed=changed)
    # No other program is at work on it.
    doubted = found.same and (there.seen == DOUBTED or record.provided.pending is not None)
    if not changed or not there.text or doubted or not facts.patient:
        return _replaced(asked, memory, record)
    first, last, before = memory.disturbed or (facts.now, facts.now, now)
    last = last if before == now else facts.now
    memory = memory._replace(disturbed=(first, last, now))
    if foreign_redirection.unfinished(first, last, facts.now):
        choice = asked.choice._replace(again=foreign_redirection.QUIET_SECONDS)
        return Decision(Planned((), record), memory, choice)
    return _replaced(asked, memory, record, found.judgement.words)


class _Found:
    """The rules that are in the chain.

    Attributes:
        rules: all of them.
        ours: those that are to be there by us.
        fresh: all, with ours among them as they are to be.
        same: there are no others than ours.
        judgement: where they lead.
    """

    def __init__(self, asked: Asked, facts: Facts, record: Record) -> None:
        provided, virtual = record.provided, asked.virtual
        self.rules = foreign_redirection.rules(facts.listing)
        self.ours = rules_text.dnat_rules(upstream_servers.pairs(*asked.ways))
        former, announced = _rules(provided.servers, virtual), _rules(provided.pending or (), virtual)
        # Our former rules too: servers may change while another program empties the other chain.
        known = (self.ours, former) if provided.pending is None else (self.ours, former, announced)
        self.same = self.rules in known
        kept = foreign_redirection.refreshed(self.rules, former, self.ours)
        self.fresh = foreign_redirection.refreshed(kept, announced, self.ours)
        self.judgement = foreign_redirection.judge(facts.listing, virtual)


def _kept(asked: Asked, facts: Facts, found: _Found, record: Record, so_far: Outcome, *, changed: bool) -> Decision:
    """Keep another program's rules, update ours among them, and reject all other queries."""
    memory = Memory((asked.ways, found.judgement), facts.generation)
    choice = _by_others(found.judgement, asked.choice)
    if not changed and found.fresh == found.rules:
        return Decision(Planned((), record), memory, choice, facts.generation)
    # Where ours go on beside theirs, what is led to the provider of this qube by its own address passes.
    passing = asked.choice.servers if frozenset(found.ours) & frozenset(found.fresh) else ()
    rules = found.fresh if found.fresh != found.rules else None
    op = KeepForeignRedirection(rules, asked.virtual, passing, found.judgement.words)
    if op in so_far.failed:
        memory = Memory()  # else the next pass takes it for done
    return Decision(_announced(op, asked, record), memory, choice)


def _replaced(asked: Asked, memory: Memory, record: Record, trouble: str = "") -> Decision:
    """Ours take the place of what is there."""
    op = asked.load._replace(trouble=trouble)
    memory = memory._replace(foreign=None, disturbed=None)
    return Decision(_announced(op, asked, record), memory, asked.choice)


def _announced(op: LoadRedirection | KeepForeignRedirection, asked: Asked, record: Record) -> Planned:
    # Else a qube that asks from the same port is led to the former server for ever.
    purge = (PurgeConntrack(asked.virtual),) if asked.virtual else ()
    return Planned((op, *purge), _noted(record, pending=tuple(map(str, asked.choice.servers))))


def _loaded(asked: Asked, facts: Facts, memory: Memory, record: Record, so_far: Outcome) -> Decision:
    """Record the redirection in force, once the connections of the former one are deleted."""
    judgement = memory.foreign[1] if memory.foreign is not None else None
    choice = asked.choice if judgement is None else _by_others(judgement, asked.choice)
    if any(isinstance(op, PurgeConntrack) for op in so_far.failed):
        return Decision(Planned((), record), memory, choice)  # the next pass does both again
    # Whatever was done between is not taken for ours; the next pass judges it (behaviour B148).
    good = facts.undisturbed and (judgement is None or memory.judged == facts.ours - 1)
    loaded = Loaded(_sum(asked) if judgement is None else FOREIGN, facts.sum if good else DOUBTED)
    servers = tuple(map(str, asked.choice.servers)) or record.provided.servers
    provided = record.provided._replace(names=loaded, servers=servers, pending=None)
    return Decision(Planned((), record._replace(provided=provided)), memory, choice, facts.ours if good else None)


def _by_others(judgement: Judgement, choice: Choice) -> Choice:
    """Return the redirection that the chain's rules make."""
    reason = f"rules of another program in the chain ip qubes dnat-dns: {judgement.words}"
    return Choice(judgement.servers, reason, upstream_servers.FOREIGN, choice.last)


def _sum(asked: Asked) -> str:
    return checksum(asked.load.text.encode())


def _rules(servers: tuple[str, ...], virtual: tuple[IPv4Address, ...]) -> tuple[str, ...]:
    """Return the rules of a redirection to these servers, as recorded."""
    return rules_text.dnat_rules(upstream_servers.pairs(virtual, tuple(map(endpoint.parse, servers))))


def _noted(record: Record, pending: tuple[str, ...] | None) -> Record:
    return record._replace(provided=record.provided._replace(pending=pending))
