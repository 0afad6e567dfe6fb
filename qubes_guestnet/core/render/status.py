# SPDX-License-Identifier: GPL-2.0-or-later
"""Render a report for a terminal: the lines of `status`, in full and brief, and of `plan`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .. import wording
from ..check.coexisting_services import ABSENT, Presence, programs
from ..report import InterfaceReport, Report, Standing, server_words
from ..uplink.networkmanager import ManagerChoice
from ..values import Route
from . import provider as render_provider
from .changes import changes
from .styled import Line, Piece, bad, dim, good, line, name, warn

_NAME_WIDTH, _STATE_WIDTH = 16, 15


def as_text(report: Report, standing: Standing, presence: Presence = ABSENT) -> Iterator[Line]:
    """Yield the lines of a report for a terminal."""
    if not report.interfaces and not report.settings.uplinks:  # `status vif4.0` leaves the uplinks out
        alone = report.provided is not None and report.provided.active
        nothing = "dom0 has set no provider for this qube"
        yield line(f"no uplink of Qubes: {nothing}" if alone else f"no interface is expected: {nothing}")
    for interface in report.interfaces:
        yield from _interface_lines(interface)
    if report.resolver is not None:
        servers = server_words(report.resolver.current)
        owner = wording.owner(report.resolver.decision)
        owner = f"to be {owner}" if report.resolver.pending and owner.startswith("written") else owner
        yield line(name(report.resolver.path), f": {servers}, ", dim(owner))
    yield from render_provider.as_text(report.provided)
    yield line("to do:") if report.plan else line("to do: ", good("nothing"))
    yield from (line("  ", warn(operation)) for operation in report.plan)
    since = f", state unchanged since {standing.since}" if standing.since else ""
    yield line("agent: ", good("running"), since) if standing.running else line("agent: ", bad("not running"))
    others = programs(presence)
    if others:
        yield line(f"other programs: {', '.join(others)}")
    if standing.error:
        yield line("last error: ", bad(standing.error))
    yield from (line(bad("error"), f": {words}") for words in dict.fromkeys(map(str, report.errors)))


def as_plan(report: Report) -> Iterator[Line]:
    """Yield a line per operation: a command, and after `#`, which a shell ignores, the difference and the reason."""
    for change in changes(report):
        before = (bad(change.before), " → ") if change.before else ("→ ",)
        yield line(change.operation, "  # ", *before, good(change.after), ": ", dim(change.reason))


def brief(report: Report) -> Iterator[Line]:
    """Yield a line per interface: name, state and addresses, as `ip -brief address`."""
    for interface in report.interfaces:
        there = interface.link.name if interface.link is not None else interface.settings.mac
        yield _brief(there, _state(interface), interface.observed.addresses)
    yield from (_brief(*row) for row in render_provider.rows(report.provided))


def _brief(there: str, state: Piece, addresses: Iterable[object]) -> Line:
    padding = " " * max(_STATE_WIDTH - len(state.text), 1)
    listed = _join(addresses)
    known = line(name(f"{there:{_NAME_WIDTH}}"), " ", state)
    return line(known, padding, " ", listed) if listed else known


def _state(interface: InterfaceReport) -> Piece:
    if interface.link is None:
        return dim("detached") if interface.detached else bad("not there") if interface.expected else dim("not there")
    if interface.configured:
        return good("configured")
    return dim("taken down") if interface.removed else bad("NOT configured")


def _interface_lines(interface: InterfaceReport) -> Iterator[Line]:
    state = _state(interface)
    if interface.link is None:
        yield line("interface ", name(interface.settings.mac), ": ", state)
        return
    link = interface.link
    up = good("up") if interface.observed.up else warn("down")
    carrier = good("carrier") if link.running else warn("no carrier")
    yield line(name(link.name), f" ({link.mac}, {link.driver}): ", state, ", ", up, ", ", carrier)
    if interface.manager != ManagerChoice():
        yield line(f"  configured by: {wording.manager(interface.manager)}")
    if interface.waiting:
        yield line("  NetworkManager has not configured it: ", warn(interface.waiting))
    yield line(f"  addresses: {_join(interface.observed.addresses) or 'none'}")
    yield line(f"  default route: {wording.style(interface.choice)}")
    for route in sorted(interface.observed.routes, key=str):
        yield line(f"    {route_text(route)}")
    for family in sorted(interface.settings.held):
        yield line("  ", warn(f"IPv{family}: settings invalid, its configuration stays"))


def route_text(route: Route) -> str:
    """Return a route in words."""
    words = str(route.destination) if route.destination.prefixlen else "default"
    words += f" via {route.gateway}" if route.gateway is not None else " device route"
    return f"{words} metric {route.metric}" if route.metric else words


def _join(things: Iterable[object]) -> str:
    return " ".join(sorted(map(str, things)))
