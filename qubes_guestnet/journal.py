# SPDX-License-Identifier: GPL-2.0-or-later
"""What the resident agent tells: changes, each once, to the journal, to systemd and to `status`."""

from __future__ import annotations

from collections.abc import Iterable

from .core.report import Report
from .errors import GuestnetError, StoreError
from .paths import Paths
from .system import standing, systemd
from .system.systemd import ERROR, INFO, WARNING, log


class Journal:
    """What the agent tells: changes, each once, to the journal, to systemd and to `status`."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._errors: tuple[str, ...] = ()
        self._told: tuple[object, ...] = ()
        self._ready = False
        self._failure = self._replaced = ""

    def waiting(self, error: StoreError) -> None:
        """QubesDB does not answer."""
        self._tell(f"waiting for QubesDB: {error.problem}", str(error))

    def failed(self, error: GuestnetError) -> None:
        """Something outside of a pass went wrong; each time it is the same it is told once."""
        if str(error) != self._failure:
            self._failure = str(error)
            log(ERROR, self._failure)

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
        errors = tuple(str(error) for error in report.errors)
        for text in errors:
            if text not in self._errors:
                log(ERROR, text)
        if self._errors and not errors:
            log(INFO, "all errors are healed")
        self._errors = errors
        self._tell("; ".join(self._status(report)), "; ".join(errors))
        if not self._ready:
            systemd.notify("READY=1")
            self._ready = True

    def _status(self, report: Report) -> Iterable[str]:
        if not report.interfaces:
            yield "no interface expected"
        for interface in report.interfaces:
            name = interface.link.name if interface.link else interface.settings.mac
            addresses = " ".join(sorted(map(str, interface.observed.addresses))) or "no address"
            yield f"{name}: {addresses if interface.link else 'not there'}"
        if report.errors:
            yield f"{len(report.errors)} errors, first: {report.errors[0]}"

    def _tell(self, status: str, error: str) -> None:
        if (status, error) == self._told:
            return
        self._told = (status, error)
        systemd.notify(f"STATUS={status}")
        try:
            standing.publish(self._paths.run, error)
        except GuestnetError as failure:
            log(ERROR, str(failure))
