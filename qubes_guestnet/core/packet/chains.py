# SPDX-License-Identifier: GPL-2.0-or-later
"""Evaluate a chain with a hook for one packet: rule by rule, with the chains that it jumps to.

A rule with an unknown part leaves a doubt: the rule is noted, and the evaluation continues as if the packet did not
match it. A limit or quota counts as not used up, because only one packet is evaluated.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from ..namedtuple import NamedTuple
from .loaded import Base, Loaded, Name, Rule
from .match import Absent, Packet, Unclear, changed, looked_up, met, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ACCEPT, DROP, REJECT = "accept", "drop", "reject"
_RETURN, _CONTINUE, _JUMP, _GOTO = "return", "continue", "jump", "goto"
_QUIET = frozenset({"counter", "log", "flow", "notrack", "ct helper", "ct timeout", "ct expectation", "comment"})
_NAT = frozenset({"dnat", "snat", "masquerade", "redirect"})
_DEEPEST = 16  # of the kernel (NFT_JUMP_STACK_SIZE)


class Place(NamedTuple):
    """A rule, and the chain where it stands; no rule for the policy of the chain."""

    chain: Name
    rule: Rule | None = None


class Passed(NamedTuple):
    """The result of a chain for a packet.

    Args:
        base: the chain.
        verdict: ACCEPT, DROP or REJECT.
        packet: the packet after the chain.
        place: the rule or policy that decided.
        doubts: earlier rules that are not understood and could have decided differently.
        translation: the NAT statement that was carried out; "" for none.
    """

    base: Base
    verdict: str
    packet: Packet
    place: Place
    doubts: tuple[Place, ...] = ()
    translation: str = ""


def passed(base: Base, packet: Packet, loaded: Loaded) -> Passed:
    """Evaluate a chain for a packet.

    Args:
        base: the chain.
        packet: the packet before the chain.
        loaded: all rules.
    """
    walk = _Walk(packet, loaded)
    decided = walk.through(base.name, 0)
    if decided is None:
        verdict = ACCEPT if base.policy == ACCEPT else DROP
        return Passed(base, verdict, walk.packet, Place(base.name), tuple(walk.doubts), walk.translation)
    verdict, place = decided
    return Passed(base, verdict, walk.packet, place, tuple(walk.doubts), walk.translation)


class _Walk:
    """One packet in one chain.

    Attributes:
        packet: as the rules so far have changed it.
        doubts: rules that are not understood.
        translation: what was translated.
    """

    def __init__(self, packet: Packet, loaded: Loaded) -> None:
        self.packet, self._loaded = packet, loaded
        self.doubts: list[Place] = []
        self.translation = ""

    def through(self, chain: Name, depth: int) -> tuple[str, Place] | None:
        """Return the verdict of a chain and what decided; None where the packet leaves it without one."""
        for rule in self._loaded.rules.get(chain, ()):
            place, before = Place(chain, rule), self.packet
            try:
                word, target = self._rule(place)
            except Unclear:
                self.packet = before
                if self._matters(rule, chain):
                    self.doubts.append(place)
                continue
            if word in (ACCEPT, DROP, REJECT):
                return word, place
            if word == _RETURN:
                return None
            if word in (_JUMP, _GOTO):
                if depth >= _DEEPEST:
                    self.doubts.append(place)
                    continue
                found = self.through((*chain[:2], target), depth + 1)
                if found is not None or word == _GOTO:
                    return found
        return None

    def _rule(self, place: Place) -> tuple[str, str]:
        """Return the verdict of a rule, and where it leads to; "" for none. Raises Unclear."""
        assert place.rule is not None
        unclear = False  # a condition is; one that is not met can still come
        for statement in place.rule.statements:
            if len(statement) != 1:
                raise Unclear
            ((kind, inner),) = statement.items()
            if kind == "match":
                try:
                    if not met(inner, self.packet, *place.chain[:2], self._loaded):
                        return "", ""
                except Unclear:
                    unclear = True
                continue
            if unclear and kind not in _QUIET:
                raise Unclear
            if kind in (ACCEPT, DROP, REJECT, _RETURN, _CONTINUE):
                return kind, ""
            if kind in (_JUMP, _GOTO):
                return kind, _target(inner)
            if kind == "vmap":
                found = self._verdict_of(inner, place.chain)
                if found is not None:
                    return found
            elif kind in _NAT:
                self._translate(kind, inner)
                return ACCEPT, ""
            elif not self._goes_on(kind, inner, place.chain):
                break
        return "", ""

    def _goes_on(self, kind: str, inner: Any, chain: Name) -> bool:
        """Return whether the rest of a rule is for this packet too, behind a statement without a verdict."""
        family, table = chain[:2]
        if kind in ("limit", "quota"):
            return not (isinstance(inner, dict) and inner.get("inv"))
        if kind == "set":
            return self._added(str(inner.get("set", "")), (family, table))
        if kind == "mangle":
            self.packet = changed(inner.get("key"), inner.get("value"), self.packet, family)
            return True
        if kind in _QUIET:
            return True
        raise Unclear

    def _added(self, name: str, table: tuple[str, str]) -> bool:
        """Put the connection into a set; whether there is room for it."""
        key = (*table, name.removeprefix("@"))
        size = self._loaded.sizes.get(key)
        if size is not None and len(self._loaded.sets.get(key, ())) >= size:
            return False
        self.packet = self.packet._replace(added=self.packet.added | {name})
        return True

    def _verdict_of(self, inner: Mapping[str, Any], chain: Name) -> tuple[str, str] | None:
        """Return what a verdict map has for the packet; None for nothing. Raises Unclear."""
        data = inner.get("data")
        if isinstance(data, str):
            name = (*chain[:2], data.removeprefix("@"))
            if name not in self._loaded.sets:
                raise Unclear
            elements: object = self._loaded.sets[name]
        else:
            elements = data.get("set") if isinstance(data, dict) else None
        try:
            found = looked_up(value(inner.get("key"), self.packet, chain[0]), elements)
        except Absent:
            return None
        if found is None:
            return None
        if not isinstance(found, dict) or len(found) != 1:
            raise Unclear
        ((word, where),) = found.items()
        return word, _target(where) if word in (_JUMP, _GOTO) else ""

    def _translate(self, kind: str, inner: object) -> None:
        """Carry out NAT. Raises Unclear."""
        if kind == "masquerade":
            if self.packet.leaves_as is not None:
                self.packet = self.packet._replace(source=self.packet.leaves_as)
        elif kind in ("dnat", "snat") and isinstance(inner, dict):
            address, port = inner.get("addr"), inner.get("port")
            try:
                led = ipaddress.ip_address(address) if isinstance(address, str) else None
            except ValueError:
                led = None
            if led is None or not (port is None or isinstance(port, int)):
                raise Unclear
            if kind == "snat":
                self.packet = self.packet._replace(source=led)
            else:
                self.packet = self.packet._replace(destination=led, port=self.packet.port if port is None else port)
        else:
            raise Unclear
        self.translation = kind

    def _matters(self, rule: Rule, chain: Name) -> bool:
        """Return whether a rule can decide anything: one that only counts cannot."""
        for statement in rule.statements:
            for kind in statement:
                if kind in (_JUMP, _GOTO) and isinstance(statement[kind], dict):
                    target = (*chain[:2], str(statement[kind].get("target")))
                    return any(self._matters(each, target) for each in self._loaded.rules.get(target, ()))
                if kind not in ("match", "limit", "quota", "set", "mangle", _CONTINUE) and kind not in _QUIET:
                    return True
        return False


def _target(inner: object) -> str:
    name = inner.get("target") if isinstance(inner, dict) else None
    if not isinstance(name, str):
        raise Unclear
    return name
