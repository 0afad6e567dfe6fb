# SPDX-License-Identifier: GPL-2.0-or-later
"""Render the path of a packet: the lines of `firewall test`, and its JSON (docs/firewall.schema.json)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..firewall import evaluator, ruleset
from ..firewall.evaluator import Explained
from ..firewall.lines import BLOCKED, POLICY
from ..namedtuple import NamedTuple
from ..nft.tables import FIREWALL
from ..packet import way
from ..packet.match import PROTOCOLS, Packet
from ..values import IPAddress
from .firewall_lists import SCHEMA
from .styled import Line, Piece, bad, dim, good, line, name, warn

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..firewall.shown import ListShown
    from ..packet.chains import Place
    from ..packet.way import Step, Walked

_PROTOCOLS = {number: word for word, number in PROTOCOLS.items() if word != "icmpv6"}
_STYLES: Mapping[str, Callable[[str], Piece]] = {
    way.PASSES: good, way.REFUSED: bad, way.DROPPED: bad, way.UNCLEAR: warn,
}  # fmt: skip
_NAME, _OUTCOME = 20, 9


class Judged(NamedTuple):
    """One packet and its verdict.

    Args:
        packet: as the qube sends it.
        walked: its path.
        explained: results of the entries of the list, up to the one that decides.
        shown: the list; None if there is none.
        notes: further remarks.
    """

    packet: Packet
    walked: Walked
    explained: tuple[Explained, ...]
    shown: ListShown | None
    notes: tuple[str, ...] = ()


def as_text(tested: Judged) -> Iterator[Line]:
    """Yield the lines for a terminal."""
    packet, walked = tested.packet, tested.walked
    yield line(name(str(packet.source)), f" ({packet.iif.name}) to ", name(_target(packet)))
    for step in walked.steps:
        outcome = _STYLES[step.outcome](f"{step.outcome:{_OUTCOME}}")
        yield line(f"  {step.name:{_NAME}}", outcome, step.words)
        yield from (line("    not understood: ", warn(_place(each))) for each in step.doubts)
        if step.name == way.LIST:
            yield from _entries(tested)
    yield from (line(f"  {'':{_NAME}}", dim(note)) for note in tested.notes)
    yield line(_STYLES[walked.outcome](walked.outcome.upper()), f": {reason(tested)}")


def _target(packet: Packet) -> str:
    _, destination, port = packet.asked
    if packet.icmp_type is not None:
        return f"{destination} icmp type {packet.icmp_type}"
    protocol = _PROTOCOLS.get(packet.protocol, f"protocol {packet.protocol}")
    return f"{destination} {protocol}" + ("" if port is None else f" port {port}")


def _place(place: Place) -> str:
    return f"{way.said(place.chain)}: {place.rule.text if place.rule is not None else 'its policy'}"


def _entries(tested: Judged) -> Iterator[Line]:
    """Yield the results of the entries of the list."""
    if tested.shown is None:
        return
    texts = {entry.number: entry.text for entry in tested.shown.entries}
    for each in tested.explained:
        number = each.rule.number
        said = good("matches") if each.matches else (warn(each.why) if each.matches is None else dim(each.why))
        yield line(f"    {number:04}  {texts.get(number, '')}: ", said)


def reason(tested: Judged) -> str:
    """Return which rule decides and why, as a sentence."""
    walked, source = tested.walked, tested.packet.source
    step = walked.by
    if walked.outcome == way.UNCLEAR:
        assert step is not None
        rule = next(iter(step.doubts), step.place)
        return f"a rule that this command does not understand decides: {_place(rule) if rule else step.words}"
    if step is None:
        return "no rule refuses it"
    decided = _decided(tested, step)
    if walked.outcome == way.PASSES:
        return f"{decided} accepts it" if decided else f"no rule for {source} refuses it ({step.words})"
    verb, told = ("refuses", "is told at once") if walked.outcome == way.REFUSED else ("drops", "gets no answer")
    return f"{f'{decided} {verb} it' if decided else f'{step.name}: {step.words}'}; the qube {told}"


def _decided(tested: Judged, step: Step) -> str:
    """Return the entry of the list that decided, in words; "" if another rule decided."""
    place, source = step.place, tested.packet.source
    if place is None or place.chain[1] != FIREWALL:
        return ""
    if place.rule is None:
        waits = "dom0 has committed none since its vif appeared"
        return f"the table {FIREWALL}, which has no list of {source} ({waits}),"
    if not ruleset.is_chain(place.chain[2]):
        return ""
    comment = place.rule.comment
    if comment == BLOCKED:
        return f"the list of {source} has an error, which"
    if comment != POLICY:
        return f"entry {comment} of the list of {source}"
    return f"no entry of the list of {source} matches, and its policy"


def as_data(tested: Judged) -> dict[str, Any]:
    """Return it for `--json`."""
    packet, walked = tested.packet, tested.walked
    _, destination, port = packet.asked
    return {
        "from": str(packet.source),
        "vif": packet.iif.name,
        "to": str(destination),
        "protocol": packet.protocol,
        "port": port,
        "icmp_type": packet.icmp_type,
        "outcome": walked.outcome,
        "reason": reason(tested),
        "destination_after_redirection": str(walked.packet.destination),
        "out_by": walked.packet.oif.name if walked.packet.oif is not None else None,
        "decided_by": _step_data(walked.by) if walked.by is not None else None,
        "steps": [_step_data(step) for step in walked.steps],
        "entries": [
            {"number": each.rule.number, "matches": each.matches, "why": each.why or None} for each in tested.explained
        ],
        "notes": list(tested.notes),
    }


def _step_data(step: Step) -> dict[str, Any]:
    place = step.place
    rule = place.rule if place is not None else None
    return {
        "name": step.name,
        "outcome": step.outcome,
        "words": step.words,
        "chain": way.said(place.chain) if place is not None else None,
        "rule": rule.text if rule is not None else None,
        "entry": int(rule.comment) if _is_entry(place) and rule is not None else None,
        "not_understood": [_place(each) for each in step.doubts],
    }


def _is_entry(place: Place | None) -> bool:
    """Return whether a rule is an entry of a list."""
    return (
        place is not None
        and place.rule is not None
        and place.chain[1] == FIREWALL
        and ruleset.is_chain(place.chain[2])
        and place.rule.comment.isdecimal()
    )


def all_data(name_: str | None, tested: Iterable[Judged], outcome: str) -> dict[str, Any]:
    """Return the JSON of all addresses of one destination.

    Args:
        name_: the requested host name; None for an address.
        tested: the result for each address.
        outcome: the combined outcome.
    """
    return {"schema": SCHEMA, "name": name_, "outcome": outcome, "packets": [as_data(each) for each in tested]}


def together(tested: Iterable[Judged]) -> str:
    """Return the combined outcome of several packets, which is the worst one."""
    order = (way.PASSES, way.UNCLEAR, way.DROPPED, way.REFUSED)
    return max((each.walked.outcome for each in tested), key=order.index, default=way.PASSES)


def explained(shown: ListShown | None, packet: Packet, servers: frozenset[IPAddress]) -> tuple[Explained, ...]:
    """Return the results of a list's entries for a packet as the chain `forward` sees it; empty without a list.

    Args:
        shown: the list.
        packet: the packet after the redirection.
        servers: the name servers.
    """
    if shown is None or shown.bound.refused:
        return ()
    asked = evaluator.Packet(packet.destination, packet.protocol, packet.port, packet.icmp_type)
    unknown = {host.name: host.unknown for host in shown.names if host.unknown}
    return tuple(
        each._replace(why=f"{each.rule.host} {unknown[each.rule.host]}")
        if each.matches is None and each.rule.host in unknown
        else each
        for each in evaluator.explained(shown.bound, asked, servers)
    )
