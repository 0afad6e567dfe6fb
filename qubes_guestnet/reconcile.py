# SPDX-License-Identifier: GPL-2.0-or-later
"""The one pass: observe, plan, apply, verify. The agent, the command line and the lab all call it.

Theory of operation. A pass starts from the entries of QubesDB alone, and reads the kernel and the files again, so the
cause and the number of wake-ups are irrelevant. It does not stop at the first error: IPv4 is configured even if IPv6
fails, and DNS even if both fail. At its end it observes again. Remaining differences are planned again a bounded number
of times (the kernel removes routes by itself together with an address), and then reported as an error that names the
operation (`flow.settle`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

from .core import plan
from .core.namedtuple import NamedTuple
from .core.operations import ApplySysctl, Outcome, Planned, in_order
from .core.owned_state import Fallback, Record
from .core.report import InterfaceReport, Report, Uplinks
from .core.settings import Settings, UplinkSettings
from .core.settings import parse as parse_settings
from .core.uplink import arp_probe, mtu, networkmanager
from .core.uplink import desired as uplink
from .core.uplink.networkmanager import ManagerChoice
from .core.values import IPV4, IPV6, IPAddress, Link, State, Tunable
from .dispatch import of_uplink
from .errors import FileError, GuestnetError, as_error
from .flow import Applying, Planning, carry_out
from .system import guestnet_toml, service_flags
from .system.owned_state import Ledger
from .system.paths import Paths
from .uplink.resolv_conf import Ground, ResolvConf

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from typing import Protocol

    from .core.dns.resolv_conf import TunnelFacts
    from .core.operations import Operation
    from .flow import Adapters
    from .provider.provider_pass import Provider
    from .uplink.other_services import OtherServices

    class Kernel(Protocol):
        """The kernel's interface for a pass; `system.netlink.rtnl.Kernel`, or a model in the tests."""

        def links(self, macs: frozenset[str]) -> tuple[Link, ...]:
            """Return the interfaces with one of these MAC addresses."""

        def observe(self, link: Link, neighbours: Iterable[IPAddress], settings: Iterable[Tunable] = ()) -> State:
            """Return the present state of an interface."""

        def tunnels(self, servers: Iterable[IPAddress], ours: Iterable[int]) -> TunnelFacts:
            """Return the facts that may prove that a VPN is up."""

        def apply(self, op: plan.Op) -> None:
            """Carry out one operation or raise KernelError."""

        def ipv6_disabled(self, link: Link) -> str | None:
            """Return the interface's sysctl disable_ipv6; None if it has no IPv6 at all."""


class Pass(NamedTuple):
    """The parameters of a pass.

    Args:
        present: indices of the interfaces that were there before the entries were read. An uplink that is not among
            them waits for the next pass: dom0 may have written its keys after the reading, and the settings of the
            former provider would be in use on it (behaviour B4). No default: each caller has to list them first.
        only: name of the one interface to handle, "" for all.
        keys_written: dom0 wrote keys since the last pass.
        revive: configure an interface that `uplink remove` took down.
        may_rewrite: called with the content before another program's change of resolv.conf is reverted.
        others: the other services of the qube; None leaves them alone.
        provider: the provider role; None in a qube that is not a provider.
    """

    present: Collection[int]
    only: str = ""
    keys_written: bool = False
    revive: bool = False
    may_rewrite: Callable[[bytes], bool] = lambda _content: True
    others: OtherServices | None = None
    provider: Provider | None = None


def reconcile(untrusted_entries: Mapping[str, bytes], kernel: Kernel, paths: Paths, asked: Pass) -> Report:
    """Configure the kernel and resolv.conf as the entries require.

    Args:
        untrusted_entries: all entries of QubesDB below `settings.UPLINK_PREFIXES`.
        kernel: the adapter.
        paths: locations of the qube's files.
        asked: parameters of the pass.

    Returns:
        The desired and the present state, the operations carried out, and every error; the function raises none.
    """
    return _pass(untrusted_entries, kernel, paths, asked, Ledger(paths.run), Applying)


def plan_only(untrusted_entries: Mapping[str, bytes], kernel: Kernel, paths: Paths, asked: Pass) -> Report:
    """Return the report of what `reconcile` would do, without changing anything; this needs no privileges."""
    return _pass(untrusted_entries, kernel, paths, asked, Ledger(paths.run, reading=True), Planning)


def _pass(
    untrusted_entries: Mapping[str, bytes], kernel: Kernel, paths: Paths, asked: Pass, held: Ledger,
    way: type[Applying],
) -> Report:  # fmt: skip
    settings = parse_settings(untrusted_entries)
    flags = service_flags.flags(paths.flags)
    errors: list[GuestnetError] = list(settings.errors)
    try:
        configured = guestnet_toml.configured_style(paths.config)
    except GuestnetError as error:
        configured = None
        errors.append(error)
    mtus, bad = mtu.parse(untrusted_entries, [interface.mac for interface in settings.uplinks])
    errors += bad
    manager = asked.others.manager() if asked.others is not None else ManagerChoice()
    room = _Uplinks(settings, flags, _Choices(configured, manager, mtus), kernel, asked)
    state = UplinkState().failed(errors)
    names, provided, blind = None, None, True
    try:
        with held as ledger:
            run = way(ledger)
            ruled = asked.provider.before(untrusted_entries, run) if asked.provider else None
            state, unseen = room.settle(state, run)
            if unseen:
                raise unseen[0]
            blind = state.late
            uplinks = frozenset(report.link.ifindex for report in state.interfaces if report.link is not None)
            if uplinks:
                file = ResolvConf(Ground(settings, flags, manager, kernel, uplinks), paths, asked.may_rewrite)
                state = state.failed(run.settle(file.plan, room.adapters).outcome.errors)
                names = file.report
            if asked.others is not None and not blind:
                state = room.settle_others(state, asked.others, run)
            if asked.provider is not None and ruled is not None and not blind:
                provided = asked.provider.after(ruled, settings.dns.servers, state.interfaces, names)
                state = state.failed(provided.errors)
    except Exception as error:
        state = state.failed((as_error(error),))
    return Report(
        settings, state.interfaces, names, state.applied, state.errors, state.done, state.todo,
        provided, blind=blind, late=state.late,
    )  # fmt: skip


def take_down(index: int, kernel: Kernel, paths: Paths, others: OtherServices | None = None) -> tuple[plan.Op, ...]:
    """Carry out `uplink remove`: take the link down, before the firewall goes away, and keep it down.

    It reads the owned record and not QubesDB, which may be gone at shutdown; it leaves an interface alone that we never
    configured, and does nothing if the interface does not exist.

    Args:
        index: interface index at the time of the command. While we wait for the lock, another interface may get the
            same name, which the command did not mean (#8237).
        kernel: the adapter.
        paths: locations of the qube's files.
        others: the other services of the qube; they release the interface first, or they would bring it up again.

    Raises:
        KernelError: the kernel refused an operation.
        FileError: the record cannot be written, or a profile cannot be removed; the link is still taken down.
    """
    with Ledger(paths.run) as ledger:
        record = ledger.record
        ours = {(entry.ifindex, entry.mac) for entry in record.interfaces}
        links = kernel.links(frozenset(mac for _, mac in ours)) if ours else ()
        ops: list[plan.Op] = []
        letting_go: list[Operation] = []
        for link in links:
            if link.ifindex == index and (link.ifindex, link.mac) in ours:
                entry = record.interface(link)
                record = record.with_interface(entry._replace(removed=True, profile="", resolved=False))
                ops += plan.takedown(link)
                letting_go += others.letting_go(entry, link) if others is not None else ()
        table = of_uplink(kernel, others)
        try:
            ledger.save(record)
            let_go = carry_out(letting_go, table)
        finally:  # the firewall goes away next, even if /run is full
            down = carry_out(ops, table)
    # An error of systemd-resolved is harmless: the link is down, and its servers are unused.
    for error in (*(each for each in let_go.errors if isinstance(each, FileError)), *down.errors):
        raise error
    return tuple(ops)


def record_fallback(paths: Paths, index: int, mac: str, fallback: Fallback) -> None:
    """Note that the device route was given up on an interface; the next pass acts on it.

    Raises:
        FileError: the record cannot be written.
    """
    with Ledger(paths.run) as ledger:
        entries = [entry for entry in ledger.record.interfaces if (entry.ifindex, entry.mac) == (index, mac)]
        for entry in entries:
            ledger.save(ledger.record.with_interface(entry._replace(fallback=fallback)))


def record_written(paths: Paths) -> None:
    """Record that dom0 has written keys, so that a removed interface is expected again.

    This does not wait for the next pass, which starts only after dom0's last key: until then `wait-uplink` would report
    that no interface is expected (behaviour B3).

    Raises:
        FileError: the record cannot be written.
    """
    with Ledger(paths.run) as ledger:
        ledger.save(ledger.record._replace(detached=frozenset()))


class _Choices(NamedTuple):
    """The choices of the owner and of dom0: default-route style, manager, MTUs by MAC."""

    style: uplink.Style | None
    manager: ManagerChoice
    mtus: Mapping[str, int]


class UplinkState(NamedTuple):
    """The uplinks in a pass, and its progress. A step takes the state and returns the next one.

    Args:
        interfaces: the uplinks as last observed.
        late: an uplink appeared after the entries were read (`Pass.present`).
        applied: operations carried out in the kernel, in order.
        done: operations carried out on the other services, in words.
        todo: pending operations on them, and steps that must come first.
        errors: all errors, each once.
    """

    interfaces: tuple[InterfaceReport, ...] = ()
    late: bool = False
    applied: tuple[plan.Op, ...] = ()
    done: tuple[str, ...] = ()
    todo: tuple[object, ...] = ()
    errors: tuple[GuestnetError, ...] = ()

    def failed(self, errors: Iterable[GuestnetError]) -> UplinkState:
        """Return the state with these errors added, each once."""
        found = {str(error): error for error in self.errors}
        for error in errors:
            found.setdefault(str(error), error)
        return self._replace(errors=tuple(found.values()))


class _Seen(NamedTuple):
    """The result of one observation of the uplinks: see `UplinkState`."""

    interfaces: tuple[InterfaceReport, ...] = ()
    late: bool = False


class _Uplinks(NamedTuple):
    """The desired uplinks of one pass, and the kernel.

    Args:
        settings: validated settings.
        flags: flags of the qube.
        choices: choices of its owner and of dom0.
        kernel: the adapter.
        asked: parameters of the pass.
    """

    settings: Settings
    flags: uplink.Flags
    choices: _Choices
    kernel: Kernel
    asked: Pass

    @property
    def adapters(self) -> Adapters:
        """Return the adapters for operations on them and on the other services."""
        return of_uplink(self.kernel, self.asked.others)

    def settle(self, state: UplinkState, run: Applying) -> tuple[UplinkState, tuple[GuestnetError, ...]]:
        """Configure the uplinks, or only plan.

        Args:
            state: state of the pass.
            run: carries out plans, or only plans.

        Returns:
            The state, and the errors of the observation, if any.
        """
        settled = run.settle(partial(self._plan, notes=run.applies), self.adapters)
        seen = settled.planned.seen if isinstance(settled.planned.seen, _Seen) else _Seen()
        applied = tuple(op for op in settled.outcome.done if isinstance(op, plan.Op))
        state = state._replace(interfaces=seen.interfaces, late=seen.late, applied=applied)
        return state.failed(settled.outcome.errors), settled.planned.errors

    def _plan(self, record: Record, so_far: Outcome, *, notes: bool) -> Planned:
        """Observe and plan; `notes`: record interfaces that appeared or disappeared."""
        uplinks, asked = self._wanted(record), self.asked
        links = self.kernel.links(frozenset(settings.mac for settings in uplinks)) if uplinks else ()
        if any(link.ifindex not in asked.present for link in links):
            return Planned((), record, seen=_Seen(late=True))
        found = [(settings, uplink.choose_link(links, settings.mac)) for settings in uplinks]
        present = [link for _, link in found if link is not None]
        if notes:
            macs = [settings.mac for settings in self.settings.uplinks]
            record = record.seen(macs, present, asked.keys_written)
        if asked.revive:  # even in a pass that only plans: `plan` prints the operations of `apply`
            record = record.revived(link for link in present if asked.only in ("", link.name))
        # The interface of /qubes-mac has rank 0; while that key is invalid, no interface has rank 0.
        interfaces = tuple(
            self._report(settings, link, record, rank)
            for rank, (settings, link) in enumerate(found, start=int(self.settings.held))
            if not asked.only or (link is not None and link.name == asked.only)
        )
        ops: list[Operation] = []
        for report in interfaces:
            record = _ahead(record, report)
            ops += [*self._sysctl(report, so_far), *report.plan]
        return Planned(in_order(ops), record, seen=_Seen(interfaces))

    def _sysctl(self, report: InterfaceReport, so_far: Outcome) -> Iterable[ApplySysctl]:
        """Yield the step that applies sysctl.d before the link goes up, even in a dry pass: it may disable IPv6."""
        if self.asked.others is None or report.link is None:
            return
        op = ApplySysctl(report.link.name)
        if op not in so_far.done and any(each.verb is plan.Verb.LINK_UP for each in report.plan):
            yield op

    def _wanted(self, record: Record) -> list[UplinkSettings]:
        """Return the settings of every interface that the keys name, and of those that they named before.

        An interface that is no longer named loses our configuration, unless it is unknown which one dom0 manages.
        """
        uplinks = list(self.settings.uplinks)
        named = {settings.mac for settings in uplinks}
        held = frozenset({IPV4, IPV6}) if self.settings.held else frozenset[int]()
        for mac in sorted({entry.mac for entry in record.interfaces} - named):
            uplinks.append(UplinkSettings(mac, held=held))
        return uplinks

    def _report(self, settings: UplinkSettings, link: Link | None, record: Record, rank: int) -> InterfaceReport:
        manager = self.choices.manager
        choice = uplink.choose_style(self.flags, self.choices.style, "")
        if link is None:
            detached = settings.mac in record.detached
            return InterfaceReport(settings, None, choice, detached=detached, manager=manager)
        entry = record.interface(link)
        if entry.removed:
            observed = self.kernel.observe(link, ())
            return InterfaceReport(settings, link, choice, observed=observed, removed=True, manager=manager)
        reason = arp_probe.standing(entry.fallback, settings)
        choice = uplink.choose_style(self.flags, self.choices.style, reason)
        mtu_asked = self.choices.mtus.get(settings.mac, 0)
        without = self._without_ipv6(link) if settings.ipv6 is not None else ""
        asked, held = (settings._replace(ipv6=None), settings.held | {IPV6}) if without else (settings, settings.held)
        desired = uplink.desired(asked, choice.style, self.flags, rank, mtu_asked)
        desired = desired._replace(tunables=uplink.tunables(link.name))
        interesting = {neighbour.address for neighbour in desired.neighbours} | entry.owned.neighbours
        observed = self.kernel.observe(link, interesting, desired.tunables)
        owned = plan.still_there(entry.owned, observed)
        ops = plan.plan(link, desired, observed, owned, held)
        waiting = ""
        if manager.networkmanager:
            ops, waiting = networkmanager.left_to_us(ops, observed), networkmanager.waiting(desired, observed)
        return InterfaceReport(
            settings, link, choice, desired, observed, ops,
            manager=manager, waiting=waiting, rank=rank, no_ipv6=without,
        )  # fmt: skip

    def _without_ipv6(self, link: Link) -> str:
        by_manager = self.choices.manager.networkmanager
        return uplink.ipv6_missing(self.kernel.ipv6_disabled(link), link.mtu, networkmanager=by_manager)

    def settle_others(self, state: UplinkState, others: OtherServices, run: Applying) -> UplinkState:
        """Update the other services, or only plan."""
        uplinks = Uplinks(self.settings, self.flags, state.interfaces, not self.asked.only)
        settled = run.settle(lambda record, so_far: others.plan(uplinks, record, so_far), self.adapters)
        if run.applies:
            others.looked_after()
        done = (*state.done, *map(str, settled.outcome.done))
        todo = (*state.todo, *settled.todo, *settled.planned.waits)
        return state._replace(done=done, todo=todo).failed(settled.outcome.errors)


def _ahead(record: Record, report: InterfaceReport) -> Record:
    """Return the record that must be on disk before the plan of an interface is carried out."""
    if report.link is None or report.removed:
        return record
    entry = record.interface(report.link)
    there = plan.still_there(entry.owned, report.observed)
    return record.with_interface(entry._replace(owned=plan.ahead(there, report.plan)))
