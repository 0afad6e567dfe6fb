# SPDX-License-Identifier: GPL-2.0-or-later
"""How a report reads: lines for a terminal, plain data for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from . import rendering_provider
from .networkmanager import ManagerChoice
from .presence import NOBODY, Presence, programs
from .report import InterfaceReport, Report, ResolverReport, Standing, server_words
from .resolver import parse
from .values import State


def as_data(report: Report, standing: Standing, presence: Presence = NOBODY) -> dict[str, Any]:
    """A report as dictionaries, lists and strings, for `--json`. Keys are part of the interface."""
    return {
        "interfaces": [_interface_data(interface) for interface in report.interfaces],
        "resolver": _resolver_data(report.resolver),
        "dns": [str(server) for server in report.settings.dns.servers],
        "provider": rendering_provider.as_data(report.provided),
        "settled": report.settled,
        "plan": list(report.plan),
        "errors": list(dict.fromkeys(map(str, report.errors))),
        "agent": standing._asdict(),
        "others": list(programs(presence)),
    }


def as_text(report: Report, standing: Standing, presence: Presence = NOBODY) -> Iterator[str]:
    """A report as lines for a terminal."""
    if not report.interfaces and not report.settings.uplinks:  # `status vif4.0` leaves the uplinks out
        alone = report.provided is not None and report.provided.active
        nothing = "dom0 has set no provider for this qube"
        yield f"no uplink of Qubes: {nothing}" if alone else f"no interface is expected: {nothing}"
    for interface in report.interfaces:
        yield from _interface_lines(interface)
    if report.resolver is not None:
        servers = server_words(report.resolver.current)
        yield f"{report.resolver.path}: {servers} ({report.resolver.decision.reasons})"
    yield from rendering_provider.as_text(report.provided)
    yield "to do:" if report.plan else "to do: nothing"
    yield from (f"  {line}" for line in report.plan)
    since = f" since {standing.since}" if standing.since else ""
    yield f"agent: running, state unchanged{since}" if standing.running else "agent: not running"
    others = programs(presence)
    if others:
        yield f"other programs: {', '.join(others)}"
    if standing.error:
        yield f"last error: {standing.error}"
    yield from dict.fromkeys(f"error: {error}" for error in report.errors)


def _interface_lines(interface: InterfaceReport) -> Iterator[str]:
    if interface.link is None:
        why = "detached" if interface.detached else "not there"
        yield f"interface {interface.settings.mac}: {why}"
        return
    link = interface.link
    state = "configured" if interface.configured else "taken down" if interface.removed else "NOT configured"
    carrier = "carrier" if link.running else "no carrier"
    yield f"{link.name} ({link.mac}, {link.driver}): {state}, {'up' if interface.observed.up else 'down'}, {carrier}"
    if interface.manager != ManagerChoice():
        yield f"  configured by: {interface.manager.reasons}"
    if interface.waiting:
        yield f"  NetworkManager has not configured it: {interface.waiting}"
    yield f"  addresses: {_join(interface.observed.addresses) or 'none'}"
    yield f"  default route: style {interface.choice.style.value} ({interface.choice.reason})"
    for route in sorted(interface.observed.routes, key=str):
        yield f"    {_route(route.destination, route.gateway, route.metric)}"
    for family in sorted(interface.settings.held):
        yield f"  IPv{family}: settings invalid, what was configured stays"


def _interface_data(interface: InterfaceReport) -> dict[str, Any]:
    link = interface.link
    return {
        "mac": interface.settings.mac,
        "name": link.name if link else None,
        "index": link.ifindex if link else None,
        "driver": link.driver if link else None,
        "present": link is not None,
        "expected": interface.expected,
        "configured": interface.configured,
        "style": interface.choice.style.value,
        "style_reason": interface.choice.reason,
        "removed": interface.removed,
        "manager": interface.manager.manager.value,
        "waiting": interface.waiting,
        "mtu": interface.observed.mtu,
        "held": [f"ipv{family}" for family in sorted(interface.settings.held)],
        "desired": _state_data(interface.desired),
        "observed": _state_data(interface.observed),
        "plan": [str(op) for op in interface.plan],
    }


def _state_data(state: State) -> dict[str, Any]:
    return {
        "up": state.up,
        "group": state.group,
        "addresses": sorted(map(str, state.addresses)),
        "neighbours": sorted(f"{n.address} {n.mac}{' permanent' if n.permanent else ''}" for n in state.neighbours),
        "routes": sorted(_route(route.destination, route.gateway, route.metric) for route in state.routes),
    }


def _resolver_data(resolver: ResolverReport | None) -> dict[str, Any] | None:
    if resolver is None:
        return None
    return {
        "path": resolver.path,
        "owner": resolver.decision.owner.name.lower(),
        "reasons": resolver.decision.reasons,
        "servers": [str(server) for server in parse(resolver.current).servers],
        "pending": resolver.pending,
    }


def _route(destination: object, gateway: object, metric: int) -> str:
    words = "default" if str(destination) in ("0.0.0.0/0", "::/0") else str(destination)
    words += f" via {gateway}" if gateway is not None else " device route"
    return f"{words} metric {metric}" if metric else words


def _join(things: Iterable[object]) -> str:
    return " ".join(sorted(map(str, things)))
