# SPDX-License-Identifier: GPL-2.0-or-later
"""What `check` says of the rules, which every qube has, and of the provider's half. Pure: facts in, findings out."""

from __future__ import annotations

from collections.abc import Iterator

from . import nameservers
from .namedtuple import NamedTuple
from .presence import Remark
from .record import FIREWALL, HELD
from .shadows import NO_FIREWALL
from .values import IPV4, IPV6

TYPE_CHECKING = False  # a qube that gives network to nobody loads nothing of a provider
if TYPE_CHECKING:
    from .cut_off import Drop
    from .provided import ProviderReport
    from .shadows import Shadow

SHOWN = 5  # rules that are told one by one
GOOD, MISSING, CHANGED, UNSEEN = "good", "missing", "changed", "unseen"
# Why nothing is forwarded once the rules were lost, and what to do first.
_HOLDS = {
    HELD: "our rules were removed by another program; [provider] hold_after_flush is set, or others' were not put back",
    FIREWALL: "our rules were removed by another program, and qubes-firewall.service is not ready again yet",
}
_SEE_TO = {HELD: "bring your own rules back", FIREWALL: "systemctl restart qubes-firewall; or, without it"}
_TABLES = "ip qubes, ip6 qubes and arp qubes"
_APPLY = "qubes-guestnet apply, and see what it says"


class Ground(NamedTuple):
    """What was looked at besides the report.

    Args:
        rules: GOOD, MISSING, CHANGED, or UNSEEN where we may not look; in a qube that is no provider only whether
            they are missing is looked at.
        unknown: names of vifs without a record.
        gone: names of vifs with a record and without a device.
        shadows: chains of others that come before ours.
        drops: rules in `custom-forward` that drop or refuse.
        tunnel: a device that shows that a VPN is there, "" for none.
        firewall: what is wrong with the firewall of the qubes, see `shadows.firewall`.
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
    """What there is to say.

    Args:
        report: of a dry pass; None in a qube that gives network to nobody.
        ground: the rest.
    """
    if ground.rules == MISSING:
        problem = f"the tables {_TABLES} are not there, or not as a whole: nothing filters what comes in"
        # In a provider `rules load` would leave forwarding closed.
        yield Remark("rules-missing", "error", problem, f"qubes-guestnet {'rules load' if report is None else 'apply'}")
    if ground.rules == UNSEEN:
        beside = "" if report is None else ", or what the qubes behind this one may send"
        problem = f"an ordinary user cannot see whether the base rules are there{beside}: it was not looked at"
        yield Remark("needs-root", "warning", problem, "run as root: sudo qubes-guestnet check")
    if report is None:
        return
    if ground.rules == CHANGED:
        problem = f"another program changed the chains of qubes-guestnet in the tables {_TABLES}"
        remedy = "qubes-guestnet apply; own rules go to custom-input and custom-forward, see docs/provider.md"
        yield Remark("rules-changed", "warning", problem, remedy)
    for shadow in ground.shadows:
        remedy = "nothing to do if that is meant; a priority above ours puts it behind, see docs/provider.md"
        yield Remark("foreign-chain", "note", shadow.words, remedy)
    if not report.active:
        problem = "dom0 makes this qube a provider, and the service flag qubes-network is not set"
        done = "it forwards nothing"
        if report.forwarding:
            switched = " and ".join(f"IPv{family}" for family in sorted(report.forwarding))
            done = f"and yet {switched} forwarding is on, as another program wants it"
        remedy = "qvm-service QUBE qubes-network on, and restart it"
        yield Remark("provider-flag-missing", "warning", f"{problem}: {done}", remedy)
        return
    if ground.firewall and report.forwarding:
        yield _firewall(ground.firewall)
    yield from _forwarding(report)
    if not ground.arp:
        problem = "this kernel has no nftables for ARP: against ARP in foreign names there is rp_filter alone"
        yield Remark("arp-unfiltered", "note", problem, "use a kernel with CONFIG_NF_TABLES_ARP, as dom0 gives them")
    yield from _ipv6(report)
    yield from _names(report)
    yield from _cut_off(ground)
    yield from _vifs(report, ground)


def _firewall(state: str) -> Remark:
    if state == NO_FIREWALL:
        problem = "the qubes behind this one are UNFILTERED: the service qubes-firewall is on, and no firewall is there"
        remedy = "systemctl start qubes-firewall (of qubes-core-agent-networking); or qubes-guestnet forwarding off"
        return Remark("firewall-missing", "error", problem, remedy)
    problem = f"qubes-firewall.service is {state}: its last rules stay in force, and changes from dom0 have no effect"
    return Remark("firewall-not-running", "error", problem, "systemctl restart qubes-firewall; else see its journal")


def _forwarding(report: ProviderReport) -> Iterator[Remark]:
    wanted = ((IPV4, True), (IPV6, report.ipv6))
    families = [family for family, on in wanted if on and family not in report.forwarding]
    missing, on_again = " and ".join(f"IPv{family}" for family in families), "qubes-guestnet forwarding on"
    stopped = bool(families) and report.stopped.issuperset(families)
    if missing and report.unfiltered:
        problem = f"{missing} is not forwarded: qubes-firewall.service is not ready, and the qubes would be unfiltered"
        yield Remark("firewall-not-ready", "error", problem, "systemctl restart qubes-firewall; else see its journal")
    elif missing:
        reason, remedy = (
            ("`forwarding off` was said", on_again) if report.closed
            else (_HOLDS[report.hold], f"{_SEE_TO[report.hold]}, then {on_again}") if report.hold
            else ("its owner or another program switched it off by sysctl, which is obeyed", on_again) if stopped
            else ("the kernel's switch is off", _APPLY)
        )  # fmt: skip
        yield Remark("forwarding-off", "error", f"{missing} is not forwarded: {reason}", remedy)
    if report.lost:
        problem = f"removed together with our rules, and not there again: {', '.join(report.lost)}"
        remedy = f"run again whatever made them; `{on_again}` confirms that they are not needed"
        yield Remark("user-rules-lost", "warning", problem, remedy)


def _ipv6(report: ProviderReport) -> Iterator[Remark]:
    if report.settings.refuse6:
        problem = "qubes behind this one have IPv6, which is refused: dom0 has given no /qubes-netvm-gateway6"
        remedy = "restart this qube, dom0 writes it only then; or qvm-features QUBE ipv6 '', and attach them again"
        yield Remark("ipv6-refused", "warning", problem, remedy)


# What is wrong with names, by the code that `nameservers` gives; severity and what to do.
_SERVERS = "or name servers in [dns] of /etc/qubes/guestnet.toml"
NAMES = {
    nameservers.HELD: ("warning", f"systemctl start systemd-resolved; {_SERVERS}"),
    nameservers.REFUSED: ("warning", f"systemctl start systemd-resolved; {_SERVERS}"),
    nameservers.TLS_ONLY: (
        "warning",
        f"let a resolver in this qube ask by TLS and lead the qubes to it, see docs/provider.md; {_SERVERS}",
    ),
    nameservers.LINK_DOWN: (
        "warning",
        "bring the VPN up; or have its client or resolvectl revert take its servers back",
    ),
    nameservers.UNREADABLE: ("warning", f"mend /etc/resolv.conf; {_SERVERS}"),
    nameservers.FOREIGN: ("note", "nothing to do if that is meant; nft flush chain ip qubes dnat-dns ends it"),
}


def _names(report: ProviderReport) -> Iterator[Remark]:
    names = report.names
    if names.problem:
        severity, remedy = NAMES[names.problem]
        led = f"go to {' '.join(map(str, names.servers))}" if names.servers else "are refused"
        words = "follow" if names.problem == nameservers.FOREIGN else f"{led}:"
        yield Remark(names.problem, severity, f"names of the qubes {words} {names.reason}", remedy)
    elif not names.servers and "dns" not in report.settings.held:
        problem = f"no name server is known that other qubes can ask: their queries are rejected ({reason(report)})"
        remedy = "is this qube online? It takes them from systemd-resolved, else from /etc/resolv.conf"
        yield Remark("dns-unknown", "warning", problem, remedy)


def reason(report: ProviderReport) -> str:
    """Where the servers come from, or why there is none."""
    return report.names.reason or "it was not looked at"


def _cut_off(ground: Ground) -> Iterator[Remark]:
    """Rules of the owner's that refuse; without a tunnel those at the uplink leave the qubes nothing."""
    closed = {drop for drop in ground.drops if drop.uplink and not ground.tunnel}
    families = " and ".join(sorted({{"ip": "IPv4", "ip6": "IPv6"}[drop.family] for drop in closed}))
    if families:
        rule = next(drop.rule for drop in ground.drops if drop in closed)
        problem = f"the qubes reach nothing by {families}: custom-forward has `{rule}`, and there is no tunnel"
        yield Remark("kill-switch-closed", "warning", problem, "start the VPN; or take the rule out of custom-forward")
    others = [drop for drop in ground.drops if drop not in closed]
    for drop in others[:SHOWN]:
        cut = "cuts off all that leaves by the Qubes uplink" if drop.uplink else "cuts off what it matches"
        problem = f"custom-forward of {drop.family} qubes {cut}: `{drop.rule}`"
        yield Remark("custom-forward-drops", "note", problem, "nothing to do if that is meant")
    if others[SHOWN:]:
        problem = f"custom-forward has {len(others) - SHOWN} more rules that drop or refuse"
        yield Remark("custom-forward-drops", "note", problem, "nft list chain ip qubes custom-forward shows them")


def _vifs(report: ProviderReport, ground: Ground) -> Iterator[Remark]:
    for names, addresses in report.duplicates.items():
        shared = f"{' and '.join(names)} are of different qubes and have one address: {' '.join(map(str, addresses))}"
        problem = f"{shared}; what is sent to it goes to one of them"
        yield Remark("duplicate-address", "error", problem, "in dom0, give one another: qvm-prefs QUBE ip ADDRESS")
    for vif in report.vifs:
        # Elements and limits that went with the rules are one trouble, and told above.
        todo = vif._replace(elements=(), limits="").todo if ground.rules == MISSING else vif.todo
        if todo:
            problem = f"{vif.vif.name.text} is not as it has to be, first: {todo[0]}"
            yield Remark("vif-not-configured", "error", problem, _APPLY)
        if vif.now is not None:
            problem = f"dom0 has changed the fake address of {vif.vif.name.text} since the qube was attached"
            remedy = "attach the qube again: qvm-prefs QUBE netvm '', and then its provider; see qubes-guestnet status"
            yield Remark("mapping-changed", "warning", problem, remedy)
    for name in ground.unknown:
        problem = f"Xen's hotplug has not announced {name}: the qube behind it has no network"
        remedy = "systemctl reload qubes-guestnet has it looked up in xenstore; or attach the qube again"
        yield Remark("vif-unknown", "error", problem, remedy)
    for name in ground.gone:
        problem = f"the device of {name} is gone, and Xen's hotplug has not said so"
        yield Remark("vif-gone", "warning", problem, f"{_APPLY}; it takes the rest of it away")
