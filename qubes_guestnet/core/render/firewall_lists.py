# SPDX-License-Identifier: GPL-2.0-or-later
"""Render the lists of client qubes: the lines of `firewall show`, and its JSON (docs/firewall.schema.json)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..firewall.condition import BLOCKED, IN_FORCE, UNSEEN, WAITING
from ..plural import amount
from ..values import IPAddress
from .styled import Line, Piece, bad, dim, good, line, name, warn

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..firewall.shown import AddressShown, EntryShown, ListShown, NameShown

SCHEMA = 1
# The program that enforces the lists.
OURS, ANOTHER, OFF = "qubes-guestnet", "another", "none"
_STATES: Mapping[str, tuple[Callable[[str], Piece], str]] = {
    IN_FORCE: (good, "in force"),
    WAITING: (warn, "waiting: dom0 has committed no list since its vif appeared, so nothing passes"),
    BLOCKED: (bad, "BLOCKED: everything is refused"),
    UNSEEN: (warn, "run as root to see whether it is in force"),
}
_ENFORCERS = {
    ANOTHER: "qubes-firewall.service of qubes-core-agent-networking enforces these lists; qubes-guestnet has no counts",
    OFF: "the service qubes-firewall is off in this qube: these lists have NO effect",
}


def as_text(lists: Iterable[ListShown], vifs: Mapping[IPAddress, str], enforcer: str) -> Iterator[Line]:
    """Yield the lines for a terminal.

    Args:
        lists: of the addresses that were asked for.
        vifs: name of the vif of each.
        enforcer: OURS, ANOTHER or OFF.
    """
    if enforcer in _ENFORCERS:
        yield line(warn(_ENFORCERS[enforcer]))
    for each in lists:
        yield line(name(vifs.get(each.address, "")), f" {each.address}: ", *_state(each))
        yield from (line("  ", (bad if problem.blocks else warn)(str(problem))) for problem in each.problems)
        for entry in each.entries:
            yield _entry(entry)
        if each.condition is None or each.condition.state != WAITING:
            words = "accept" if each.accept else "drop"
            yield line("  policy ", words, *_packets(each.policy))
        for warning in each.bound.warnings:
            yield line("  ", warn(warning))
        for server, number in each.shadowed:
            shadow = (
                f"entry {number:04} refuses the name server {server} before another one allows it (specialtarget=dns)"
            )
            yield line("  ", warn(shadow))
        for host in each.names:
            yield from _name(host)


def _state(each: ListShown) -> Iterator[str | Piece]:
    if each.condition is None:
        yield f"{len(each.entries)} entries"
        return
    style, words = _STATES[each.condition.state]
    yield style(words)
    if each.same is False:
        yield "; "
        yield warn("the entries in QubesDB, shown below, are not those in force yet")


def _entry(entry: EntryShown) -> Line:
    note = (f"  # {entry.note}",) if entry.note else ()
    return line(f"  {entry.number:04}  {entry.text}", *_packets(entry.packets), *map(warn, note))


def _packets(packets: int | None) -> tuple[str | Piece, ...]:
    return () if packets is None else ("  ", dim(amount(packets, "packet")))


def _name(host: NameShown) -> Iterator[Line]:
    addresses = ", ".join(map(_address, host.addresses)) or ("no address" if host.known else "not known")
    yield line("  ", name(host.name), f": {addresses}")
    if host.trouble:
        yield line("    ", warn(host.trouble))


def _address(held: AddressShown) -> str:
    if held.heard is None:
        return str(held.address)
    left = "" if held.current else "not in the last answer; "
    return f"{held.address} ({left}received {held.heard} s ago, time to live {held.ttl} s)"


def as_data(lists: Iterable[ListShown], vifs: Mapping[IPAddress, str], enforcer: str) -> dict[str, Any]:
    """Return it for `--json`. Arguments as for `as_text`."""
    return {
        "schema": SCHEMA,
        "enforced_by": enforcer,
        "lists": [_data(each, vifs.get(each.address)) for each in lists],
    }


def _data(each: ListShown, vif: str | None) -> dict[str, Any]:
    return {
        "address": str(each.address),
        "vif": vif,
        "state": each.condition.state if each.condition is not None else None,
        "as_in_qubesdb": each.same,
        "policy": {"action": "accept" if each.accept else "drop", "packets": each.policy},
        "problems": [problem._asdict() for problem in each.problems],
        "warnings": list(each.bound.warnings),
        "entries": [{**entry._asdict(), "note": entry.note or None} for entry in each.entries],
        "names": [_name_data(host) for host in each.names],
        "refused_name_servers": [{"server": str(server), "entry": number} for server, number in each.shadowed],
    }


def _name_data(host: NameShown) -> dict[str, Any]:
    addresses = [{**held._asdict(), "address": str(held.address)} for held in host.addresses]
    return {"name": host.name, "known": host.known, "trouble": host.trouble or None, "addresses": addresses}
