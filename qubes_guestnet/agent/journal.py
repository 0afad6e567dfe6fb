# SPDX-License-Identifier: GPL-2.0-or-later
"""Report each change once: to the journal, to systemd and to `status`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable

from .. import __version__
from ..core.plural import amount
from ..core.render import pass_log
from ..core.render.pass_log import Causes
from ..core.report import Report, server_words
from ..errors import GuestnetError, StoreError, printable
from ..system import agent_status, monitor_socket, systemd
from ..system.paths import Paths
from ..system.systemd import DEBUG, ERROR, INFO, WARNING, log

_SIGNALS: dict[int, str] = {signal.SIGHUP: pass_log.RELOAD, signal.SIGIO: pass_log.FILES}


class Journal:
    """The reports of the agent so far, so that it reports each change once.

    Args:
        paths: locations of the qube's files.

    Attributes:
        ready: systemd knows that the first pass is over.
        monitor: where `monitor` connects; None where there can be no such socket.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._errors: tuple[str, ...] = ()
        self._told: tuple[str, str] | None = None
        self._notified = ""
        self._troubled = False  # an error was logged, but not yet that all are cleared
        self._failures: dict[str, bool] = {}  # text → whether it was met since the last pass that was told
        self._untold = self._replaced = ""
        self.ready = False
        self._notes: tuple[object, ...] = ()
        self._causes, self._echoes = Causes().plus((pass_log.START,)), Causes()
        self._changed = self._pending = False  # by the last pass; it left something to the next one
        self._roles = ""
        self._interfaces: pass_log.Interfaces = {}
        self._passes: tuple[tuple[str, ...], int] = ((), 0)  # what the last pass said, and how often in a row
        self.monitor = self._listen()

    def _listen(self) -> monitor_socket.Server | None:
        try:
            os.makedirs(self._paths.run, mode=0o755, exist_ok=True)
            server = monitor_socket.Server(os.path.join(self._paths.run, monitor_socket.NAME))
        except (OSError, GuestnetError) as error:
            log(WARNING, f"`monitor` cannot follow this agent: {error}")
            return None
        systemd.follow(server.send)
        return server

    def greet(self) -> None:
        """Accept a follower, and send it the present state."""
        if self.monitor is not None:
            self.monitor.accept(f"following qubes-guestnet {__version__}: {self._notified or 'no pass yet'}")

    def close(self) -> None:
        """End the connections of all followers."""
        systemd.follow(None)
        if self.monitor is not None:
            self.monitor.close()

    def waiting(self, error: StoreError) -> None:
        """Report that QubesDB does not answer."""
        self._tell(f"waiting for QubesDB: {error.problem}", str(error))

    def failed(self, error: GuestnetError) -> None:
        """Log an error outside of a pass; the same one only once, until a pass ends without it."""
        text = str(error)
        if text not in self._failures:
            log(ERROR, text)
            self._troubled = True
        self._failures[text] = True

    def kept(self, kept: tuple[tuple[str, ...], tuple[GuestnetError, ...]]) -> None:
        """Log what was done for the base rules without a pass."""
        done, errors = kept
        for words in done:
            log(INFO, words)
        for error in errors:
            self.failed(error)

    def woken(self, *causes: str, paths: Iterable[str] = ()) -> None:
        """Note what wakes the next pass.

        Args:
            causes: of core/render/pass_log.
            paths: of QubesDB, which were written.
        """
        came = Causes().plus(causes, paths)
        if self._changed:  # wake-ups directly after a pass are attributed to its own changes
            self._echoes = self._echoes.plus(came.echoes)
            came = came._replace(kinds=came.kinds - came.echoes)
        self._causes = self._causes.plus(came.kinds, came.paths)

    def gathered(self) -> None:
        """End the time in which wake-ups count as the echo of the last pass."""
        self._changed = False

    def signalled(self, came: Iterable[int]) -> None:
        """Note the signals that wake the next pass."""
        self.woken(*(_SIGNALS[number] for number in came if number in _SIGNALS))

    def connected(self) -> None:
        """Note that QubesDB answers; except for the first time, this is the cause of a pass."""
        if pass_log.START not in self._causes.kinds:
            self.woken(pass_log.STORE)

    def told(self, report: Report) -> None:
        """Log what a pass did, and publish the state."""
        self._tell_roles(report)
        self._tell_pass(report)
        resolver = report.resolver
        if resolver is not None and resolver.written and resolver.replaced not in ("", self._replaced):
            self._replaced = resolver.replaced
            log(WARNING, resolver.written_back)
        for note in report.notes:
            if note not in self._notes:
                log(INFO, str(note))
        self._notes = report.notes
        standing_failures = tuple(text for text, met in self._failures.items() if met)
        before = {*self._errors, *self._failures}
        errors = tuple(dict.fromkeys(map(str, report.errors)))
        for text in errors:
            self._troubled = True
            if text not in before:
                log(ERROR, text)
        undone = bool(report.todo) or any(interface.plan for interface in report.interfaces)
        self._pending = undone or any(error.retryable for error in report.errors)
        if self._troubled and not (errors or standing_failures or undone):
            self._troubled = False
            log(INFO, "all errors cleared")
        self._errors = errors
        self._failures = dict.fromkeys(standing_failures, False)
        self._tell("; ".join(_status(report)), "; ".join((*errors, *standing_failures)))
        if not self.ready and not report.late:
            self.ready = systemd.notify("READY=1")

    def _tell_roles(self, report: Report) -> None:
        """Log the start line; later, a change of the roles."""
        if self._roles and report.blind:
            return
        roles = pass_log.roles(report)
        if not self._roles:
            log(INFO, pass_log.start_line(__version__, roles), "start")
        elif roles != self._roles:
            log(INFO, f"this qube now has {roles}", "start")
        self._roles = roles

    def _tell_pass(self, report: Report) -> None:
        """Log the cause of a pass, interfaces that came or went, and the operations; repetitions ever less often."""
        after = pass_log.interfaces(self._interfaces, report)
        moves = tuple(pass_log.moves(self._interfaces, after))
        self._interfaces = after
        for words in moves:
            log(INFO, words, "interface")
        done = _done(report)
        causes, echoes, self._causes, self._echoes = self._causes, self._echoes, Causes(), Causes()
        causes = causes.explained(echoes, changed=bool(done), pending=self._pending)
        self._changed = bool(done)
        errors = set(map(str, report.errors)) - {*self._errors, *self._failures}
        line = pass_log.pass_line(causes, len(done), len(errors), moved=bool(moves))
        if not line.told:
            log(DEBUG, line.text, "pass")
            return
        said = (line.text, *done)
        count = self._passes[1] + 1 if said == self._passes[0] else 1
        self._passes = said, count
        again = f" ({count} times in a row)" if count > 1 else ""
        # Log the first pass completely, and then only the line of the 2nd, 4th, 8th …
        log(DEBUG if count & (count - 1) else INFO, line.text + again, "pass")
        for words in done:
            log(DEBUG if again else INFO, words, "operation")

    def _tell(self, status: str, error: str) -> None:
        if status != self._notified:
            self._notified = status if systemd.notify(f"STATUS={printable(status)}") else ""
        if (status, error) == self._told:
            return
        try:
            agent_status.publish(self._paths.run, error)
        except GuestnetError as failure:
            if str(failure) != self._untold:
                log(ERROR, str(failure))
            self._untold = str(failure)
            return  # a state that could not be published counts as not reported
        self._told, self._untold = (status, error), ""


def _done(report: Report) -> tuple[str, ...]:
    """Return the operations of a pass, one line each."""
    provided = report.provided.done if report.provided is not None else ()
    done = (*map(str, report.applied), *report.done, *provided)
    resolver = report.resolver
    if resolver is None or not resolver.written:
        return done
    return (*done, f"{resolver.path} written: {server_words(resolver.current)}")


def _status(report: Report) -> Iterable[str]:
    if not report.interfaces:
        yield "no interface expected"
    for interface in report.interfaces:
        name = interface.link.name if interface.link else interface.settings.mac
        addresses = " ".join(sorted(map(str, interface.observed.addresses))) or "no address"
        yield f"{name}: {addresses if interface.link else 'not there'}"
    if report.errors:
        yield f"{amount(len(report.errors), 'error')}, first: {report.errors[0]}"
