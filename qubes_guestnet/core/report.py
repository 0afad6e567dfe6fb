# SPDX-License-Identifier: GPL-2.0-or-later
"""What a pass found and did, and how it reads: text for people, plain data for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ..errors import ConfigError, GuestnetError, SettingsError
from .plan import Op
from .resolver import Decision, Owner, parse
from .settings import Settings, UplinkSettings
from .uplink import Style, StyleChoice
from .values import Link, State


class InterfaceReport(NamedTuple):
    """One uplink in one pass.

    Args:
        settings: what dom0 asks for.
        link: the interface, None while it is not there.
        choice: default-route style and why.
        desired: state asked for.
        observed: state found at the end of the pass.
        plan: what was still to do then; after a pass that was not dry, empty or an error.
        detached: it was there and went, and dom0 has written nothing since.
        removed: `uplink remove` took it down, and it stays down.
    """

    settings: UplinkSettings
    link: Link | None
    choice: StyleChoice
    desired: State = State()
    observed: State = State()
    plan: tuple[Op, ...] = ()
    detached: bool = False
    removed: bool = False

    @property
    def expected(self) -> bool:
        """Whether the interface is there or about to come."""
        asked = self.settings.ipv4 is not None or self.settings.ipv6 is not None or bool(self.settings.held)
        return asked and not self.removed and (self.link is not None or not self.detached)

    @property
    def configured(self) -> bool:
        """Present, up and as the settings ask, of which at least one family is valid."""
        there = self.link is not None and self.observed.up and not self.removed
        return there and not self.plan and bool(self.desired.addresses)


class ResolverReport(NamedTuple):
    """resolv.conf in one pass.

    Args:
        path: the file.
        decision: who owns it and why.
        wanted: content asked for, None where the file is not ours to write.
        current: content at the end of the pass.
        written: whether this pass wrote it.
    """

    path: str
    decision: Decision
    wanted: bytes | None
    current: bytes | None
    written: bool

    @property
    def pending(self) -> bool:
        """Whether the file still differs from what is wanted."""
        return self.wanted is not None and self.wanted != self.current


class Report(NamedTuple):
    """One pass.

    Args:
        settings: as parsed.
        interfaces: one entry an uplink that the keys name.
        resolver: None where no interface is there, or the file could not be looked at.
        applied: operations carried out, in order.
        errors: everything that went wrong, settings first.
    """

    settings: Settings
    interfaces: tuple[InterfaceReport, ...] = ()
    resolver: ResolverReport | None = None
    applied: tuple[Op, ...] = ()
    errors: tuple[GuestnetError, ...] = ()

    @property
    def plan(self) -> tuple[str, ...]:
        """What is still to do, one line an operation."""
        lines = [str(op) for interface in self.interfaces for op in interface.plan]
        if self.resolver is not None and self.resolver.pending:
            lines.append(f"publish {self.resolver.path}: {_servers(self.resolver.wanted or b'')}")
        return tuple(lines)

    @property
    def settled(self) -> bool:
        """True when every interface that is expected is there and configured, at once when none is expected."""
        return all(report.configured for report in self.interfaces if report.expected)


class Standing(NamedTuple):
    """What the resident agent left in /run for others to read.

    Args:
        running: whether an agent is there now.
        since: when the present state was reached, ISO 8601; "" when unknown.
        error: its last error, "" when the last pass had none.
    """

    running: bool = False
    since: str = ""
    error: str = ""


class Finding(NamedTuple):
    """One result of `check`.

    Args:
        code: stable name, documented in docs/check-codes.md.
        severity: "error", "warning" or "note"; only errors make `check` fail.
        problem: what is wrong, one line.
        remedy: what to do about it.
    """

    code: str
    severity: str
    problem: str
    remedy: str


class Evidence(NamedTuple):
    """All that `check` looked at.

    Args:
        report: a dry pass, None when QubesDB did not answer.
        store_error: why it did not.
        standing: of the agent.
        silent_servers: nameservers that did not answer a query.
        neighbour_limit: net.ipv4.neigh.default.gc_thresh3, 0 when it cannot be read here.
    """

    report: Report | None
    store_error: str = ""
    standing: Standing = Standing()
    silent_servers: tuple[str, ...] = ()
    neighbour_limit: int = 0


# A device route takes a neighbour entry a destination; at the kernel's default of 1024 the 1022nd fails for 40 s.
ENOUGH_NEIGHBOURS = 32768


def findings(evidence: Evidence) -> tuple[Finding, ...]:
    """What is wrong, gravest first; empty when all is well."""
    found = list(_machine_findings(evidence))
    if evidence.report is not None:
        found += _settings_findings(evidence.report)
        for interface in evidence.report.interfaces:
            found += _interface_findings(interface)
        found += _resolver_findings(evidence)
    return tuple(sorted(found, key=lambda finding: ("error", "warning", "note").index(finding.severity)))


def _machine_findings(evidence: Evidence) -> Iterator[Finding]:
    if evidence.report is None:
        remedy = "is qubes-db.service running? systemctl status qubes-db"
        yield Finding("no-qubesdb", "error", evidence.store_error, remedy)
        return
    if not evidence.standing.running:
        problem = "the resident agent is not running: changes from dom0 will not be followed"
        yield Finding("agent-not-running", "warning", problem, "systemctl start qubes-guestnet")
    elif evidence.standing.error:
        yield Finding("agent-error", "error", f"the agent's last pass: {evidence.standing.error}", "see its journal")
    device = any(i.link is not None and i.choice.style is Style.DEVICE for i in evidence.report.interfaces)
    if device and 0 < evidence.neighbour_limit < ENOUGH_NEIGHBOURS:
        problem = f"net.ipv4.neigh.default.gc_thresh3 is {evidence.neighbour_limit}: more destinations at once fail"
        remedy = f"raise it to {ENOUGH_NEIGHBOURS} (sysctl.d), or use the service flag guestnet-gateway-route"
        yield Finding("neighbour-limit-low", "warning", problem, remedy)


def _settings_findings(report: Report) -> Iterator[Finding]:
    for error in report.errors:
        code = {SettingsError: "settings-invalid", ConfigError: "config-invalid"}.get(type(error), "pass-failed")
        yield Finding(code, "error", error.problem, error.remedy or "see the journal of qubes-guestnet")
    if not any(interface.expected or interface.link for interface in report.interfaces) and not report.settings.held:
        problem = "no provider is set: dom0 names no interface for this qube"
        yield Finding("no-provider", "note", problem, "nothing to do; or set one: qvm-prefs QUBE netvm PROVIDER")


def _interface_findings(interface: InterfaceReport) -> Iterator[Finding]:
    mac = interface.settings.mac
    if interface.link is None:
        if interface.expected:
            problem = f"dom0 expects an interface with the address {mac}, and there is none"
            yield Finding("interface-missing", "error", problem, "is the provider running? set it anew: qvm-prefs")
        return
    if interface.removed:
        problem = f"{interface.link.name} was taken down by `uplink remove`"
        yield Finding("taken-down", "note", problem, f"qubes-guestnet uplink add {interface.link.name}")
    if interface.plan:
        problem = f"{interface.link.name} is not as dom0 asks, first: {interface.plan[0]}"
        yield Finding("plan-not-empty", "error", problem, "qubes-guestnet apply, and see what it says")
    if interface.choice.reason.startswith("fall-back"):
        problem = f"{interface.link.name} uses the gateway route: {interface.choice.reason}"
        remedy = "set proxy_delay to 0 in the provider, or make it the rule by the flag guestnet-gateway-route"
        yield Finding("fallback-in-use", "warning", problem, remedy)


def _resolver_findings(evidence: Evidence) -> Iterator[Finding]:
    resolver = evidence.report.resolver if evidence.report else None
    if resolver is not None and resolver.decision.owner is not Owner.DIRECT:
        problem = f"{resolver.path} is not ours to write: {resolver.decision.reasons}"
        yield Finding("resolv-conf-foreign", "warning", problem, "nothing to do if that is meant")
    elif resolver is not None and resolver.pending:
        problem = f"{resolver.path} does not name the servers from dom0"
        remedy = "something overwrites it; qubes-guestnet apply writes it back"
        yield Finding("resolv-conf-differs", "error", problem, remedy)
    for server in evidence.silent_servers:
        problem = f"nameserver {server} does not answer"
        yield Finding("dns-unreachable", "error", problem, "is the provider online? qubes-guestnet check, there")


def as_data(report: Report, standing: Standing) -> dict[str, Any]:
    """A report as dictionaries, lists and strings, for `--json`. Keys are part of the interface."""
    return {
        "interfaces": [_interface_data(interface) for interface in report.interfaces],
        "resolver": _resolver_data(report.resolver),
        "dns": [str(server) for server in report.settings.dns.servers],
        "settled": report.settled,
        "plan": list(report.plan),
        "errors": [str(error) for error in report.errors],
        "agent": standing._asdict(),
    }


def as_text(report: Report, standing: Standing) -> Iterator[str]:
    """A report as lines for a terminal."""
    if not report.interfaces:
        yield "no interface is expected: dom0 has set no provider for this qube"
    for interface in report.interfaces:
        yield from _interface_lines(interface)
    if report.resolver is not None:
        yield f"{report.resolver.path}: {_servers(report.resolver.current or b'')} ({report.resolver.decision.reasons})"
    yield "to do:" if report.plan else "to do: nothing"
    yield from (f"  {line}" for line in report.plan)
    since = f" since {standing.since}" if standing.since else ""
    yield f"agent: running, state unchanged{since}" if standing.running else "agent: not running"
    if standing.error:
        yield f"last error: {standing.error}"
    yield from (f"error: {error}" for error in report.errors)


def _interface_lines(interface: InterfaceReport) -> Iterator[str]:
    if interface.link is None:
        why = "detached" if interface.detached else "not there"
        yield f"interface {interface.settings.mac}: {why}"
        return
    link = interface.link
    state = "configured" if interface.configured else "taken down" if interface.removed else "NOT configured"
    carrier = "carrier" if link.running else "no carrier"
    yield f"{link.name} ({link.mac}, {link.driver}): {state}, {'up' if interface.observed.up else 'down'}, {carrier}"
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
        "servers": [str(server) for server in parse(resolver.current or b"").servers],
        "pending": resolver.pending,
    }


def _route(destination: object, gateway: object, metric: int) -> str:
    words = "default" if str(destination) in ("0.0.0.0/0", "::/0") else str(destination)
    words += f" via {gateway}" if gateway is not None else " device route"
    return f"{words} metric {metric}" if metric else words


def _servers(content: bytes) -> str:
    return " ".join(map(str, parse(content).servers)) or "no nameserver"


def _join(things: Iterable[object]) -> str:
    return " ".join(sorted(map(str, things)))
