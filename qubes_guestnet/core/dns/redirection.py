# SPDX-License-Identifier: GPL-2.0-or-later
"""Plan the redirection of the virtual DNS addresses from nft's listing.

Rules of another program in `dnat-dns` replace ours if `foreign_redirection` keeps them (behaviour B123). The checksum
of nft's listing after our last load distinguishes them from ours. The record has the targets of a redirection before it
is loaded; otherwise an agent that was killed meanwhile would attribute it to another program (B148).
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
    """The desired redirection.

    Args:
        virtual: the addresses that client qubes query.
        choice: their targets.
    """

    virtual: tuple[IPv4Address, ...]
    choice: Choice

    @property
    def load(self) -> LoadRedirection:
        """Return the operation that loads it, if no rules of another program are kept."""
        refused = (
            "" if self.choice.servers else ("rejected" if self.choice.problem else f"rejected, {self.choice.reason}")
        )
        return LoadRedirection(self.virtual, self.choice.servers, refused)

    @property
    def ways(self) -> _Ways:
        """Return the facts for which rules of other programs are judged."""
        return self.virtual, self.choice.servers


_Ways = tuple[tuple[IPv4Address, ...], tuple[Endpoint, ...]]


class Facts(NamedTuple):
    """The observed facts.

    Args:
        generation: generation of the rules before the listing.
        listing: `nft -s list table ip qubes`.
        undisturbed: no other program changed rules between our last transaction and the end of the listing.
        ours: generation after our last transaction.
        now: time in seconds.
        patient: wait for another program that may still be changing the chain. A command ends and cannot wait.
    """

    generation: int
    listing: str = ""
    undisturbed: bool = True
    ours: int = -1
    now: float = 0
    patient: bool = False

    @property
    def sum(self) -> str:
        """Return the checksum of the present chains."""
        listed = chosen({"ip": self.listing}, "chain", rules_text.DNS_CHAINS)
        return checksum(listed.encode()) if listed else MISSING


class Memory(NamedTuple):
    """The state of the chains between passes.

    Args:
        foreign: the facts for which another program's rules were kept, and their targets; None if none are kept.
        judged: generation of the rules when they were judged.
        disturbed: time of the first change by another program, time of the last one, and the checksum then.
    """

    foreign: tuple[_Ways, Judgement] | None = None
    judged: int = -1
    disturbed: tuple[float, float, str] | None = None


class RedirectMemory(NamedTuple):
    """The state of the redirection between passes.

    Args:
        chains: of the rules that redirect.
        followers: name servers that the set of the firewall beside us was last made to hold; None: not known.
        trouble: what the journal was told last.
    """

    chains: Memory = Memory()
    followers: tuple[Endpoint, ...] | None = None
    trouble: str = ""


class Decision(NamedTuple):
    """The result of `plan`.

    Args:
        planned: operations, and the record before them.
        memory: for the next pass.
        choice: the redirection; that of another program's rules if these are kept.
        right: generation of the rules at which the chains are correct; None if they are not.
    """

    planned: Planned
    memory: Memory
    choice: Choice
    right: int | None = None


def known(asked: Asked, memory: Memory, record: Record) -> Choice | None:
    """Return the redirection known from the last listing; None if the chains have to be listed.

    Args:
        asked: the desired redirection.
        memory: state of the process.
        record: the owned record.
    """
    there = record.provided.names.text
    if there == FOREIGN and memory.foreign is not None and memory.foreign[0] == asked.ways:
        return _by_others(memory.foreign[1], asked.choice)
    return asked.choice if there == _sum(asked) else None


def plan(asked: Asked, facts: Facts, memory: Memory, record: Record, so_far: Outcome) -> Decision:
    """Return the pending operations.

    Args:
        asked: the desired redirection.
        facts: observed facts.
        memory: state of the process.
        record: the owned record.
        so_far: result of the operations of this pass so far.
    """
    if any(isinstance(op, LoadRedirection | KeepForeignRedirection) for op in so_far.done):
        return _loaded(asked, facts, memory, record, so_far)
    there, now = record.provided.names, facts.sum
    if (there.text, there.seen) == (_sum(asked), now):
        memory = memory._replace(disturbed=None)
        purge = (PurgeConntrack(asked.virtual),) if asked.virtual and record.provided.pending is not None else ()
        if purge and purge[0] not in so_far.done:  # an agent was killed after it loaded the same redirection again
            return Decision(Planned(purge, record), memory, asked.choice)
        return Decision(Planned((), _noted(record, pending=None)), memory, asked.choice, facts.generation)
    changed = now not in (there.seen, MISSING)
    if not changed and there.text != FOREIGN:
        return _replaced(asked, memory, record)
    found = _Found(asked, facts, record)
    # Rules equal to ours are ours: left by a script that did this before, by an agent that lost its record, or by an
    # agent that was killed between the load and the record (behaviour B148).
    if found.judgement.kept and not found.same:
        return _kept(asked, facts, found, record, so_far, changed=changed)
    # No other program is changing the chain.
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
    """The present rules of the chain.

    Attributes:
        rules: all rules.
        ours: our desired rules.
        fresh: all rules, with ours updated.
        same: all rules are ours.
        judgement: the effect of the rules.
    """

    def __init__(self, asked: Asked, facts: Facts, record: Record) -> None:
        provided, virtual = record.provided, asked.virtual
        self.rules = foreign_redirection.rules(facts.listing)
        self.ours = rules_text.dnat_rules(upstream_servers.pairs(*asked.ways))
        former, announced = _rules(provided.servers, virtual), _rules(provided.pending or (), virtual)
        # Include our former rules: servers may change while another program empties the other chain.
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
    # If our rules stay beside theirs, queries redirected to the own addresses of this qube's provider pass.
    passing = asked.choice.servers if frozenset(found.ours) & frozenset(found.fresh) else ()
    rules = found.fresh if found.fresh != found.rules else None
    op = KeepForeignRedirection(rules, asked.virtual, passing, found.judgement.words)
    if op in so_far.failed:
        memory = Memory()  # otherwise the next pass would consider it done
    return Decision(_announced(op, asked, record), memory, choice)


def _replaced(asked: Asked, memory: Memory, record: Record, trouble: str = "") -> Decision:
    """Replace the present rules by ours."""
    op = asked.load._replace(trouble=trouble)
    memory = memory._replace(foreign=None, disturbed=None)
    return Decision(_announced(op, asked, record), memory, asked.choice)


def _announced(op: LoadRedirection | KeepForeignRedirection, asked: Asked, record: Record) -> Planned:
    # Otherwise a qube that keeps using the same source port would reach the former server for ever.
    purge = (PurgeConntrack(asked.virtual),) if asked.virtual else ()
    return Planned((op, *purge), _noted(record, pending=tuple(map(str, asked.choice.servers))))


def _loaded(asked: Asked, facts: Facts, memory: Memory, record: Record, so_far: Outcome) -> Decision:
    """Record the redirection in force, once the connections of the former one are deleted."""
    judgement = memory.foreign[1] if memory.foreign is not None else None
    choice = asked.choice if judgement is None else _by_others(judgement, asked.choice)
    if any(isinstance(op, PurgeConntrack) for op in so_far.failed):
        return Decision(Planned((), record), memory, choice)  # the next pass does both again
    # A change made in between does not count as ours; the next pass judges it (behaviour B148).
    good = facts.undisturbed and (judgement is None or memory.judged == facts.ours - 1)
    loaded = Loaded(_sum(asked) if judgement is None else FOREIGN, facts.sum if good else DOUBTED)
    servers = tuple(map(str, asked.choice.servers)) or record.provided.servers
    provided = record.provided._replace(names=loaded, servers=servers, pending=None)
    return Decision(Planned((), record._replace(provided=provided)), memory, choice, facts.ours if good else None)


def _by_others(judgement: Judgement, choice: Choice) -> Choice:
    """Return the redirection by the chain's rules."""
    reason = f"rules of another program in the chain ip qubes dnat-dns: {judgement.words}"
    return Choice(judgement.servers, reason, upstream_servers.FOREIGN, choice.last)


def _sum(asked: Asked) -> str:
    return checksum(asked.load.text.encode())


def _rules(servers: tuple[str, ...], virtual: tuple[IPv4Address, ...]) -> tuple[str, ...]:
    """Return the rules of a redirection to these servers, as recorded."""
    return rules_text.dnat_rules(upstream_servers.pairs(virtual, tuple(map(endpoint.parse, servers))))


def _noted(record: Record, pending: tuple[str, ...] | None) -> Record:
    return record._replace(provided=record.provided._replace(pending=pending))
