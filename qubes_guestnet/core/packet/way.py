# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole way of a packet that a client qube sends: hooks in their order, route, forwarding.

Each chain with a hook is one step, ours and those of other programs; so is what the kernel does between the hooks. The
first step that refuses ends the way. Chains at ingress and egress of an interface are named and not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ..namedtuple import NamedTuple
from ..nft.tables import FIREWALL, GUARD, LIMITS, OFFLOAD, QUBES
from ..values import IPV4, IPAddress
from .chains import ACCEPT, DROP, REJECT, Passed, Place, passed
from .loaded import Base, Loaded, Name
from .match import Device, Packet

PASSES, REFUSED, DROPPED, UNCLEAR = "passes", "refused", "dropped", "unclear"
_OUTCOMES = {ACCEPT: PASSES, REJECT: REFUSED, DROP: DROPPED}
# What a step is called, by table and chain.
SPOOFING, REDIRECTION, BASE, LIST, LIMIT, NAT = (
    "anti-spoofing", "DNS redirection", "base rules", "firewall", "limits", "address translation",
)  # fmt: skip
PROVIDER, ON_GUARD, OTHERS, ROUTE, FORWARDING = "provider itself", "guard", "other rules", "route", "forwarding"
_STEPS: Mapping[tuple[str, str], str] = {
    (QUBES, "prerouting"): SPOOFING, (QUBES, "dnat-dns"): REDIRECTION, (QUBES, "forward"): BASE,
    (QUBES, "egress"): BASE, (QUBES, "input"): PROVIDER, (QUBES, "postrouting"): NAT,
    (FIREWALL, "forward"): LIST, (FIREWALL, "prerouting"): SPOOFING, (FIREWALL, "postrouting"): SPOOFING,
    **{(LIMITS, hook): LIMIT for hook in ("prerouting", "forward", "input")},
}  # fmt: skip
_HOST = "host"
# What one of these steps does with a packet that passes, where no rule of a user is the reason.
_SAID = {
    ON_GUARD: "the base rules have accepted it", SPOOFING: "the sender is an address of the qube",
    LIMIT: "below the limits of unanswered connections", BASE: "no rule refuses it", REDIRECTION: "not redirected",
    NAT: "not translated",
}  # fmt: skip


class Way(NamedTuple):
    """The route of a packet to an address.

    Args:
        out: the interface; None where there is no route.
        own: the address is one of this provider.
        leaves_as: the address that this provider has there; None for none.
    """

    out: Device | None
    own: bool = False
    leaves_as: IPAddress | None = None


class Facts(NamedTuple):
    """The facts for the verdict, besides the packet.

    Args:
        loaded: all rules.
        forwarding: families that the kernel forwards.
        why_not: why it does not forward a family, in words.
        shut: interfaces whose own forwarding is off.
        route: the way to an address.
    """

    loaded: Loaded
    forwarding: frozenset[int]
    why_not: str
    shut: frozenset[str]
    route: Callable[[IPAddress], Way]


class Step(NamedTuple):
    """One step.

    Args:
        name: one of those above.
        outcome: PASSES, REFUSED (the sender is told), DROPPED (it is not), or UNCLEAR.
        words: what decided, for people.
        place: the rule that decided, or the chain whose policy did; None where it was no rule.
        doubts: rules that are not understood.
    """

    name: str
    outcome: str
    words: str
    place: Place | None = None
    doubts: tuple[Place, ...] = ()


class Walked(NamedTuple):
    """The result for a packet.

    Args:
        steps: in order; of steps with one name that it passes, one is left.
        packet: as it leaves, or as it was where it ended.
        outcome: as of a step; UNCLEAR where a rule that is not understood could refuse it.
        by: the step that decided; None where it passes and no rule for this qube accepted it.
    """

    steps: tuple[Step, ...]
    packet: Packet
    outcome: str
    by: Step | None


def walk(packet: Packet, facts: Facts) -> Walked:
    """Return what becomes of a packet.

    Args:
        packet: as the qube sends it.
        facts: of this moment.
    """
    steps, journey = list[Step](), _Journey(packet, facts)
    for step in journey.steps():
        steps.append(step)
        if step.outcome in (REFUSED, DROPPED):
            break
    last = steps[-1]
    if last.outcome in (REFUSED, DROPPED):
        steps = [step for step in steps if step is last or step.name != ON_GUARD]  # which has not had the last word
        return Walked(_merged(steps), journey.packet, UNCLEAR if last.doubts else last.outcome, last)
    unclear = next((step for step in steps if step.doubts), None)
    accepted = next((step for step in steps if step.name == LIST and _has_rule(step)), None)
    return Walked(_merged(steps), journey.packet, UNCLEAR if unclear else PASSES, unclear or accepted)


def _merged(steps: list[Step]) -> tuple[Step, ...]:
    """Leave one of the steps of one name that the packet passes: that with a rule, or else the first.

    The guard's stands where it comes last, because it lets pass what the others have.
    """
    found: dict[object, Step] = {}
    for number, step in enumerate(steps):
        silent = step.outcome == PASSES and not step.doubts and step.name != OTHERS
        key: object = step.name if silent else number
        if step.name == ON_GUARD and silent:
            found.pop(key, None)
        before = found.get(key)
        if before is None or (_has_rule(step) and not _has_rule(before)):
            found[key] = step
    return tuple(found.values())


def _has_rule(step: Step) -> bool:
    return step.place is not None and step.place.rule is not None


class _Journey:
    """One packet on its way.

    Attributes:
        packet: as the steps so far have left it.
    """

    def __init__(self, packet: Packet, facts: Facts) -> None:
        self.packet, self._facts = packet, facts

    def steps(self) -> Iterator[Step]:
        """Yield each step; the caller stops at one that refuses."""
        yield from self._hook("prerouting")
        target = self.packet.destination
        unroutable = target.is_multicast or target.is_loopback or str(target) == "255.255.255.255"
        way = Way(None) if unroutable else self._facts.route(target)
        if unroutable:
            yield Step(ROUTE, DROPPED, f"a provider does not forward to {target}")
        elif way.own:
            yield Step(ROUTE, PASSES, f"{target} is an address of this provider")
            yield from self._hook("input")
        elif way.out is None:
            yield Step(ROUTE, REFUSED, f"there is no route to {target}")
        else:
            yield Step(ROUTE, PASSES, f"out by {way.out.name}")
            words = self._not_forwarded()
            yield Step(FORWARDING, DROPPED if words else PASSES, words or f"IPv{target.version} is forwarded")
            self.packet = self.packet._replace(oif=way.out, leaves_as=way.leaves_as)
            yield from self._hook("forward")
            yield from self._hook("postrouting")

    def _not_forwarded(self) -> str:
        """Return why the kernel does not forward the packet, "" if it does."""
        version, device = self.packet.destination.version, self.packet.iif.name
        if self.packet.pkttype != _HOST:
            return "the base rules have not released it from the guard"
        if version not in self._facts.forwarding:
            return f"IPv{version} is not forwarded: {self._facts.why_not or 'the sysctl is 0'}"
        if device in self._facts.shut:
            return f"packets from {device} are not forwarded: its own sysctl is 0"
        return ""

    def _hook(self, hook: str) -> Iterator[Step]:
        """Yield the step of each chain of a hook."""
        loaded, translated = self._facts.loaded, False
        family = "ip" if self.packet.source.version == IPV4 else "ip6"
        for base in loaded.bases:
            if base.hook != hook or base.name[0] not in (family, "inet") or (translated and base.kind == "nat"):
                continue
            before, found = self.packet, passed(base, self.packet, loaded)
            self.packet, translated = found.packet, translated or bool(found.translation)
            name = _name(base)
            if name == OTHERS and not loaded.rules.get(base.name) and base.policy == ACCEPT:
                continue
            doubts = _doubts(found)
            outcome = UNCLEAR if found.verdict == ACCEPT and doubts else _OUTCOMES[found.verdict]
            yield Step(name, outcome, _words(found, before, name), found.place, doubts)


def _doubts(found: Passed) -> tuple[Place, ...]:
    """Return the rules that are not understood and may be the ones that decide.

    Those that can only do what is done anyway are none.
    """
    same = {ACCEPT: ("accept",), DROP: ("drop", "reject"), REJECT: ("drop", "reject")}[found.verdict]
    return tuple(place for place in found.doubts if not _ends_with(place, same))


def _ends_with(place: Place, words: tuple[str, ...]) -> bool:
    assert place.rule is not None
    kinds = [kind for statement in place.rule.statements for kind in statement]
    return kinds[-1:] != [] and kinds[-1] in words


def _name(base: Base) -> str:
    _, table, chain = base.name
    if table == GUARD:
        return ON_GUARD
    return _STEPS.get((table, chain), OTHERS)


def _words(found: Passed, before: Packet, name: str) -> str:
    """Return what a chain did, for people."""
    after, place = found.packet, found.place
    if found.translation == "dnat":
        port = "" if after.port == before.port else f" port {after.port}"
        return f"redirected from {before.destination} to {after.destination}{port}"
    if found.translation:
        return f"it leaves as {after.source}" if after.source != before.source else "it leaves as this provider"
    if found.verdict == ACCEPT and name in _SAID and not place.chain[2].startswith("custom-"):
        return _SAID[name]
    if place.rule is not None:
        return f"{said(place.chain)}: {place.rule.text}"
    return f"{said(place.chain)}: no rule decides, the policy is {found.base.policy}"


def said(name: Name) -> str:
    """Return family, table and chain for people."""
    return " ".join(name)


def unjudged(loaded: Loaded) -> tuple[str, ...]:
    """Return the chains that are not judged: those of other programs at an interface."""
    return tuple(
        said(base.name)
        for base in loaded.bases
        if base.hook in ("ingress", "egress") and base.name[1] != OFFLOAD and loaded.rules.get(base.name)
    )
