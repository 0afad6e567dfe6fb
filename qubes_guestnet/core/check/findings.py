# SPDX-License-Identifier: GPL-2.0-or-later
"""The findings of `check`: each has a code, a problem and a remedy."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import ConfigError, SettingsError
from .. import wording
from ..dns.resolv_conf import Owner, parse
from ..namedtuple import NamedTuple
from ..report import InterfaceReport, Report, Standing
from ..uplink.desired import Style
from ..values import IPV4, IPV6, ROUTE_PROTOCOL
from .coexisting_services import Presence, remarks
from .provider_findings import UNSEEN, Ground
from .provider_findings import remarks as provider_remarks


class Finding(NamedTuple):
    """One result of `check`.

    Args:
        code: stable name, documented in docs/check-codes.md.
        severity: "error", "warning" or "note"; only errors make `check` fail.
        problem: one line.
        remedy: one line.
    """

    code: str
    severity: str
    problem: str
    remedy: str


class Evidence(NamedTuple):
    """The facts that `check` has gathered.

    Args:
        report: the report of a dry pass; None if QubesDB did not answer.
        store_error: why QubesDB did not answer.
        standing: state of the agent.
        silent_servers: name servers that did not answer a query.
        neighbour_limit: net.ipv4.neigh.default.gc_thresh3; 0 if it cannot be read here.
        presence: other programs in this qube.
        ground: the rules and the vifs found.
        refusing6: IPv6 gateways that refused a ping as administratively prohibited.
    """

    report: Report | None
    store_error: str = ""
    standing: Standing = Standing()
    silent_servers: tuple[str, ...] = ()
    neighbour_limit: int = 0
    presence: Presence = Presence()
    ground: Ground = Ground()
    refusing6: tuple[str, ...] = ()


# A device route takes one neighbour entry per destination; at the kernel's default of 1024 the 1022nd fails for 40 s.
ENOUGH_NEIGHBOURS = 32768


def findings(evidence: Evidence) -> tuple[Finding, ...]:
    """Return the findings, the most severe first; empty if there is no problem."""
    found = list(_machine_findings(evidence))
    if evidence.report is not None:
        found += _settings_findings(evidence.report, unseen=evidence.ground.rules == UNSEEN)
        for interface in evidence.report.interfaces:
            found += _interface_findings(interface)
        found += _resolver_findings(evidence)
        found += _gateway6_findings(evidence)
        found += map(Finding._make, remarks(evidence.report, evidence.presence))
        found += map(Finding._make, provider_remarks(evidence.report.provided, evidence.ground))
    return tuple(sorted(found, key=lambda finding: ("error", "warning", "note").index(finding.severity)))


def _machine_findings(evidence: Evidence) -> Iterator[Finding]:
    if evidence.report is None:
        remedy = "systemctl status qubes-db"
        yield Finding("no-qubesdb", "error", evidence.store_error, remedy)
        return
    if not evidence.standing.running:
        problem = "the resident agent is not running: changes from dom0 will not be applied"
        yield Finding("agent-not-running", "warning", problem, "systemctl start qubes-guestnet")
    elif evidence.standing.error:
        yield Finding("agent-error", "error", f"the agent's last pass: {evidence.standing.error}", "see its journal")
    device = any(i.link is not None and i.choice.style is Style.DEVICE for i in evidence.report.interfaces)
    if device and 0 < evidence.neighbour_limit < ENOUGH_NEIGHBOURS:
        problem = f"net.ipv4.neigh.default.gc_thresh3 is {evidence.neighbour_limit}: destinations beyond it fail"
        remedy = f"raise it to {ENOUGH_NEIGHBOURS} (sysctl.d), or use the service flag guestnet-gateway-route"
        yield Finding("neighbour-limit-low", "warning", problem, remedy)


def _settings_findings(report: Report, *, unseen: bool) -> Iterator[Finding]:
    seen = not report.settings.held  # the expected interfaces are known
    # One cause can fail several steps of a pass.
    for error in {str(error): error for error in report.errors}.values():
        if unseen and error.needs_root:
            continue  # not a fault of the qube; the finding needs-root covers it
        code = {SettingsError: "settings-invalid", ConfigError: "config-invalid"}.get(type(error), "pass-failed")
        seen &= code != "pass-failed"
        yield Finding(code, "error", error.problem, error.remedy or "see the journal of qubes-guestnet")
    # A provider may have no interface from dom0, if it has the network card (B108).
    seen &= report.provided is None or not report.provided.active
    known = (interface.expected or interface.removed or interface.no_ipv6 for interface in report.interfaces)
    if seen and not any(known):
        problem = "no provider is set: dom0 has assigned no interface to this qube"
        yield Finding("no-provider", "note", problem, "nothing to do; or set one: qvm-prefs QUBE netvm PROVIDER")


def _interface_findings(interface: InterfaceReport) -> Iterator[Finding]:
    mac = interface.settings.mac
    if interface.link is None:
        if interface.expected:
            problem = f"dom0 expects an interface with the MAC address {mac}, but no such interface exists"
            yield Finding("interface-missing", "error", problem, "is the provider running? set it again: qvm-prefs")
        return
    if interface.removed:
        problem = f"{interface.link.name} was taken down by `uplink remove`"
        yield Finding("taken-down", "note", problem, f"qubes-guestnet uplink add {interface.link.name}")
    if interface.plan:
        problem = f"{interface.link.name} differs from dom0's settings; first pending operation: {interface.plan[0]}"
        yield Finding("plan-not-empty", "error", problem, "run qubes-guestnet apply and read its output")
    yield from _second_default_route(interface)
    yield from map(Finding._make, interface.notes)
    if interface.choice.reason.startswith("fall-back"):
        problem = f"{interface.link.name} uses the gateway route: {interface.choice.reason}"
        remedy = "set proxy_delay to 0 in the provider, or choose it permanently with the flag guestnet-gateway-route"
        yield Finding("fallback-in-use", "warning", problem, remedy)


def _second_default_route(interface: InterfaceReport) -> Iterator[Finding]:
    """Find default routes of other programs; of two with the same metric the older one is in force (behaviour B157)."""
    defaults = [route for route in interface.observed.routes if not route.destination.prefixlen]
    ours = (route for route in interface.desired.routes if not route.destination.prefixlen)
    wanted = {route.destination.version: route.metric for route in ours}
    for route in defaults:
        version = route.destination.version
        before = version in wanted and route.metric <= wanted[version] and route.protocol != ROUTE_PROTOCOL
        if not before or interface.manager.networkmanager or interface.link is None:
            continue
        way = f"via {route.gateway}" if route.gateway is not None else "without a gateway"
        problem = f"{interface.link.name} has another IPv{version} default route, {way}, which may precede ours"
        family = "-6 " if version == IPV6 else ""
        words = f"default via {route.gateway}" if route.gateway is not None else "default"
        remedy = f"if unwanted: ip {family}route delete {words} dev {interface.link.name} proto {route.protocol}"
        yield Finding("second-default-route", "note", problem, remedy)


def _resolver_findings(evidence: Evidence) -> Iterator[Finding]:
    resolver = evidence.report.resolver if evidence.report else None
    if resolver is not None and resolver.kept:
        problem = f"{resolver.path} names servers of another program, and is {wording.owner(resolver.decision)}"
        remedy = f"nothing to do if it is a VPN; otherwise stop that program and empty the file: : > {resolver.path}"
        yield Finding("resolv-conf-kept", "note", problem, remedy)
    elif resolver is not None and resolver.decision.owner not in (Owner.DIRECT, Owner.NETWORKMANAGER):
        problem = f"{resolver.path}: {wording.owner(resolver.decision)}"
        yield Finding("resolv-conf-foreign", "warning", problem, "nothing to do if that is intended")
    elif resolver is not None and resolver.pending:
        problem = f"{resolver.path} does not name the servers from dom0"
        remedy = "find the program that overwrites it; qubes-guestnet apply restores it"
        yield Finding("resolv-conf-differs", "error", problem, remedy)
    for server in evidence.silent_servers:
        problem = f"nameserver {server} does not answer"
        remedy = "is the provider, or the VPN of this server, online? run qubes-guestnet check there"
        yield Finding("dns-unreachable", "error", problem, remedy)


def servers_in_use(report: Report) -> tuple[str, ...]:
    """Return the servers in use, which `check` queries (behaviour B142).

    In a VPN qube the provider's servers are on the uplink and in resolv.conf, but queries go into the tunnel.

    Args:
        report: of a dry pass.

    Returns:
        IPv4 addresses, with a port if it is not 53; empty without an uplink.
    """
    if not any(interface.link is not None and interface.expected for interface in report.interfaces):
        return ()
    if report.provided is not None and report.provided.active:
        return tuple(map(str, report.provided.names.servers))
    if report.resolver is not None and report.resolver.kept:
        named = parse(report.resolver.current).servers
        return tuple(str(server) for server in named if server.version == IPV4 and not server.is_loopback)
    return tuple(map(str, report.settings.dns.servers))


def _gateway6_findings(evidence: Evidence) -> Iterator[Finding]:
    for gateway in evidence.refusing6:
        problem = f"the provider rejects IPv6: a ping of {gateway} is administratively prohibited"
        remedy = "run qubes-guestnet check in the provider; if ipv6 was switched on while it ran, restart it"
        yield Finding("ipv6-refused-by-provider", "warning", problem, remedy)
