# SPDX-License-Identifier: GPL-2.0-or-later
"""The findings of `check` about the rules of every qube, and about the provider role. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import printable
from ..dns import upstream_servers
from ..namedtuple import NamedTuple
from ..nft.foreign_chains import NO_FIREWALL
from ..owned_state import FIREWALL, HELD
from ..provider import closed_forwarding
from ..values import IPV4, IPV6
from .coexisting_services import Remark

TYPE_CHECKING = False  # a qube that is not a provider loads no module of that role
if TYPE_CHECKING:
    from ..firewall.condition import Condition
    from ..nft.foreign_chains import Shadow
    from ..provider.provider_report import ProviderReport
    from ..values import IPAddress
    from .cut_off import Drop

SHOWN = 5  # rules with a finding of their own
GOOD, MISSING, CHANGED, UNSEEN = "good", "missing", "changed", "unseen"
# The reason why forwarding is held after the rules were removed, and the first step of the remedy.
_HOLDS = {HELD: "; [provider] hold_after_flush is set, or other rules are not restored", FIREWALL: ""}
_SEE_TO = {HELD: "restore your own rules", FIREWALL: "systemctl restart qubes-firewall; or, without a firewall"}
_TABLES = "ip qubes, ip6 qubes and arp qubes"
_APPLY = "run qubes-guestnet apply and read its output"


class Ground(NamedTuple):
    """Facts besides the report.

    Args:
        rules: GOOD, MISSING, CHANGED, or UNSEEN without root; CHANGED only in a provider.
        unknown: names of vifs without a record.
        gone: names of vifs with a record but without a device.
        shadows: chains of other programs that run before ours.
        drops: rules in `custom-forward` that drop or reject packets.
        tunnel: the device of a VPN, "" for none.
        firewall: problem of qubes-firewall, see `foreign_chains.firewall`.
        arp: the kernel has nftables for ARP.
    """

    rules: str = GOOD
    unknown: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    shadows: tuple[Shadow, ...] = ()
    drops: tuple[Drop, ...] = ()
    tunnel: str = ""
    firewall: str = ""
    arp: bool = True


def remarks(report: ProviderReport | None, ground: Ground) -> Iterator[Remark]:
    """Yield the findings.

    Args:
        report: the report of a dry pass; None in a qube that is not a provider.
        ground: the other facts.
    """
    if ground.rules == MISSING:
        problem = f"the tables {_TABLES} are missing or incomplete: incoming packets are not filtered"
        # In a provider `rules load` would leave forwarding closed.
        yield Remark("rules-missing", "error", problem, f"qubes-guestnet {'rules load' if report is None else 'apply'}")
    if ground.rules == UNSEEN:
        beside = "" if report is None else " and the rules of client qubes"
        problem = f"only root can read the base rules{beside}: they were not checked"
        yield Remark("needs-root", "warning", problem, "run as root: sudo qubes-guestnet check")
    if report is None:
        return
    if ground.rules == CHANGED:
        problem = f"another program changed the chains of qubes-guestnet in the tables {_TABLES}"
        remedy = "qubes-guestnet apply; put your own rules into custom-input and custom-forward, see docs/provider.md"
        yield Remark("rules-changed", "warning", problem, remedy)
    for shadow in ground.shadows:
        remedy = "nothing to do if that is intended; a priority above ours makes it run later, see docs/provider.md"
        yield Remark("foreign-chain", "note", shadow.words, remedy)
    if not report.active:
        problem = "dom0 makes this qube a provider, but the service flag qubes-network is not set"
        done = "it does not forward"
        if report.forwarding:
            switched = " and ".join(f"IPv{family}" for family in sorted(report.forwarding))
            done = f"{switched} forwarding is on, because another program enabled it"
        remedy = "qvm-service QUBE qubes-network on, and restart it"
        yield Remark("provider-flag-missing", "warning", f"{problem}: {done}", remedy)
        return
    if ground.firewall and report.forwarding:
        yield _firewall(ground.firewall)
    yield from _forwarding(report)
    if not ground.arp:
        problem = "this kernel has no nftables for ARP: only rp_filter stops ARP spoofing by client qubes"
        yield Remark("arp-unfiltered", "note", problem, "use a kernel with CONFIG_NF_TABLES_ARP, as dom0 provides it")
    yield from _ipv6(report)
    yield from _names(report)
    yield from _cut_off(ground, ipv6=report.ipv6)
    yield from _vifs(report, ground)
    yield from _lists(report)


def _firewall(state: str) -> Remark:
    if state == NO_FIREWALL:
        problem = "client qubes are UNFILTERED: the service qubes-firewall is on, but there is no firewall"
        remedy = "systemctl start qubes-firewall; or qubes-guestnet forwarding off"
        return Remark("firewall-missing", "error", problem, remedy)
    problem = f"qubes-firewall.service is {state}: its last rules stay in force, and changes from dom0 have no effect"
    return Remark(
        "firewall-not-running", "error", problem, "systemctl restart qubes-firewall; otherwise see its journal"
    )


_SEE_JOURNAL = "the journal of qubes-guestnet has nft's reason; for `Message too long` raise net.core.wmem_max"


def _lists(report: ProviderReport) -> Iterator[Remark]:
    """Yield the findings about the firewall of client qubes."""
    for path, reason in report.scripts.failed if report.scripts is not None else ():
        problem = f"the firewall script {printable(path)} failed ({reason}): rules that it makes may be missing"
        remedy = "correct it; its output: journalctl -u qubes-firewall; then systemctl restart qubes-firewall"
        yield Remark("firewall-script-failed", "warning", problem, remedy)
    if not report.conditions:
        return
    from ..firewall import name_news  # where this program enforces it
    from ..firewall.condition import BLOCKED, WAITING

    for address, condition in report.conditions.items():
        if condition.state == WAITING:
            problem = f"{address} has no rules: dom0 has committed none since its vif appeared; its packets are dropped"
            yield Remark("firewall-not-committed", "warning", problem, "in dom0: qvm-firewall --reload QUBE")
        elif condition.state == BLOCKED:
            unknown = tuple(f"{name} is {words}" for name, code, words in condition.names if code == name_news.UNKNOWN)
            reasons = " | ".join(condition.problems or unknown)
            remedy = "correct its rules in dom0: qvm-firewall QUBE" if reasons else _SEE_JOURNAL
            problem = f"everything from {address} is refused: {reasons or 'nft refuses its rules'}"
            yield Remark("firewall-blocked", "error", problem, remedy)
        yield from _looked_up(address, condition)
        for server, entry in condition.shadowed:
            problem = f"entry {entry:04} of the list of {address} refuses the name server {server} before it is allowed"
            remedy = "in dom0, put the rule for DNS first; qubes-guestnet firewall show prints the list"
            yield Remark("dns-shadowed", "warning", problem, remedy)
    if report.firewall_changed:
        chains = ", ".join(report.firewall_changed)
        problem = f"another program has removed rules of qubes-guestnet from {chains}"
        remedy = "nothing to do if that is intended; else delete our other rules there, and the agent restores all"
        yield Remark("firewall-table-changed", "warning", problem, remedy)


def _forwarding(report: ProviderReport) -> Iterator[Remark]:
    wanted = ((IPV4, True), (IPV6, report.ipv6))
    families = [family for family, on in wanted if on and family not in report.forwarding]
    missing, on_again = " and ".join(f"IPv{family}" for family in families), "qubes-guestnet forwarding on"
    stopped = bool(families) and report.stopped.issuperset(families)
    if missing and report.unfiltered:
        running = report.scripts.running if report.scripts is not None else ""
        waits = f"runs the script {printable(running)}" if running else "is not ready, client qubes would be unfiltered"
        remedy = "wait for the script, or correct it and then " if running else ""
        remedy += "systemctl restart qubes-firewall; otherwise see its journal"
        yield Remark(
            "firewall-not-ready", "error", f"{missing} is not forwarded: qubes-firewall.service {waits}", remedy
        )
    elif missing:
        closed = closed_forwarding.reason(report)
        reason, remedy = (
            (closed, on_again) if report.closed
            else (closed + _HOLDS[report.hold], f"{_SEE_TO[report.hold]}, then {on_again}") if report.hold
            else ("the user or another program set the sysctl to 0", on_again) if stopped
            else ("the sysctl is 0", _APPLY)
        )  # fmt: skip
        yield Remark("forwarding-off", "error", f"{missing} is not forwarded: {reason}", remedy)
    for name, setting in report.apart:
        shown = printable(name)
        problem = f"packets from {shown} are not forwarded: the user or another program set {printable(setting)} to 0"
        yield Remark("forwarding-off", "error", problem, on_again)
    if report.lost:
        problem = f"removed together with our rules and still missing: {', '.join(report.lost)}"
        remedy = f"run the program that created them again; `{on_again}` confirms that they are not needed"
        yield Remark("user-rules-lost", "warning", problem, remedy)


def _ipv6(report: ProviderReport) -> Iterator[Remark]:
    if report.settings.refuse6:
        problem = "the IPv6 of client qubes is rejected: dom0 has not written /qubes-netvm-gateway6"
        remedy = "restart this qube, then dom0 writes it; or qvm-features QUBE ipv6 '', and attach them again"
        yield Remark("ipv6-refused", "warning", problem, remedy)


# Problems of the DNS redirection, by the code of `upstream_servers`: severity and remedy.
_SERVERS = "or name servers in [dns] of /etc/qubes/guestnet.toml"
NAMES = {
    upstream_servers.HELD: ("warning", f"systemctl start systemd-resolved; {_SERVERS}"),
    upstream_servers.REFUSED: ("warning", f"systemctl start systemd-resolved; {_SERVERS}"),
    upstream_servers.TLS_ONLY: (
        "warning",
        f"run a resolver with TLS in this qube and redirect client qubes to it, see docs/provider.md; {_SERVERS}",
    ),
    upstream_servers.LINK_DOWN: (
        "warning",
        "bring the VPN up; or let its client or resolvectl revert remove its servers; or delete the link",
    ),
    upstream_servers.UNREADABLE: ("warning", f"correct /etc/resolv.conf; {_SERVERS}"),
    upstream_servers.FOREIGN: (
        "note",
        "nothing to do if that is intended; nft flush chain ip qubes dnat-dns removes them",
    ),
}


def _names(report: ProviderReport) -> Iterator[Remark]:
    names = report.names
    if names.problem:
        severity, remedy = NAMES[names.problem]
        led = f"go to {' '.join(map(str, names.servers))}" if names.servers else "are rejected"
        words = "follow" if names.problem == upstream_servers.FOREIGN else f"{led}:"
        yield Remark(names.problem, severity, f"DNS queries of client qubes {words} {names.reason}", remedy)
    elif not names.servers and "dns" not in report.settings.held:
        problem = f"no name server is known that client qubes can reach: their queries are rejected ({reason(report)})"
        remedy = "is this qube online? its servers come from systemd-resolved, otherwise from /etc/resolv.conf"
        yield Remark("dns-unknown", "warning", problem, remedy)


def reason(report: ProviderReport) -> str:
    """Return the source of the servers, or why there is none."""
    return report.names.reason or "not checked yet"


def _looked_up(address: IPAddress, condition: Condition) -> Iterator[Remark]:
    """Yield the findings about names in the list of an address."""
    from ..firewall import name_news

    for name, code, words in condition.names:
        problem = f"{name} in the list of {address}: {words}"
        if code in (name_news.UNKNOWN, name_news.INVALID, name_news.PART):
            remedy = "is the name correct, and do the name servers answer? Else use addresses in dom0"
            yield Remark("name-unresolved", "warning", problem, remedy)
        else:
            remedy = "do the name servers answer? Else see: journalctl -u qubes-guestnet-names"
            yield Remark("name-stale", "warning", problem, remedy)


def _cut_off(ground: Ground, *, ipv6: bool) -> Iterator[Remark]:
    """Find users' rules that drop packets; without a tunnel, those at the uplink cut client qubes off completely.

    If client qubes have no IPv6, rules for IPv6 are not reported.
    """
    drops = [drop for drop in ground.drops if ipv6 or drop.family == "ip"]
    closed = {drop for drop in drops if drop.uplink and not ground.tunnel}
    families = " and ".join(sorted({{"ip": "IPv4", "ip6": "IPv6"}[drop.family] for drop in closed}))
    if families:
        rule = next(drop.rule for drop in drops if drop in closed)
        problem = f"client qubes reach nothing over {families}: custom-forward has `{rule}`, and there is no tunnel"
        yield Remark("kill-switch-closed", "warning", problem, "start the VPN; or remove the rule from custom-forward")
    others = [drop for drop in drops if drop not in closed]
    for drop in others[:SHOWN]:
        cut = "drops all packets to the Qubes uplink" if drop.uplink else "drops packets"
        problem = f"custom-forward of {drop.family} qubes {cut}: `{drop.rule}`"
        yield Remark("custom-forward-drops", "note", problem, "nothing to do if that is intended")
    if others[SHOWN:]:
        problem = f"custom-forward has {len(others) - SHOWN} more rules that drop or reject"
        yield Remark("custom-forward-drops", "note", problem, "nft list chain ip qubes custom-forward shows them")


def _vifs(report: ProviderReport, ground: Ground) -> Iterator[Remark]:
    for names, addresses in report.duplicates.items():
        shared = f"{' and '.join(names)} have the same address: {' '.join(map(str, addresses))}"
        problem = f"the different qubes of {shared}; packets to it go to only one of them"
        yield Remark("duplicate-address", "error", problem, "in dom0, change one of them: qvm-prefs QUBE ip ADDRESS")
    for vif in report.vifs:
        # Missing elements and limits are covered by rules-missing above.
        todo = vif._replace(elements=(), limits="").todo if ground.rules == MISSING else vif.todo
        if todo:
            problem = f"{vif.vif.name.text} differs from its desired state; first pending operation: {todo[0]}"
            yield Remark("vif-not-configured", "error", problem, _APPLY)
        if vif.now is not None:
            problem = f"dom0 has changed the fake address of {vif.vif.name.text} since the qube was attached"
            remedy = "attach the qube again: qvm-prefs QUBE netvm '', and then its provider; see qubes-guestnet status"
            yield Remark("mapping-changed", "warning", problem, remedy)
    for name in ground.unknown:
        problem = f"Xen's hotplug has not announced {name}: its qube has no network"
        remedy = "systemctl reload qubes-guestnet looks it up in xenstore; or attach the qube again"
        yield Remark("vif-unknown", "error", problem, remedy)
    for name in ground.gone:
        problem = f"the device of {name} no longer exists, but Xen's hotplug has not reported that"
        yield Remark("vif-gone", "warning", problem, f"{_APPLY}; it removes the rest of the vif")
