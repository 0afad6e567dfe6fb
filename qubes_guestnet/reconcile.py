# SPDX-License-Identifier: GPL-2.0-or-later
"""The one pass: observe, plan, apply, verify. The agent, the command line and the lab all call it.

Theory of operation. A pass starts from nothing but the entries of QubesDB: the kernel and the files are read afresh,
so it does not matter what woke us, how often, or what happened in between. It never stops at the first error: IPv4
goes on when IPv6 is refused, and DNS when both are. It ends by observing again. What still differs then is planned
once more (the kernel removes routes on its own when an address goes), a bounded number of times, and after that it is
an error that names the operation the kernel does not keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from .core import mtu, networkmanager, plan, proxyarp, uplink
from .core.namedtuple import NamedTuple
from .core.networkmanager import ManagerChoice
from .core.record import Fallback, Record, checksum
from .core.report import Attended, InterfaceReport, Report
from .core.settings import Settings, UplinkSettings
from .core.settings import parse as parse_settings
from .core.values import IPV4, IPV6, IPAddress, Link, State, Tunable
from .errors import FileError, GuestnetError, KernelError, Vanished
from .paths import Paths
from .resolving import Ground, resolve
from .system import services
from .system.owned import Ledger

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/lean)
if TYPE_CHECKING:
    from typing import Protocol

    from .core.resolver import TunnelFacts
    from .others import Others
    from .providing import Provider

    class Kernel(Protocol):
        """What a pass asks of the kernel; `system.netlink.Kernel` in life, a model in the tests."""

        def links(self, macs: frozenset[str]) -> tuple[Link, ...]:
            """Interfaces with one of these addresses."""

        def observe(self, link: Link, neighbours: Iterable[IPAddress], settings: Iterable[Tunable] = ()) -> State:
            """What an interface has now."""

        def tunnels(self, servers: Iterable[IPAddress], ours: Iterable[int]) -> TunnelFacts:
            """What may show that a VPN is there."""

        def apply(self, op: plan.Op) -> None:
            """Carry out one operation or raise KernelError."""

        def ipv6_disabled(self, link: Link) -> str | None:
            """The interface's sysctl disable_ipv6; None when it has no IPv6 at all."""


ROUNDS = 4


class Pass(NamedTuple):
    """What a pass is asked to do.

    Args:
        only: name of the one interface to handle, "" for all.
        dry_run: plan, and change nothing.
        keys_written: dom0 wrote keys since the last pass.
        revive: configure an interface that `uplink remove` took down.
        may_rewrite: asked with the content before somebody's overwriting of resolv.conf is undone.
        others: the other programs of the qube; None leaves them alone.
        provider: the provider's half; None in a qube that gives network to nobody.
    """

    only: str = ""
    dry_run: bool = False
    keys_written: bool = False
    revive: bool = False
    may_rewrite: Callable[[bytes], bool] = lambda _content: True
    others: Others | None = None
    provider: Provider | None = None


def reconcile(untrusted_entries: Mapping[str, bytes], kernel: Kernel, paths: Paths, asked: Pass) -> Report:
    """Make the kernel and resolv.conf what the entries ask for.

    Args:
        untrusted_entries: all of QubesDB below `settings.UPLINK_PREFIXES`.
        kernel: the adapter.
        paths: where the qube's files are.
        asked: what to do.

    Returns:
        What is desired, what is there, what was done, and every error; it does not raise one.
    """
    settings = parse_settings(untrusted_entries)
    flags = services.flags(paths.flags)
    errors: list[GuestnetError] = list(settings.errors)
    try:
        configured = services.configured_style(paths.config)
    except GuestnetError as error:
        configured = None
        errors.append(error)
    mtus, bad = mtu.parse(untrusted_entries, [interface.mac for interface in settings.uplinks])
    errors += bad
    manager = asked.others.manager() if asked.others is not None else ManagerChoice()
    work = _Work(settings, flags, _Choices(configured, manager, mtus), kernel, asked, errors)
    interfaces: tuple[InterfaceReport, ...] = ()
    names, attended, provided = None, Attended(), None
    try:
        with Ledger(paths.run, reading=asked.dry_run) as ledger:
            ruled = asked.provider.before(untrusted_entries, ledger, asked.dry_run) if asked.provider else None
            interfaces = work.interfaces(ledger)
            if any(report.link is not None for report in interfaces):
                uplinks = frozenset(report.link.ifindex for report in interfaces if report.link is not None)
                ground = Ground(settings, flags, manager, kernel, ledger.record, uplinks)
                names, failure = resolve(ground, paths, None if asked.dry_run else asked.may_rewrite)
                errors += [failure] if failure else []
                if names is not None and names.in_force and not asked.dry_run:
                    work.published(ledger, names.current)
            if asked.others is not None:
                attended = asked.others.attend(settings, flags, interfaces, ledger, asked.dry_run, not asked.only)
                errors += attended.errors
            if asked.provider is not None and ruled is not None:
                provided = asked.provider.after(ruled, settings.dns.servers, interfaces, names)
                errors += [error for error in provided.errors if str(error) not in map(str, errors)]
    except GuestnetError as error:
        errors.append(error)
    return Report(
        settings, interfaces, names, tuple(work.applied), tuple(errors), attended.done, attended.todo, provided
    )


def take_down(index: int, kernel: Kernel, paths: Paths, others: Others | None = None) -> tuple[plan.Op, ...]:
    """`uplink remove`: link down, before the firewall goes away, and down it stays. No interface is nothing to do.

    It asks the owned record and not QubesDB, which may be gone at shutdown; an interface we never configured is left.

    Args:
        index: interface index when the command came. Not the name: while we wait for the lock the interface can go
            and a new one of the same name come, which this command did not mean (#8237).
        kernel: the adapter.
        paths: where the qube's files are.
        others: the other programs of the qube; they let go of the interface first, or would take it up again.

    Raises:
        KernelError: the kernel refuses.
        FileError: the record cannot be written; the link is down all the same.
    """
    with Ledger(paths.run) as ledger:
        record = ledger.record
        ours = {(entry.ifindex, entry.mac) for entry in record.interfaces}
        links = kernel.links(frozenset(mac for _, mac in ours)) if ours else ()
        ops: list[plan.Op] = []
        letting_go: list[Callable[[], None]] = []
        for link in links:
            if link.ifindex == index and (link.ifindex, link.mac) in ours:
                entry = record.interface(link)
                record = record.with_interface(entry._replace(removed=True, profile="", resolved=False))
                ops += plan.takedown(link)
                if others is not None:
                    letting_go.append(partial(others.take_down, entry, link.name))
        try:
            ledger.save(record)
            for let_go in letting_go:
                let_go()
        finally:  # the firewall goes away next, whether /run is full or not
            for op in ops:
                kernel.apply(op)
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
    """Note that dom0 has written keys: an interface that went is expected again.

    At once and not with the next pass, which waits until dom0 is through: who asks meanwhile whether the network is
    configured would hear that none is expected (`wait-uplink`, behaviour B3).

    Raises:
        FileError: the record cannot be written.
    """
    with Ledger(paths.run) as ledger:
        ledger.save(ledger.record._replace(detached=frozenset()))


class _Choices(NamedTuple):
    """What was chosen for this qube, by its owner and by dom0: default-route style, manager, MTUs by MAC."""

    style: uplink.Style | None
    manager: ManagerChoice
    mtus: Mapping[str, int]


class _Work:
    """The interfaces' half of one pass: what it knows, and what it has done so far."""

    def __init__(
        self,
        settings: Settings,
        flags: uplink.Flags,
        choices: _Choices,
        kernel: Kernel,
        asked: Pass,
        errors: list[GuestnetError],
    ) -> None:
        self._settings, self._flags, self._choices = settings, flags, choices
        self._kernel, self._asked, self._errors = kernel, asked, errors
        self.applied: list[plan.Op] = []

    def interfaces(self, ledger: Ledger) -> tuple[InterfaceReport, ...]:
        """Plan and apply in rounds until a plan is empty."""
        refused: set[plan.Op] = set()
        for left in range(ROUNDS, -1, -1):
            reports = self._observe(ledger)
            ops = [op for report in reports for op in report.plan if op not in refused]
            if self._asked.dry_run or not ops:
                break
            if left:
                refused |= self._apply(reports, ledger, refused)
            else:
                self._errors.append(GuestnetError(f"the kernel does not keep: {ops[0]}", "does something undo it?"))
        return reports

    def published(self, ledger: Ledger, data: bytes) -> None:
        """Note what resolv.conf holds by us; what another program makes of it is known by that (behaviour B124)."""
        self._save(ledger, ledger.record._replace(published=checksum(data)))

    def _save(self, ledger: Ledger, record: Record) -> None:
        """Put the record on disk. A full /run costs the record and not the qube its network."""
        try:
            ledger.save(record)
        except GuestnetError as error:
            if str(error) not in map(str, self._errors):
                self._errors.append(error)

    def _observe(self, ledger: Ledger) -> tuple[InterfaceReport, ...]:
        uplinks = self._uplinks(ledger.record)
        links = self._kernel.links(frozenset(settings.mac for settings in uplinks)) if uplinks else ()
        found = [(settings, uplink.choose_link(links, settings.mac)) for settings in uplinks]
        if not self._asked.dry_run:
            present = [link for _, link in found if link is not None]
            macs = [settings.mac for settings in self._settings.uplinks]
            record = ledger.record.seen(macs, present, self._asked.keys_written)
            if self._asked.revive:
                record = record.revived(link for link in present if self._asked.only in ("", link.name))
            self._save(ledger, record)
        # The interface of /qubes-mac has rank 0, also while that key is not valid: nobody then takes its place.
        return tuple(
            self._report(settings, link, ledger, rank)
            for rank, (settings, link) in enumerate(found, start=int(self._settings.held))
            if not self._asked.only or (link is not None and link.name == self._asked.only)
        )

    def _uplinks(self, record: Record) -> list[UplinkSettings]:
        """Settings of every interface that the keys name, and of those that they named when we configured them.

        An interface that is not named any longer loses what we made on it; while it is not known which one dom0
        manages, none does.
        """
        uplinks = list(self._settings.uplinks)
        named = {settings.mac for settings in uplinks}
        held = frozenset({IPV4, IPV6}) if self._settings.held else frozenset[int]()
        for mac in sorted({entry.mac for entry in record.interfaces} - named):
            uplinks.append(UplinkSettings(mac, held=held))
        return uplinks

    def _report(self, settings: UplinkSettings, link: Link | None, ledger: Ledger, rank: int) -> InterfaceReport:
        manager = self._choices.manager
        choice = uplink.choose_style(self._flags, self._choices.style, "")
        if link is None:
            detached = settings.mac in ledger.record.detached
            return InterfaceReport(settings, None, choice, detached=detached, manager=manager)
        entry = ledger.record.interface(link)
        if entry.removed:
            observed = self._kernel.observe(link, ())
            return InterfaceReport(settings, link, choice, observed=observed, removed=True, manager=manager)
        reason = proxyarp.standing(entry.fallback, settings)
        choice = uplink.choose_style(self._flags, self._choices.style, reason)
        mtu_asked = self._choices.mtus.get(settings.mac, 0)
        without = self._without_ipv6(link) if settings.ipv6 is not None else ""
        asked, held = (settings._replace(ipv6=None), settings.held | {IPV6}) if without else (settings, settings.held)
        desired = uplink.desired(asked, choice.style, self._flags, rank, mtu_asked)
        desired = desired._replace(tunables=uplink.tunables(link.name))
        interesting = {neighbour.address for neighbour in desired.neighbours} | entry.owned.neighbours
        observed = self._kernel.observe(link, interesting, desired.tunables)
        owned = plan.still_there(entry.owned, observed)
        if owned != entry.owned and not self._asked.dry_run:
            self._save(ledger, ledger.record.with_interface(entry._replace(owned=owned)))
        ops = plan.plan(link, desired, observed, owned, held)
        waiting = ""
        if manager.networkmanager:
            ops, waiting = networkmanager.left_to_us(ops, observed), networkmanager.waiting(desired, observed)
        return InterfaceReport(
            settings, link, choice, desired, observed, ops,
            manager=manager, waiting=waiting, rank=rank, no_ipv6=without,
        )  # fmt: skip

    def _without_ipv6(self, link: Link) -> str:
        by_manager = self._choices.manager.networkmanager
        return uplink.ipv6_missing(self._kernel.ipv6_disabled(link), link.mtu, networkmanager=by_manager)

    def _apply(self, reports: Iterable[InterfaceReport], ledger: Ledger, refused: set[plan.Op]) -> set[plan.Op]:
        """Apply every plan; the owned record is ahead of the kernel at each moment. Returns what was refused."""
        failed: set[plan.Op] = set()
        for report in reports:
            if report.link is None or not report.plan:
                continue
            entry = ledger.record.interface(report.link)
            ops = [op for op in report.plan if op not in refused]
            self._save(ledger, ledger.record.with_interface(entry._replace(owned=plan.ahead(entry.owned, ops))))
            if self._asked.others is not None and any(op.verb is plan.Verb.LINK_UP for op in ops):
                self._asked.others.going_up(report.link.name)
                if self._without_ipv6(report.link):  # by the sysctl.d files that were just applied
                    ops = [op for op in ops if op.family != IPV6]
            self._carry_out(ops, failed)
        return failed

    def _carry_out(self, ops: Iterable[plan.Op], failed: set[plan.Op]) -> None:
        without_address = set()
        for op in ops:
            if op.family in without_address and op.verb in plan.ADDING:
                failed.add(op)  # it would fail for the same reason, or be a route without a source address
                continue
            try:
                self._kernel.apply(op)
            except Vanished:
                break  # a fresh round sees what is there now
            except (KernelError, FileError) as error:
                self._errors.append(error)
                failed.add(op)
                if op.verb is plan.Verb.ADDRESS_ADD:
                    without_address.add(op.family)
            else:
                self.applied.append(op)
