# SPDX-License-Identifier: GPL-2.0-or-later
"""What the agent tells: changes, each once, to the journal, to systemd and to `status`."""

from __future__ import annotations

from collections.abc import Iterable

from .core.report import Report
from .errors import GuestnetError, StoreError, printable
from .paths import Paths
from .system import standing, systemd
from .system.systemd import ERROR, INFO, WARNING, log


class Journal:
    """What was told so far, so that it is told once.

    Args:
        paths: where the qube's files are.

    Attributes:
        ready: systemd knows that the first pass is over.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._errors: tuple[str, ...] = ()
        self._told: tuple[str, str] | None = None
        self._notified = ""
        self._troubled = False  # an error was told, and not yet that all are gone
        self._failures: dict[str, bool] = {}  # text → whether it was met since the last pass that was told
        self._untold = self._replaced = ""
        self.ready = False
        self._notes: tuple[object, ...] = ()

    def waiting(self, error: StoreError) -> None:
        """QubesDB does not answer."""
        self._tell(f"waiting for QubesDB: {error.problem}", str(error))

    def failed(self, error: GuestnetError) -> None:
        """Something outside of a pass went wrong; the same is told once, until a pass goes by without it."""
        text = str(error)
        if text not in self._failures:
            log(ERROR, text)
            self._troubled = True
        self._failures[text] = True

    def kept(self, kept: tuple[tuple[str, ...], tuple[GuestnetError, ...]]) -> None:
        """The base rules were looked at without a pass."""
        done, errors = kept
        for words in done:
            log(INFO, words)
        for error in errors:
            self.failed(error)

    def told(self, report: Report) -> None:
        """A pass is over."""
        for op in report.applied:
            log(INFO, str(op))
        for words in (*report.done, *(report.provided.done if report.provided is not None else ())):
            log(INFO, words)
        resolver = report.resolver
        if resolver is not None and resolver.written:
            log(INFO, f"{resolver.path} written: {resolver.decision.reasons}")
            if resolver.replaced not in ("", self._replaced):
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
        undone = report.todo or any(interface.plan for interface in report.interfaces)
        if self._troubled and not (errors or standing_failures or undone):
            self._troubled = False
            log(INFO, "all errors cleared")
        self._errors = errors
        self._failures = dict.fromkeys(standing_failures, False)
        self._tell("; ".join(_status(report)), "; ".join((*errors, *standing_failures)))
        if not self.ready:
            self.ready = systemd.notify("READY=1")

    def _tell(self, status: str, error: str) -> None:
        if status != self._notified:
            self._notified = status if systemd.notify(f"STATUS={printable(status)}") else ""
        if (status, error) == self._told:
            return
        try:
            standing.publish(self._paths.run, error)
        except GuestnetError as failure:
            if str(failure) != self._untold:
                log(ERROR, str(failure))
            self._untold = str(failure)
            return  # what was not published is not told yet
        self._told, self._untold = (status, error), ""


def _status(report: Report) -> Iterable[str]:
    if not report.interfaces:
        yield "no interface expected"
    for interface in report.interfaces:
        name = interface.link.name if interface.link else interface.settings.mac
        addresses = " ".join(sorted(map(str, interface.observed.addresses))) or "no address"
        yield f"{name}: {addresses if interface.link else 'not there'}"
    if report.errors:
        yield f"{len(report.errors)} errors, first: {report.errors[0]}"
