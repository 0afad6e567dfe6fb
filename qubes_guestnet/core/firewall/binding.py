# SPDX-License-Identifier: GPL-2.0-or-later
"""Bind the host names of a list to their present addresses.

While some addresses of a name are unknown, an `accept` matches the known ones, and a `drop` matches every destination.
So the list never allows more than it would with all addresses. Ignoring the rule would be too lax, because a `drop`
would have no effect; refusing everything, as users experienced, would be too strict (behaviours B66, B74, B75).

A name is known after an answer, even if that is "no address of this family", which matches nothing.
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

# (family, name) → its answer; a missing name was never answered.
Names = Mapping[tuple[int, str], Known]


class _BoundFields(NamedTuple):
    ruleset: Ruleset
    known: Mapping[str, Known] = {}
    refused: bool = False
    warnings: tuple[str, ...] = ()


class Bound(_BoundFields):
    """A list with the known addresses of its names.

    Args:
        ruleset: the parsed list.
        known: name → its addresses; a name that was never answered is missing.
        refused: everything is refused, because the list has an error, or because an unknown name blocks the qube.
        warnings: names with too many addresses.

    Derived values are cached, because every pass uses them and a list may have 1000 rules.
    """

    def __hash__(self) -> int:
        """Return the hash of the hashable fields, by which operations are compared."""
        return hash((self.ruleset, self.refused))

    @property
    def unknown(self) -> tuple[str, ...]:
        """Return valid names whose addresses are not all known, in the order of the list."""
        return tuple(host for host in self.ruleset.hosts if not self.of(host).whole)

    def of(self, host: str | None) -> Known:
        """Return the known addresses of a name."""
        return self.known.get(host or INVALID_HOST, UNKNOWN)

    @property
    def accept(self) -> bool:
        """Return whether a packet that no line matches is accepted."""
        return self.ruleset.accept and not self.refused

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """Return the lines in force, in order; none of them depends on unknown addresses."""
        if self.refused:
            return ()
        return tuple(self._line(rule) for rule in self.ruleset.rules if not self._is_idle(rule))

    def _is_idle(self, rule: Rule) -> bool:
        """Return whether a rule matches nothing now and gets no line.

        An accept with an unknown name gets a line: its answer then only adds an element instead of replacing the chain.
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
        """Return the comments of these rules."""
        return (*(line.comment for line in self.lines), BLOCKED if self.refused else POLICY)

    @cached_property
    def signature(self) -> str:
        """Return the checksum of these rules."""
        return signature(self.rules)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Return the names whose sets its lines use."""
        return tuple(dict.fromkeys(line.host for line in self.lines if line.host is not None))


def bind(ruleset: Ruleset, names: Names, *, block_unresolved: bool = False, before: Bound | None = None) -> Bound:
    """Return a list with the addresses of its names.

    Args:
        ruleset: the parsed list.
        names: answers; addresses of the other family are ignored.
        block_unresolved: refuse everything while an address of a name is unknown.
        before: the list of the last pass; it is returned if the result is equal.
    """
    known, warnings = {}, list[str]()
    version = ruleset.address.version
    for host in ruleset.hosts:
        answer = names.get((version, host))
        if answer is None:
            continue
        # Sorted, so that a name with too many addresses keeps the same ones each time.
        addresses = sorted({address for address in answer.addresses if address.version == version}, key=int)
        fits = len(addresses) <= MOST_ADDRESSES
        known[host] = Known(tuple(addresses[:MOST_ADDRESSES]), answer.whole and fits)
        if not fits:
            kept = f"{host} has {len(addresses)} addresses; an accept matches the first {MOST_ADDRESSES}"
            warnings.append(f"{ruleset.address}: {kept}, a drop every destination; use networks")
    bound = Bound(ruleset, known, ruleset.blocked, tuple(warnings))
    if block_unresolved and (bound.unknown or any(rule.host == INVALID_HOST for rule in ruleset.rules)):
        bound = Bound(ruleset, known, True, tuple(warnings))
    return before if before is not None and before == bound else bound
