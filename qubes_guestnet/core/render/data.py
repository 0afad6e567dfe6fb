# SPDX-License-Identifier: GPL-2.0-or-later
"""Render a report as data for `status --json` and `plan --json`; docs/status.schema.json describes each key.

Keys stay, because scripts read them: the structured keys are beside the older ones with the same content in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ... import __version__
from .. import wording
from ..check.coexisting_services import ABSENT, Presence, programs
from ..check.findings import Finding
from ..dns.resolv_conf import parse
from ..namedtuple import NamedTuple
from ..plan import way
from ..report import InterfaceReport, Report, ResolverReport, Standing
from ..values import IPInterface, Neighbour, Route, State
from . import provider as render_provider
from .changes import changes
from .status import route_text
from .traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Thing = TypeVar("Thing")

SCHEMA = 1  # it is raised when a key changes its meaning or is removed


class Beside(NamedTuple):
    """Further facts that are printed with a report.

    Args:
        standing: of the agent.
        presence: other programs in this qube.
        findings: what `check` says of it.
        traffic: packets and bytes, by name of the interface.
    """

    standing: Standing = Standing()
    presence: Presence = ABSENT
    findings: tuple[Finding, ...] = ()
    traffic: Mapping[str, Traffic] = {}


def as_data(report: Report, beside: Beside) -> dict[str, Any]:
    """Return a report as dictionaries, lists and strings. Keys are part of the interface."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "interfaces": [_interface_data(interface, beside.traffic) for interface in report.interfaces],
        "resolver": _resolver_data(report.resolver),
        "dns": [str(server) for server in report.settings.dns.servers],
        "provider": render_provider.as_data(report.provided, beside.traffic),
        "settled": report.settled,
        "plan": list(report.plan),
        "operations": plan_data(report),
        "errors": list(dict.fromkeys(map(str, report.errors))),
        "findings": [finding._asdict() for finding in beside.findings],
        "agent": beside.standing._asdict(),
        "others": list(programs(beside.presence)),
    }


def plan_data(report: Report) -> list[dict[str, str | None]]:
    """Return the operations of a plan, each with the present state, the desired state and the reason."""
    return [
        {
            "operation": change.operation,
            "interface": change.interface or None,
            "is": change.before or None,
            "will_be": change.after,
            "reason": change.reason,
        }
        for change in changes(report)
    ]


def _interface_data(interface: InterfaceReport, traffic: Mapping[str, Traffic]) -> dict[str, Any]:
    link, desired, observed = interface.link, interface.desired, interface.observed
    return {
        "mac": interface.settings.mac,
        "name": link.name if link else None,
        "index": link.ifindex if link else None,
        "driver": link.driver if link else None,
        "present": link is not None,
        "up": link is not None and observed.up,
        "carrier": link is not None and link.running,
        "expected": interface.expected,
        "configured": interface.configured,
        "style": interface.choice.style.value,
        "style_reason": interface.choice.reason,
        "removed": interface.removed,
        "manager": interface.manager.manager.value,
        "manager_reason": wording.manager(interface.manager),
        "waiting": interface.waiting,
        "mtu": observed.mtu,
        "held": [f"ipv{family}" for family in sorted(interface.settings.held)],
        "ipv6_left_out": interface.no_ipv6 or None,
        "addresses": _sides(desired.addresses, observed.addresses, _address_data),
        "routes": _sides(desired.routes, observed.routes, _route_data, way),
        "neighbours": _sides(desired.neighbours, observed.neighbours, _neighbour_data),
        "traffic": render_provider.traffic_data(traffic, link),
        "desired": _state_data(desired),
        "observed": _state_data(observed),
        "plan": [str(op) for op in interface.plan],
    }


def _sides(
    desired: Iterable[Thing],
    observed: Iterable[Thing],
    data: Callable[[Thing], dict[str, Any]],
    key: Callable[[Thing], object] = lambda thing: thing,
) -> list[dict[str, Any]]:
    """Merge the desired and the observed objects into one list; objects with the same `key` are one entry."""
    wanted, there = ({key(thing): thing for thing in side} for side in (desired, observed))
    both = {**wanted, **there}
    found = [{**data(thing), "desired": same in wanted, "present": same in there} for same, thing in both.items()]
    return sorted(found, key=str)


def _address_data(address: IPInterface) -> dict[str, Any]:
    return {"family": address.version, "address": str(address.ip), "prefix": address.network.prefixlen}


def _route_data(route: Route) -> dict[str, Any]:
    return {
        "family": route.destination.version,
        "destination": str(route.destination),
        "gateway": str(route.gateway) if route.gateway is not None else None,
        "onlink": route.onlink,
        "metric": route.metric,
        "protocol": route.protocol,
    }


def _neighbour_data(entry: Neighbour) -> dict[str, Any]:
    return {
        "family": entry.address.version,
        "address": str(entry.address),
        "mac": entry.mac or None,
        "permanent": entry.permanent,
    }


def _state_data(state: State) -> dict[str, Any]:
    return {
        "up": state.up,
        "group": state.group,
        "addresses": sorted(map(str, state.addresses)),
        "neighbours": sorted(f"{n.address} {n.mac}{' permanent' if n.permanent else ''}" for n in state.neighbours),
        "routes": sorted(map(route_text, state.routes)),
    }


def _resolver_data(resolver: ResolverReport | None) -> dict[str, Any] | None:
    if resolver is None:
        return None
    wanted = resolver.wanted
    return {
        "path": resolver.path,
        "owner": resolver.decision.owner.name.lower(),
        "reasons": resolver.decision.reasons,
        "why": wording.owner(resolver.decision),
        "servers": [str(server) for server in parse(resolver.current).servers],
        "wanted": None if wanted is None else [str(server) for server in parse(wanted).servers],
        "pending": resolver.pending,
    }
