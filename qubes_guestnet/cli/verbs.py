# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs of the command line, one function each: options in, exit status out."""

from __future__ import annotations

import os
import time

from ..core.settings import PROVIDER_KEY, parse
from ..errors import GuestnetError, StoreError, UsageError, shown
from ..reconcile import Pass, plan_only, reconcile, take_down
from ..system import devices, service_flags, systemctl
from ..system import plain_socket as socket
from ..system.netlink import rtnl as netlink
from ..system.paths import Paths
from ..uplink.other_services import OtherServices
from . import reading
from .output import complain, print_json, say, show

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..agent.base_rules_watch import Kept
    from ..core.report import Report
    from ..provider.provider_pass import Provider
    from .options import Options

PATHS = Paths()
POLL_SECONDS = 0.05
NETWORKMANAGER_SECONDS = 5.0
UNCHANGED = 100  # users' scripts and NetworkManager's dispatcher expect this value


def apply(options: Options) -> int:
    """Make one pass, and print what it did. Return 1 if there was an error."""
    if options.dry_run:
        return plan(options)
    report = settling(reading.take(), options.interface)
    if options.interface and not report.interfaces:
        raise no_interface_of_ours(options.interface)
    return applied(report)


def plan(options: Options) -> int:
    """Print only the operations that `apply` would carry out, each with its difference and reason."""
    report = _plan(options.interface, revive=True)  # as `apply`
    if options.interface and not report.interfaces:
        raise no_interface_of_ours(options.interface)
    complain(report.errors)
    if options.json:
        from ..core.render.data import plan_data

        print_json(plan_data(report))
    else:
        from ..core.render.status import as_plan

        show(as_plan(report), options.color)
    return 1 if report.errors else 0


def no_interface_of_ours(name: str, report: Report | None = None) -> UsageError:
    """Return the error for an unmanaged interface; it lists the uplinks, and the vifs of `report`."""
    if report is None and _is_vif(name):
        problem = f"{name} is the interface of a client qube, not an uplink"
        remedy = "Xen's hotplug configures it, and so does `apply` without a name"
        return UsageError(problem, f"`qubes-guestnet status {name}` shows it; {remedy}")
    vifs = [each.vif.name.text for each in report.provided.vifs] if report is not None and report.provided else []
    interfaces = (report or _plan(with_provider=False)).interfaces
    there = [each.link.name for each in interfaces if each.link is not None] + vifs
    absent = [each.settings.mac for each in interfaces if each.link is None]
    words = [f"it manages {', '.join(there)}"] if there else []
    words += [f"the interface with the address {', '.join(absent)} does not exist"] if absent else []
    remedy = "; ".join(words) or "it manages no interface of this qube"
    return UsageError(f"dom0 does not manage the interface {shown(os.fsencode(name))}", remedy)


def _is_vif(name: str) -> bool:
    """Return whether it is the name of a client qube's interface."""
    from ..core.vif_name import parse_name

    try:
        parse_name(name)
    except ValueError:
        return False
    return name.startswith("vif")


def uplink(options: Options) -> int:
    """Run an action of `uplink`.

    `add` configures the interface if dom0 manages it. `remove` takes it down, and it stays down. The unit calls `stop`
    at its end: the same as `remove`, unless systemd stops the unit only because of a unit that it requires.
    """
    if options.action == "stop" and not _is_stopped_for_itself(options.interface):
        say((f"{options.interface} stays up: its unit stops only because of another unit; the rules stay in force",))
        return 0
    if options.action != "add":
        try:
            index = socket.if_nametoindex(options.interface)
        except OSError:  # its configuration disappeared together with it
            say((f"{options.interface} does not exist: nothing to do",))
            return 0
        done = take_down(index, netlink.Kernel(), PATHS, OtherServices(PATHS.flags))
        say(done or (f"{options.interface} was not configured by qubes-guestnet: nothing to do",))
        return 0
    report = settling(reading.patiently(reading.take), options.interface)
    if not report.interfaces:
        if options.interface not in devices.names().values():
            raise no_interface_of_ours(options.interface)
        vif = "is the interface of a client qube"
        reason = vif if _is_vif(options.interface) else "is not managed by dom0"
        say((f"{options.interface} {reason}: nothing to do",))
    return applied(report)


def _is_stopped_for_itself(interface: str) -> bool:
    from ..core.uplink import unit_jobs as rules

    if not systemctl.managed():
        remedy = f"to take the interface down, call `qubes-guestnet uplink remove {interface}`"
        raise GuestnetError("`uplink stop` is only for systemd's unit, and systemd is not running here", remedy)
    return rules.takes_down(f"qubes-network-uplink@{interface}.service", rules.parse(systemctl.jobs()))


def wait_uplink(options: Options) -> int:
    """Return 0 when the present interface is configured, or at once if none is expected.

    With `--boot` an interface that is not attached is not expected, and only NetworkManager's profile is waited for,
    because NetworkManager starts later (behaviours B151 and B156).

    Raises:
        GuestnetError: the time is up.
    """
    deadline = time.monotonic() + options.timeout
    kernel, others = netlink.Kernel(), OtherServices(PATHS.flags, attending=False)
    while True:
        try:
            now = reading.take()
            report = plan_only(now.entries, kernel, PATHS, Pass(now.present, others=others))
            if report.settled or (options.boot and _is_ready_to_boot(report, others)):
                return 0
            reason = next((str(error) for error in report.errors), "; ".join(report.plan) or report.waiting)
        except StoreError as error:
            reason = str(error)
        if time.monotonic() >= deadline:
            raise GuestnetError(f"not configured after {options.timeout:g} s: {reason}", "qubes-guestnet check")
        time.sleep(POLL_SECONDS)


def _is_ready_to_boot(report: Report, others: OtherServices) -> bool:
    from ..core.report import Uplinks

    uplinks = Uplinks(report.settings, service_flags.flags(PATHS.flags), report.interfaces, complete=True)
    return not report.unready and others.published(uplinks)


def dns(_options: Options) -> int:
    """Redirect the virtual DNS addresses to this qube's own servers. Return 100 if unchanged since the last run."""
    from ..provider.provider_pass import Provider

    entries, kernel = reading.entries(), netlink.Kernel()
    settings = parse(entries)
    links = kernel.links(frozenset(uplink.mac for uplink in settings.uplinks)) if settings.uplinks else ()
    indexes = frozenset(link.ifindex for link in links)
    done = Provider(PATHS, kernel, OtherServices(PATHS.flags)).sync_names(entries, settings, indexes)
    say(done)
    return 0 if done else UNCHANGED


def _provider(entries: dict[str, bytes], kernel: netlink.Kernel, others: OtherServices) -> Provider | None:
    """Return the provider's half of a pass; None in a qube that is not a provider."""
    if not entries.get(PROVIDER_KEY):
        return None
    from ..provider.provider_pass import Provider

    return Provider(PATHS, kernel, others)


def _plan(interface: str = "", *, revive: bool = False, with_provider: bool = True) -> Report:
    kernel, others = netlink.Kernel(), OtherServices(PATHS.flags)

    def run(now: reading.Reading) -> Report:
        provider = _provider(now.entries, kernel, others) if with_provider else None
        asked = Pass(now.present, only=interface, revive=revive, others=others, provider=provider)
        report = plan_only(now.entries, kernel, PATHS, asked)
        if not with_provider or provider is not None or interface:
            return report
        from ..agent.base_rules_watch import with_lost_rules

        return with_lost_rules(report, now.entries, PATHS)

    return reading.with_newer_entries(reading.take(), run)


def settling(first: reading.Reading, interface: str) -> Report:
    """Make a pass; if it activated NetworkManager, wait for that and make another pass for our own part."""
    kernel, others = netlink.Kernel(), OtherServices(PATHS.flags)
    provider = None if interface else _provider(first.entries, kernel, others)

    def run(now: reading.Reading) -> Report:
        asked = Pass(now.present, only=interface, revive=True, others=others, provider=provider)
        return reconcile(now.entries, kernel, PATHS, asked)

    kept: Kept = ((), ())
    if provider is None and not interface:
        from ..agent.base_rules_watch import load_lost

        kept = load_lost(first.entries, PATHS)
    report = reading.with_newer_entries(first, run)
    deadline = time.monotonic() + NETWORKMANAGER_SECONDS
    while report.done and report.waited_for and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        again = reading.with_newer_entries(reading.take(), run)  # dom0 may have written meanwhile
        done, provided = report.done + again.done, again.provided
        if provided is not None and report.provided is not None:
            former = report.provided
            before = provided.before._replace(done=former.before.done + provided.before.done)
            after = provided.after._replace(done=former.after.done + provided.after.done)
            provided = provided._replace(before=before, after=after)
        report = again._replace(applied=report.applied + again.applied, done=done, provided=provided)
    return report._replace(rules_done=kept[0], errors=(*kept[1], *report.errors))


def applied(report: Report) -> int:
    """Print what a pass did. Return 1 if there was an error."""
    say(report.rules_done)
    if report.provided is not None:
        say(report.provided.before.done)
    say(report.applied)
    say(report.done)
    if report.provided is not None:
        say(report.provided.after.done)
    if report.resolver is not None and report.resolver.written:
        say((f"{report.resolver.path} written",))
    complain(report.errors)
    return 1 if report.errors else 0
