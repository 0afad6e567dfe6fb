# SPDX-License-Identifier: GPL-2.0-or-later
"""The resident loop: wake-ups, a pause to let them gather, one pass. It decides nothing about the network.

Theory of operation. A wake-up never carries data: a QubesDB watch, a change of a link, address or route, a change in
the folder of resolv.conf, SIGHUP and timers all mean "look again", and the pass reads everything again. So a lost or
doubled wake-up costs a pass, never a wrong state. When QubesDB goes away, the agent closes both connections (the C
library would reconnect and silently lose every watch), reopens them with growing pauses until that succeeds, and makes
a full pass. The loop sleeps only in poll, so it serves the watchdog and SIGTERM even during an outage.

No error of an adapter ends the loop (behaviour B146). Each is reported once, by its pass or in the journal. A failed
operation is repeated with growing pauses, while everything else continues.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection

from ..core import debounce, settings
from ..core.dns.resolv_conf import RewriteBudget
from ..core.plan import Verb
from ..core.render import pass_log
from ..core.report import Report
from ..errors import GuestnetError, KernelError, StoreError, as_error
from ..reconcile import Pass, reconcile, record_written
from ..system import devices, dir_watch, programs, retry_pause, systemd
from ..system.netlink import rtnl as netlink
from ..system.paths import Paths
from ..system.signals import Signals
from ..uplink.other_services import OtherServices
from .arp_probe import Prober
from .base_rules_watch import BaseRulesWatch
from .connection import Connection
from .descriptors import Descriptors
from .journal import Journal
from .timers import Timers

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..system.nft import kernel as nft_kernel
    from .hotplug_server import Host

_REST_SECONDS = 0.1
# The time for all programs of a round: two thirds of the watchdog's limit, which is twice its period. The rest is for
# the kernel, the lock of the record and QubesDB.
_ROUND_SHARE, _ROUND_SECONDS, _LEAST_SECONDS = 4 / 3, 20.0, 5.0
_FED_SECONDS = 1.0
UDEV_SECONDS = 2.0  # systemd-udevd also runs systemd-sysctl for a new interface, possibly after its first pass
FIREWALL_SECONDS = 0.5  # how often systemd is asked whether the firewall of the qubes is ready


class Agent:
    """The resident agent of one qube.

    Args:
        paths: locations of the qube's files.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._signals = Signals((signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGIO))
        self._kernel = netlink.Kernel()
        self._events = netlink.Events()
        self._signals.register(self._events.fileno())
        self._connection = Connection(self._signals)
        self._failed_rounds = 0
        self._prober = Prober(self._kernel, self._events, paths)
        self._budget = RewriteBudget()
        self._journal = Journal(paths)
        self._pace = debounce.Pace()
        self._folders = dir_watch.Folders()
        self._others = OtherServices(paths.flags, resident=True)
        self._host: Host | None = None
        self._keeper = self._keep_rules()  # until there is a host, which keeps the rules itself
        self._bus = Descriptors(self._signals)
        self._keys_written = self._detached = self._rewriting = self._unfinished = False
        self._failures, self._present = 0, frozenset[int]()  # interfaces that were there before the last reading
        self._timers = Timers(connect=time.monotonic())
        if self._journal.monitor is not None:
            self._signals.register(self._journal.monitor.fileno())

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT, then leave the network as it is.

        Returns:
            Exit status 0.
        """
        period = systemd.watchdog_seconds()
        while True:
            if period is not None and self._timers.expired("watchdog", default=True):
                self._alive(period)
            ready, came = self._wait()
            if came & {signal.SIGTERM, signal.SIGINT}:
                break
            if self._host is not None and signal.SIGHUP in came:
                self._host.look_at_everything()
            if self._failures:
                came -= {signal.SIGIO}  # an attempt that failed stirs the folder too, and would be its own next reason
            if period is not None and self._timers["watchdog"] < time.monotonic() + period - _FED_SECONDS:
                self._alive(period)  # what the round takes counts from its beginning
            programs.limit(_ROUND_SECONDS if period is None else max(period * _ROUND_SHARE, _LEAST_SECONDS))
            self._round(ready, came)
        programs.limit(None)
        systemd.notify("STOPPING=1")
        self._connection.close()
        self._end_offload()
        self._journal.close()
        return 0

    def _wait(self) -> tuple[frozenset[int], frozenset[int]]:
        try:
            return self._signals.poll(self._patience())
        except OSError as error:  # out of memory
            self._met(error)
        return frozenset(), frozenset()

    def _alive(self, period: float) -> None:
        systemd.notify("WATCHDOG=1")
        self._timers["watchdog"] = time.monotonic() + period

    def _keep_rules(self) -> BaseRulesWatch | None:
        try:
            keeper = BaseRulesWatch(self._paths)
        except GuestnetError as error:
            self._journal.failed(error)
            return None
        self._signals.register(keeper.rules.fileno())
        return keeper

    def _round(self, ready: Collection[int], came: Collection[int]) -> None:
        """Handle the wake-ups, then everything that is due. Raise nothing, whatever an adapter does."""
        try:
            self._gather(ready, came)
            self._work()
            self._failed_rounds = 0
        except Exception as error:
            self._met(error)

    def _met(self, error: Exception) -> None:
        self._journal.failed(as_error(error))
        self._failed_rounds += 1
        self._timers.within("retry", retry_pause.pause(self._failed_rounds))
        self._signals.rest(_REST_SECONDS)  # the failing descriptor may be ready, and would wake us in a busy loop

    def _patience(self) -> float | None:
        """Return how long poll may wait: until the first thing that is due."""
        due = self._pass_due()
        if due is None:
            due = self._prober.due()
        names_due = self._host.names_due() if self._host is not None else None
        dues = [*self._timers.values(), *self._prober.repeats(), due, names_due]
        known = [due for due in dues if due is not None]
        return min(known) - time.monotonic() if known else None

    def _pass_due(self) -> float | None:
        return self._pace.due() if self._connection.up else None

    def _gather(self, ready: Collection[int], came: Collection[int]) -> None:
        woken = bool(came)
        self._journal.signalled(came)
        if self._journal.monitor is not None and self._journal.monitor.fileno() in ready:
            self._journal.greet()
        try:
            if self._events.fileno() in ready:
                woken |= self._drained(self._events)
                self._journal.woken(*self._events.changed())
            if self._connection.fileno() in ready and self._connection.drain():
                woken |= self._told(self._connection.paths)
        except StoreError as error:
            self._outage(error)
        if self._bus.are_ready(ready):
            if self._others.drain():
                woken = True
                self._journal.woken(pass_log.BUS)
            self._follow_bus()
        if self._host is not None:
            if self._host.gather(ready):
                woken = True
                self._journal.woken(pass_log.HOTPLUG)
            if self._host.names_changed(ready):
                woken = True
                self._journal.woken(pass_log.NAMES)
            if self._host.rules.fileno() in ready and self._drained(self._host.rules):
                woken = True
                self._journal.woken(pass_log.RULES)
                self._host.rules_changed()
        elif self._keeper is not None and self._keeper.rules.fileno() in ready and self._drained(self._keeper.rules):
            woken = True
            self._journal.woken(pass_log.RULES)
            if not self._connection.up:
                self._journal.kept(self._keeper.keep(None))
        self._journal.gathered()
        if woken:
            self._pace = self._pace.woken(time.monotonic())

    def _told(self, paths: tuple[str, ...]) -> bool:
        """Note the paths that the watches reported; return whether they require a pass."""
        wakes, keys, commits = self._host.told(paths) if self._host is not None else (True, True, False)
        if wakes:
            self._journal.woken(pass_log.KEYS, paths=paths)
        if keys:
            self._keys_written = True
            self._expect_again()
        if commits:
            self._pace = self._pace.woken(time.monotonic(), pressing=True)
        return wakes

    def _drained(self, events: netlink.Events | nft_kernel.Events) -> bool:
        """Return whether there was an event. Replace a failed socket, and look for the events that it lost.

        Raises:
            KernelError: no new socket can be opened.
        """
        try:
            return events.drain()
        except KernelError as error:
            self._journal.failed(error)
            self._signals.unregister(events.fileno())
            try:
                events.reopen()
            finally:
                self._signals.register(events.fileno())
            if self._host is not None:
                self._host.look_at_everything()
            return True

    def _expect_again(self) -> None:
        """Note in the record that a removed interface may return, because dom0 wrote a key."""
        if not self._detached:
            return
        self._detached = False
        try:
            record_written(self._paths)
        except GuestnetError as error:
            self._journal.failed(error)

    def _follow_bus(self) -> None:
        """Wait for the present connection to the bus too."""
        self._bus.follow((self._others.fileno(),))
        self._timers.update(self._others.timers())

    def _work(self) -> None:
        """Do everything that is due now."""
        if self._timers.expired("connect"):
            self._connect()
        expired = [cause for name, cause in pass_log.TIMERS.items() if self._timers.expired(name)]
        if expired:
            self._journal.woken(*expired)
            self._pace = self._pace.woken(time.monotonic(), pressing=pass_log.FIREWALL in expired)
        self._prober.repeat()
        if self._host is not None and not self._connection.up and self._host.stirred():
            self._pass_without_store(self._host)
        due = self._pass_due()
        waits = due is not None and due > time.monotonic()
        if due is not None and not waits:
            self._pass()
        # While a pass is pending, its cause may be that the interface went down.
        if self._prober.serve(judge_silence=not waits):
            self._journal.woken(pass_log.PROBE)
            self._pace = self._pace.woken(time.monotonic())

    def _connect(self) -> None:
        try:
            self._connection.open()
        except StoreError as error:
            self._outage(error)
            return
        self._journal.connected()
        # Whether dom0 wrote anything meanwhile is not known, so assume that it did.
        self._keys_written = True
        self._pace = self._pace.woken(time.monotonic())

    def _outage(self, error: StoreError) -> None:
        self._connection.close()
        self._connection.failed(error)
        self._journal.waiting(error)
        self._end_offload()
        self._timers["connect"] = time.monotonic() + retry_pause.pause(self._connection.attempts)

    def _end_offload(self) -> None:
        """End the offload while no passes are made, which would detect changed rules."""
        if self._host is None:
            return
        try:
            self._host.provider.end_offload()
        except GuestnetError as error:
            self._journal.failed(error)

    def _may_rewrite(self, data: bytes) -> bool:
        if self._rewriting:  # asked again within the pass: the file changed before it was written
            self._budget.failed()
        self._rewriting = self._budget.allow(data, time.monotonic())
        return self._rewriting

    def _pass(self) -> None:
        self._unfinished = False
        present = frozenset(devices.names())  # before the entries, which then are newer than each of these
        try:
            (host, entries), self._present = self._hosting(self._connection.entries()), present
        except StoreError as error:
            self._outage(error)
            return
        self._connection.answered()
        self._reconcile(host, entries)

    def _pass_without_store(self, host: Host) -> None:
        """Restore changed rules while QubesDB does not answer, with its last entries (behaviour B125)."""
        self._pace = self._pace.done(time.monotonic())
        self._reconcile(host, host.known)
        self._end_offload()

    def _reconcile(self, host: Host | None, entries: dict[str, bytes]) -> None:
        self._folders.watch((os.path.dirname(self._paths.resolv_conf),))  # each time, because it may fail
        if host is None and self._keeper is None:
            self._keeper = self._keep_rules()
        done, failed = self._keeper.keep(entries) if self._keeper is not None else ((), ())
        asked = Pass(
            self._present, keys_written=self._keys_written, may_rewrite=self._may_rewrite, others=self._others,
            provider=host.provider if host is not None else None,
        )  # fmt: skip
        try:
            report = reconcile(entries, self._kernel, self._paths, asked)
        except Exception as error:  # the state could not be observed
            report = Report(settings.Settings(), errors=(as_error(error),), blind=True)
        report = report._replace(done=(*done, *report.done), errors=(*report.errors, *failed))
        self._follow_bus()
        if self._rewriting and not (report.resolver is not None and report.resolver.written):
            self._budget.failed()
        self._rewriting = False
        self._detached = any(interface.detached for interface in report.interfaces)
        provided = report.provided
        changed = bool(report.applied or (provided is not None and provided.done)) and not self._keys_written
        self._keys_written &= report.late
        self._pace = self._pace.done(time.monotonic(), changed, provided.followed if provided is not None else None)
        self._journal.told(report)
        if host is not None:
            host.follow_names(self._signals)
            self._find(host, entries)
        self._timers.replace("firewall", provided.look_again if provided is not None else None)
        if (self._connection.take_aside() and self._told(())) or report.late:
            self._pace = self._pace.woken(time.monotonic())
        self._prober.consider(report)
        self._schedule_retry(report)

    def _find(self, host: Host, entries: dict[str, bytes]) -> None:
        try:
            host.find(entries)
        except GuestnetError as error:
            self._journal.failed(error)
            self._unfinished = True

    def _hosting(self, entries: dict[str, bytes]) -> tuple[Host | None, dict[str, bytes]]:
        """Return the part that serves client qubes, made in the first pass with a provider's key, and the entries.

        Only a provider loads it, and reads and watches entries of other qubes.

        Raises:
            StoreError: QubesDB does not answer.
        """
        if self._host is None and entries.get(settings.PROVIDER_KEY):
            from . import hotplug_server

            try:
                self._host = hotplug_server.Host(
                    self._paths, self._kernel, self._others, self._connection.entries, self._connection
                )
            except GuestnetError as error:
                self._journal.failed(error)
                self._unfinished = True
                return None, entries
            for fd in self._host.filenos():
                self._signals.register(fd)
            if self._keeper is not None:
                self._signals.unregister(self._keeper.rules.fileno())
                self._keeper.close()
                self._keeper = None
        if self._host is not None and self._connection.watch(self._host.watched, self._host.prefixes):
            entries = self._connection.entries()
        return self._host, entries

    def _schedule_retry(self, report: Report) -> None:
        if any(op.verb is Verb.LINK_UP for op in report.applied):
            self._timers["again"] = time.monotonic() + UDEV_SECONDS
        self._timers.pop("retry", None)
        if report.provided is not None and report.provided.waits:
            self._timers.within("retry", FIREWALL_SECONDS)
            return
        if report.provided is not None and report.provided.names.again:
            self._timers.within("retry", report.provided.names.again)
        undone = self._unfinished or not self._journal.ready or any(error.retryable for error in report.errors)
        if undone or (report.todo and not self._others.wakes):
            self._failures += 1
            self._timers.within("retry", retry_pause.pause(self._failures))
            return
        self._failures = 0
        pause = self._budget.next_try(time.monotonic())
        if pause is not None and report.resolver is not None and report.resolver.pending:
            self._timers.within("retry", pause)
