# SPDX-License-Identifier: GPL-2.0-or-later
"""The base rules as formulas for z3. Only what these rules have is understood; anything else fails the test.

What a condition is about decides how far it is modelled: interfaces, states of connections, and our own sets are
variables of the packet. Any other condition (a type of ICMP, a bit of the guard's) is true or false as it likes, anew
where its value changes on the way, so that what is proved holds whatever it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import z3

Formula = Any
NEW, ESTABLISHED, RELATED, INVALID, UNTRACKED = range(5)
STATES = {"new": NEW, "established": ESTABLISHED, "related": RELATED, "invalid": INVALID, "untracked": UNTRACKED}
# Chains that others fill: they may do anything with a packet, or nothing.
USERS = ("custom-input", "custom-forward")


class Packet:
    """A packet on its way through one family's table."""

    def __init__(self) -> None:
        self.in_group, self.out_group = z3.BitVecs("iifgroup oifgroup", 8)
        self.state = z3.BitVec("state", 3)
        names = "from_lo to_lo from_vif to_vif allowed from_downstream to_downstream"
        self.from_lo, self.to_lo, self.from_vif, self.to_vif, self.allowed, self.from_down, self.to_down = z3.Bools(
            names
        )
        self._free = 0
        # What is so of every packet: a vif that is set up has its group, and lo has none.
        self.possible = z3.And(
            z3.ULE(self.state, UNTRACKED),
            z3.Implies(self.in_group == 2, self.from_vif),
            z3.Implies(self.out_group == 2, self.to_vif),
            z3.Implies(self.from_lo, z3.And(self.in_group == 0, z3.Not(self.from_vif))),
            z3.Implies(self.to_lo, z3.And(self.out_group == 0, z3.Not(self.to_vif))),
        )

    @property
    def answers(self) -> Formula:
        """It belongs to a connection that is there."""
        return z3.Or(self.state == ESTABLISHED, self.state == RELATED)

    def free(self) -> Formula:
        """A condition of which nothing is known."""
        self._free += 1
        return z3.Bool(f"free {self._free}")

    def condition(self, text: str) -> Formula:
        """A condition by its words."""
        match = re.fullmatch(r"(iif|oif)group (!= )?(\d+|\{ [\d, ]+ \})", text)
        if match is not None:
            group = self.in_group if match[1] == "iif" else self.out_group
            found = z3.Or([group == int(number) for number in re.findall(r"\d+", match[3])])
            return z3.Not(found) if match[2] else found
        match = re.fullmatch(r"ct state (.+)", text)
        if match is not None:
            return z3.Or([self.state == STATES[word] for word in re.findall(r"\w+", match[1])])
        known = {
            "iif lo": self.from_lo,
            "oif lo": self.to_lo,
            'iifname "vif*"': self.from_vif,
            'iifname != "vif*"': z3.Not(self.from_vif),
            'oifname "vif*"': self.to_vif,
            'oifname != "vif*"': z3.Not(self.to_vif),
            "iifname . saddr @allowed": self.allowed,
            "saddr @downstream": self.from_down,
            "saddr != @downstream": z3.Not(self.from_down),
            "daddr @downstream": self.to_down,
            "daddr != @downstream": z3.Not(self.to_down),
        }
        if text in known:
            return known[text]
        if text.endswith((" echo-request", " nd-neighbor-solicit")):
            return z3.Bool(text)
        return self.free()


CONDITIONS = re.compile(
    r"""[io]ifgroup\ (?:!=\ )?(?:\d+|\{[^}]*\}) | [io]if\ lo | [io]ifname\ (?:!=\ )?"vif\*"
    | ct\ state\ (?:\{[^}]*\}|[a-z,]+)
    | iifname\ \.\ (?:ct\ (?:original|reply)\ )?saddr\ (?:!=\ )?@allowed | [sd]addr\ (?:!=\ )?@downstream
    | meta\ priority\ &\ \w+\ [!=]=\ 0 | meta\ pkttype\ other | meta\ l4proto\ tcp
    | icmp(?:v6)?\ type\ (?:\{[^}]*\}|[a-z-]+) | @th,\d+,\d+\ \d | [sd]addr\ fe80::/64 | udp\ dport\ \d+""",
    re.VERBOSE,
)
STATEMENTS = re.compile(
    r"counter | meta\ pkttype\ set\ host | meta\ priority\ set\ meta\ priority\ [|^&]\ \w+"
    r"| (accept|drop|reject\ with\ (?:icmp(?:v6)?\ [a-z-]+|tcp\ reset)|masquerade|return|(?:jump|goto)\ [a-z-]+)",
    re.VERBOSE,
)


class Rule(NamedTuple):
    """Conditions in words, and the verdict; "" for none."""

    conditions: tuple[str, ...]
    verdict: str


class Ways(NamedTuple):
    """When a packet is accepted, goes on behind the chain, and ends at the chain's end by a goto."""

    accepted: Formula
    through: Formula


class Table(NamedTuple):
    """One family's table.

    Args:
        rules: chain → its rules.
        policies: chain with a hook → accept or drop.
    """

    rules: Mapping[str, tuple[Rule, ...]]
    policies: Mapping[str, str]


def parse(text: str, word: str) -> Table:
    """The table of a family, from the text that nft loads."""
    rules: dict[str, tuple[Rule, ...]] = {}
    policies: dict[str, str] = {}
    inside = False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("table "):
            inside = line.split()[1] == word
        elif inside and (match := re.fullmatch(r"chain ([a-z-]+) \{ (?:.*policy (\w+); )?\}", line)):
            rules[match[1]] = ()
            policies |= {match[1]: match[2]} if match[2] else {}
        elif match := re.fullmatch(rf"add rule {word} qubes ([a-z-]+) (.+)", line):
            rules[match[1]] = (*rules[match[1]], parse_rule(match[2], word))
    return Table(rules, policies)


def parse_rule(text: str, word: str) -> Rule:
    """One rule; the words of the family are left out."""
    rest, conditions, verdict = re.sub(rf"\b{word} (?=[sd]addr)", "", text), [], ""
    while rest:
        if match := CONDITIONS.match(rest):
            conditions.append(match[0])
        else:
            match = STATEMENTS.match(rest)
            assert match is not None, f"not understood: {rest!r} of {text!r}"
            verdict = match[1] or verdict
        rest = rest[match.end() :].lstrip()
    return Rule(tuple(conditions), verdict)


def accepts(table: Table, chain: str, packet: Packet) -> Formula:
    """Whether a chain with a hook accepts a packet."""
    ways = _run(table, chain, packet, z3.BoolVal(True))
    return z3.Or(ways.accepted, z3.And(ways.through, z3.BoolVal(table.policies[chain] == "accept")))


def _run(table: Table, chain: str, packet: Packet, here: Formula) -> Ways:
    """What becomes of a packet that is at the beginning of a chain if `here`."""
    if chain in USERS:
        accepted, dropped = user_accepts(chain), z3.Bool(f"{chain} drops")
        return Ways(z3.And(here, accepted), z3.And(here, z3.Not(accepted), z3.Not(dropped)))
    accepted, through = z3.BoolVal(False), z3.BoolVal(False)
    if chain == "dns-reject":  # filled by the redirection: it refuses, or it returns
        return Ways(accepted, z3.And(here, packet.free()))
    for rule in table.rules[chain]:
        hit = z3.And(here, *map(packet.condition, rule.conditions))
        kind, _, target = rule.verdict.partition(" ")
        if kind in ("jump", "goto"):
            ways = _run(table, target, packet, hit)
            accepted = z3.Or(accepted, ways.accepted)
            missed = z3.And(here, z3.Not(hit))
            here = missed if kind == "goto" else z3.Or(missed, ways.through)
            through = z3.Or(through, ways.through) if kind == "goto" else through
        elif kind:
            accepted = z3.Or(accepted, hit) if kind in ("accept", "masquerade") else accepted
            through = z3.Or(through, hit) if kind == "return" else through
            here = z3.And(here, z3.Not(hit))
    return Ways(accepted, z3.Or(through, here))


def user_accepts(chain: str) -> Formula:
    """Whether a users' chain accepts the packet."""
    return z3.Bool(f"{chain} accepts")


def any_of(words: Iterable[str]) -> Formula:
    """Whether one of these conditions is fulfilled."""
    return z3.Or([z3.Bool(each) for each in words])
