# SPDX-License-Identifier: GPL-2.0-or-later
"""Bind the host names of a list to the addresses that they have now.

While the addresses of a name are not all known, an `accept` matches those that are, and a `drop` matches every
destination. So the list allows a part of what it would allow whatever the addresses are: stricter than to ignore the
rule, which would let a `drop` through, and milder than to refuse everything, which is what users met (behaviours B66,
B74, B75).

What a name has is known when it was answered, also by "no address of this family", which matches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from ..namedtuple import NamedTuple
from .lines import BLOCKED, POLICY, Line, last_rule, rule, signature
from .name_cache import Known
from .name_messages import MOST_ADDRESSES
from .rules import INVALID_HOST, Rule, Ruleset

UNKNOWN = Known((), False)

# (family, name) → what was answered; a name that is missing never was.
Names = Mapping[tuple[int, str], Known]


class _BoundFields(NamedTuple):
    ruleset: Ruleset
    known: Mapping[str, Known] = {}
    refused: bool = False
    warnings: tuple[str, ...] = ()


class Bound(_BoundFields):
    """A list with what is known of its names.

    Args:
        ruleset: as parsed.
        known: name → what is known of it; a name that was never answered is missing.
        refused: everything is, whatever the rules say: an error of the list, or a name without an answer where that is
            to block the qube.
        warnings: names with too many addresses.

    What follows from these is worked out once: a list of 1000 rules is looked at in every pass.
    """

    def __hash__(self) -> int:
        """Return that of what can have one; operations are compared by it."""
        return hash((self.ruleset, self.refused))

    @property
    def unknown(self) -> tuple[str, ...]:
        """Valid names whose addresses are not all known, in the order of the list."""
        return tuple(host for host in self.ruleset.hosts if not self.of(host).whole)

    def of(self, host: str | None) -> Known:
        """Return what is known of a name."""
        return self.known.get(host or INVALID_HOST, UNKNOWN)

    @property
    def accept(self) -> bool:
        """What becomes of a packet that no line matches."""
        return self.ruleset.accept and not self.refused

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """Return what is in force, in order; nothing of it depends on what is not known."""
        if self.refused:
            return ()
        return tuple(self._line(rule) for rule in self.ruleset.rules if not self._is_idle(rule))

    def _is_idle(self, rule: Rule) -> bool:
        """Whether a rule matches nothing now and gets no line.

        An accept by a name that is only not known yet has one: its answer is then an element and no new chain.
        """
        return rule.is_empty or (rule.accept and rule.host == INVALID_HOST)

    def _line(self, rule: Rule) -> Line:
        host = rule.host if rule.accept or self.of(rule.host).whole else None
        return Line(
            rule.number,
            rule.accept,
            rule.network,
            host,
            rule.dns,
            rule.protocols,
            rule.destination_ports,
            rule.icmp_type,
        )

    @cached_property
    def rules(self) -> tuple[str, ...]:
        """Return the rules of its chain for nft; the last one is for every packet."""
        version, last = self.ruleset.address.version, BLOCKED if self.refused else POLICY
        return (*(rule(line, version) for line in self.lines), last_rule(self.accept, last, version))

    @property
    def comments(self) -> tuple[str, ...]:
        """The comments of these rules."""
        return (*(line.comment for line in self.lines), BLOCKED if self.refused else POLICY)

    @cached_property
    def signature(self) -> str:
        """Return the checksum of these rules."""
        return signature(self.rules)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names that its lines look up."""
        return tuple(dict.fromkeys(line.host for line in self.lines if line.host is not None))


def bind(ruleset: Ruleset, names: Names, *, block_unresolved: bool = False, before: Bound | None = None) -> Bound:
    """Return a list with the addresses of its names.

    Args:
        ruleset: as parsed.
        names: what was answered; addresses of the other family are ignored.
        block_unresolved: refuse everything while an address of a name is not known.
        before: the list of the last pass; it is returned where the result is equal.
    """
    known, warnings = {}, list[str]()
    version = ruleset.address.version
    for host in ruleset.hosts:
        answer = names.get((version, host))
        if answer is None:
            continue
        # Sorted: of a name with more, those that are kept are the same ones each time.
        addresses = sorted({address for address in answer.addresses if address.version == version}, key=int)
        fits = len(addresses) <= MOST_ADDRESSES
        known[host] = Known(tuple(addresses[:MOST_ADDRESSES]), answer.whole and fits)
        if not fits:
            kept = f"{host} has {len(addresses)} addresses; an accept is for the first {MOST_ADDRESSES}"
            warnings.append(f"{ruleset.address}: {kept}, a drop for every destination; use networks")
    bound = Bound(ruleset, known, ruleset.blocked, tuple(warnings))
    if block_unresolved and (bound.unknown or any(rule.host == INVALID_HOST for rule in ruleset.rules)):
        bound = Bound(ruleset, known, True, tuple(warnings))
    return before if before is not None and before == bound else bound
