# SPDX-License-Identifier: GPL-2.0-or-later
"""`check`: gather the facts; `core.check.findings` evaluates them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..agent.base_rules_watch import with_lost_rules
from ..core.check.findings import Evidence, Finding, servers_in_use
from ..core.check.findings import findings as judge
from ..core.check.provider_findings import CHANGED, GOOD, MISSING, UNSEEN, Ground
from ..core.nft import tables
from ..core.report import Report
from ..core.settings import PROVIDER_KEY
from ..errors import GuestnetError, StoreError
from ..reconcile import Pass, plan_only
from ..system import agent_status, gateway6, nameserver, other_programs
from ..system.netlink import rtnl as netlink
from ..system.nft import kernel as nft_kernel
from ..system.nft import program as nft
from ..system.paths import Paths
from ..uplink.other_services import OtherServices
from . import reading

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..provider.provider_pass import Provider

_NEIGHBOUR_LIMIT = "/proc/sys/net/ipv4/neigh/default/gc_thresh3"


def findings(paths: Paths) -> tuple[Finding, ...]:
    """Gather all facts, and return the findings; change nothing.

    Args:
        paths: locations of the qube's files.
    """
    agent = agent_status.read(paths.run)
    try:
        now = reading.take()
    except StoreError as error:
        return judge(Evidence(None, store_error=str(error), standing=agent))
    found, ground = look(now, paths)
    silent = tuple(server for server in servers_in_use(found) if not nameserver.answers(server))
    refusing = _refusing6(found)
    return judge(Evidence(found, "", agent, silent, _neighbour_limit(), other_programs.look(), ground, refusing))


def _refusing6(report: Report) -> tuple[str, ...]:
    """Return the IPv6 gateways of configured interfaces that refuse a ping (behaviour B160)."""
    asked = [
        (str(interface.settings.ipv6.gateway), interface.link.ifindex)
        for interface in report.interfaces
        if interface.configured and interface.link and interface.settings.ipv6 and interface.settings.ipv6.gateway
    ]
    return tuple(gateway for gateway, ifindex in asked if gateway6.refuses(gateway, ifindex))


def look(first: reading.Reading, paths: Paths) -> tuple[Report, Ground]:
    """Return the report of a dry pass, and further facts; an unreadable fact is an error of the report."""
    kernel, others = netlink.Kernel(), OtherServices(paths.flags)
    provides = bool(first.entries.get(PROVIDER_KEY))

    def run(now: reading.Reading) -> Report:
        provider = _provider(paths, kernel, others) if provides else None
        report = plan_only(now.entries, kernel, paths, Pass(now.present, others=others, provider=provider))
        return report if provides else with_lost_rules(report, now.entries, paths)

    report = reading.with_newer_entries(first, run)
    if not provides:
        return _ground(report, _rules_of_a_plain_qube)
    report, ground = _ground(report, partial(_of_a_provider, paths, kernel, report))
    if report.provided is not None:
        report = report._replace(provided=report.provided._replace(firewall=ground.firewall))
    return report, ground


def _provider(paths: Paths, kernel: netlink.Kernel, others: OtherServices) -> Provider:
    from ..provider.provider_pass import Provider

    return Provider(paths, kernel, others, counted=True)


def _ground(report: Report, look: Callable[[], Ground]) -> tuple[Report, Ground]:
    try:
        return report, look()
    except GuestnetError as error:
        if error.needs_root:  # an ordinary user can read the state of the network, but not the rules
            return report, Ground(UNSEEN)
        known = str(error) in map(str, report.errors)
        return report if known else report._replace(errors=(*report.errors, error)), Ground()


def _rules_of_a_plain_qube() -> Ground:
    return Ground(GOOD if nft_kernel.present() else MISSING)


def _of_a_provider(paths: Paths, kernel: netlink.Kernel, report: Report) -> Ground:
    from ..core.check.cut_off import drops
    from ..core.dns.resolv_conf import tunnel
    from ..core.nft.foreign_chains import called, firewall, is_filtered, shadows
    from ..core.nft.rules_text import chains as base_chains
    from ..core.owned_state import checksum
    from ..provider.ruleset_generation import Transactions
    from ..system import service_flags, systemctl, vif_records
    from ..system.owned_state import Ledger

    transactions = Transactions()
    listing = nft.listing(base_chains(transactions.families))
    with Ledger(paths.run, reading=True) as ledger:
        seen = ledger.record.provided.rules.seen
    rules = MISSING if not listing else GOOD if checksum(listing.encode()) == seen else CHANGED
    known, there = set(vif_records.Folder(paths.run).names()), {link.name for link in kernel.vifs()}
    uplinks = [interface.link for interface in report.interfaces if interface.link is not None]
    cut = drops(((family, nft.table(family)) for family in tables.IP_FAMILIES), (link.name for link in uplinks))
    vpn = tunnel(kernel.tunnels((), (link.ifindex for link in uplinks)))
    chains = called(nft.chains(), nft_kernel.dormant())
    state = ""
    if service_flags.filters(paths.flags):
        # If the agent enforces the rules, they are in force whatever the state of the unit.
        unit = systemctl.firewall_unit() if not service_flags.enforces(paths.flags, paths.run) else ""
        state = firewall(is_filtered(chains), unit)
    unknown, gone = tuple(sorted(there - known)), tuple(sorted(known - there))
    return Ground(rules, unknown, gone, shadows(chains), cut, vpn, state, transactions.arp)


def _neighbour_limit() -> int:
    """Return gc_thresh3; 0 in a network namespace other than the first, which has no such sysctl."""
    try:
        with open(_NEIGHBOUR_LIMIT) as limit:
            return int(limit.read())
    except OSError:
        return 0
