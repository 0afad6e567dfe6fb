# SPDX-License-Identifier: GPL-2.0-or-later
"""Render the provider's half of a report: lines for a terminal, plain data for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import SettingsError, printable
from ..dns import upstream_servers
from ..dns.upstream_servers import FOREIGN
from ..nft.foreign_chains import NO_FIREWALL
from ..owned_state import HELD, OFFLOADED
from ..provider import closed_forwarding
from ..values import IPAddress, Link
from .styled import Line, Piece, bad, good, line, name, warn
from .traffic import Traffic

if TYPE_CHECKING:
    from ..provider.provider_report import ProviderReport
    from ..provider.vif import Mapping as Mapped
    from ..provider.vif_order import VifReport


def as_data(report: ProviderReport | None, traffic: Mapping[str, Traffic]) -> dict[str, Any] | None:
    """Return the provider's half for `--json`, whose keys are stable; None in a qube that is not a provider."""
    if report is None:
        return None
    return {
        "active": report.active,
        "ipv6": report.ipv6,
        "ipv6_refused": _refuses6(report),
        "forwarding": _families(report.forwarding),
        "closed": report.closed,
        "stopped": _families(report.stopped),
        "not_forwarded": list(dict.fromkeys(name for name, _ in report.apart)),
        "hold": report.hold,
        "lost": list(report.lost),
        "unfiltered": report.unfiltered,
        "firewall": report.firewall,
        "rules": report.ruled,
        "held": sorted(report.settings.held),
        "dns": _names_data(report),
        "offload": _offload(report),
        "offloading": report.offload.startswith(OFFLOADED),
        "firewall_changed": list(report.firewall_changed),
        "firewall_scripts": _scripts_data(report),
        "vifs": [_vif_data(vif, report, traffic) for vif in report.vifs],
        "plan": list(report.todo),
    }


def _scripts_data(report: ProviderReport) -> dict[str, Any]:
    running, failed = report.scripts if report.scripts is not None else ("", ())
    return {"running": running, "failed": [{"path": path, "reason": reason} for path, reason in failed]}


def _names_data(report: ProviderReport) -> dict[str, Any]:
    return {
        "virtual": list(map(str, report.settings.virtual_dns)),
        "servers": list(map(str, report.names.servers)),
        "redirected": [
            {"virtual": str(address), "server": str(server)}
            for address, server in upstream_servers.pairs(report.settings.virtual_dns, report.names.servers)
        ],
        "reason": report.names.reason,
        "problem": report.names.problem,
    }


def as_text(report: ProviderReport | None) -> Iterator[Line]:
    """Yield the lines of the provider's half."""
    if report is None:
        return
    forwards = (
        report.active
        and bool(report.forwarding)
        and not (report.stopped or report.apart)
        and report.firewall != NO_FIREWALL
    )
    yield line(name("provider"), ": ", (good if forwards else warn)(_forwarding(report)))
    if _refuses6(report):
        yield line("  IPv6 of the qubes is refused: dom0 has given this qube no /qubes-netvm-gateway6")
    if not report.ruled:
        yield line("  base rules: ", bad(_rules(report)))
    if report.lost:
        yield line("  lost together with our rules: ", bad(", ".join(report.lost)))
    for path, reason in report.scripts.failed if report.scripts is not None else ():
        yield line("  firewall script failed: ", bad(printable(f"{path} ({reason})")))
    for held in sorted(report.settings.held):
        yield line("  ", warn(f"{held}: settings invalid, those in force stay"))
    if report.active:
        yield line(name("virtual DNS"), f": {_names(report)}")
        yield line(name("offload"), f": {_offload(report)}")
    for vif in report.vifs:
        others = _sharing(report, vif)
        shared = (bad(f"; DUPLICATE ADDRESS, same as {_join(others)}"),) if others else ()
        yield from _with_firewall(report, vif, line(_vif_line(vif), *shared))


def _with_firewall(report: ProviderReport, vif: VifReport, told: Line) -> Iterator[Line]:
    """Yield the line of a vif, with the firewall of its addresses where this program enforces it."""
    if not report.conditions:
        yield told
        return
    from . import firewall  # others need not load its parser

    own = firewall.of(vif.vif.addresses, report.conditions)
    yield line(told, *firewall.pieces(own))
    yield from firewall.problems(own)


def _firewall_data(report: ProviderReport, addresses: Iterable[IPAddress]) -> list[dict[str, Any]]:
    if not report.conditions:
        return []
    from . import firewall

    return firewall.as_data(firewall.of(addresses, report.conditions))


def rows(report: ProviderReport | None) -> Iterator[tuple[str, Piece, Iterable[IPAddress]]]:
    """Yield name, state and addresses of each vif."""
    for each in report.vifs if report is not None else ():
        state = good("configured") if each.configured else bad("NOT configured")
        unseen = not each.seen and each.link is not None and not each.todo
        yield each.vif.name.text, warn("not seen") if unseen else state, each.vif.addresses


def _rules(report: ProviderReport) -> str:
    if any(error.needs_root for error in report.errors):
        return "run as root to see them"
    looked = all(isinstance(error, SettingsError) for error in report.errors)
    return "NOT as required" if looked else "unknown, see the errors"


def _forwarding(report: ProviderReport) -> str:
    named = " and ".join(word.replace("ipv", "IPv") for word in _families(report.forwarding))
    if not report.active:
        what = f"forwards {named}, because another program enabled it" if named else "forwards nothing"
        return f"{what} (service flag qubes-network is not set)"
    if report.forwarding:
        return f"forwards {named}{_filtered(report.firewall)}{_stopped(report)}{_apart(report)}"
    running = report.scripts.running if report.unfiltered and report.scripts is not None else ""
    if running:
        return f"forwards nothing (qubes-firewall.service runs {printable(running)})"
    reason = closed_forwarding.reason(report)
    if reason:
        return f"forwards nothing ({reason}{'; `forwarding on` ends it' if report.hold == HELD else ''})"
    return f"forwards nothing{_stopped(report) or ' yet'}"


def _filtered(firewall: str) -> str:
    if firewall == NO_FIREWALL:
        return ", UNFILTERED (the service qubes-firewall is on, but there is no firewall)"
    return f" by the last rules of the firewall (qubes-firewall.service is {firewall})" if firewall else ""


def _stopped(report: ProviderReport) -> str:
    words = " and ".join(word.replace("ipv", "IPv") for word in _families(report.stopped))
    return f" ({words} switched off by its owner or another program: `forwarding on` ends that)" if words else ""


def _apart(report: ProviderReport) -> str:
    names = ", ".join(dict.fromkeys(printable(name) for name, _ in report.apart))
    return f", but not packets from {names}, whose own forwarding is 0: `forwarding on` ends that" if names else ""


def _refuses6(report: ProviderReport) -> bool:
    return report.active and report.settings.refuse6


def _offload(report: ProviderReport) -> str:
    return report.offload or "not checked yet: the resident agent decides it"


def _families(forwarding: Iterable[int]) -> list[str]:
    return [f"ipv{family}" for family in sorted(forwarding)]


def _names(report: ProviderReport) -> str:
    virtual = _join(report.settings.virtual_dns)
    if "dns" in report.settings.held:
        return "as it was"
    if report.names.problem == FOREIGN:
        return report.names.reason
    if not report.names.servers:
        why = "refused" if report.names.problem else "rejected: no server known"
        return f"{virtual} {why} ({report.names.reason})"
    return f"{virtual} -> {_join(report.names.servers)} ({report.names.reason})"


def _sharing(report: ProviderReport, vif: VifReport) -> list[str]:
    """Return the other vifs that have an address of this one."""
    own = vif.vif.name.text
    found = dict.fromkeys(other for names in report.duplicates if own in names for other in names)
    return [other for other in found if other != own]


def _vif_line(report: VifReport) -> Line:
    vif = report.vif
    shown: dict[IPAddress, str] = {mapping.real: _mapping(mapping) for mapping in vif.mappings}
    addresses = " ".join(f"{address}{shown.get(address, '')}" for address in vif.addresses) or "no address"
    since = "" if report.now is None else f"; {_since(report.now)} when the qube is attached again"
    todo = next(iter(report.todo), "its device is gone")
    unseen = not report.seen and report.link is not None and not report.todo
    wrong = warn("run as root to see whether it may send") if unseen else bad(f"NOT configured, first: {todo}")
    state = good("configured") if report.configured else wrong
    return line(name(vif.name.text), f": {addresses}, ", state, f"{_unanswered(report)}{since}")


def _since(now: tuple[Mapped, ...]) -> str:
    return ", ".join(f"{mapping.real}{_mapping(mapping)}" for mapping in now) or "it sees its real address"


def _unanswered(report: VifReport) -> str:
    """Return the unanswered connections and the refused packets of a qube, for a line of text; "" for none."""
    counts = report.counts
    if counts is None or not any((count.unanswered, count.refused) != (0, 0) for count in counts):
        return ""
    words = [
        f"{count.unanswered} of {count.limit} {kind}" + (f" ({count.refused} packets refused)" if count.refused else "")
        for kind, count in zip(("names", "connections"), counts, strict=True)
    ]
    return f", unanswered: {', '.join(words)}"


def _mapping(mapping: Mapped) -> str:
    gateway = f" by {mapping.gateway}" if mapping.gateway is not None else ""
    return f" (it sees {mapping.visible}{gateway})"


def _vif_data(report: VifReport, whole: ProviderReport, traffic: Mapping[str, Traffic]) -> dict[str, Any]:
    vif, link = report.vif, report.link
    return {
        "name": vif.name.text,
        "domid": vif.name.domid,
        "mac": vif.mac,
        "type": vif.kind,
        "addresses": list(map(str, vif.addresses)),
        "mappings": _mappings_data(vif.mappings),
        "mappings_when_attached_again": None if report.now is None else _mappings_data(report.now),
        "unanswered": _counts_data(report),
        "traffic": traffic_data(traffic, link),
        "present": link is not None,
        "up": link is not None and link.up,
        "configured": report.configured if report.seen or report.todo else None,
        "duplicate_of": _sharing(whole, report),
        "firewall": _firewall_data(whole, vif.addresses),
        "plan": list(report.todo),
    }


def traffic_data(traffic: Mapping[str, Traffic], link: Link | None) -> dict[str, Any] | None:
    """Return packets and bytes of an interface; None if it is missing or they are unknown."""
    found = traffic.get(link.name) if link is not None else None
    return None if found is None else {"received": found.received._asdict(), "sent": found.sent._asdict()}


def _mappings_data(mappings: Iterable[Mapped]) -> list[dict[str, str | None]]:
    return [
        {"real": str(m.real), "visible": str(m.visible), "gateway": str(m.gateway) if m.gateway else None}
        for m in mappings
    ]


def _counts_data(report: VifReport) -> dict[str, dict[str, int]] | None:
    counts = report.counts
    return None if counts is None else {kind: count._asdict() for kind, count in counts._asdict().items()}


def _join(things: Iterable[object]) -> str:
    return " ".join(map(str, things))
