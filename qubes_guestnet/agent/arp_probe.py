# SPDX-License-Identifier: GPL-2.0-or-later
"""Probe whether the provider answers ARP for all addresses, and fall back from the device route if it does not.

`core.uplink.arp_probe` decides the probes and the meaning of answers. This module has the clock, the kernel and the
record.
"""

from __future__ import annotations

import time

from ..core.namedtuple import NamedTuple
from ..core.report import Report
from ..core.uplink import arp_probe
from ..errors import GuestnetError
from ..reconcile import record_fallback
from ..system.netlink import rtnl as netlink
from ..system.netlink.encode import NUD_FAILED, NUD_PERMANENT, NUD_VALID
from ..system.paths import Paths
from ..system.systemd import ERROR, WARNING, log


class _Asking(NamedTuple):
    """A running probe: the answers so far, and the deadline of the next one."""

    answers: tuple[bool, ...]
    due: float


class Prober:
    """The probes of the resident agent.

    Args:
        kernel: resolves neighbours and reports the result.
        events: wakes the loop when a neighbour is resolved, while a probe runs.
        paths: location of the record.
    """

    def __init__(self, kernel: netlink.Kernel, events: netlink.Events, paths: Paths) -> None:
        self._kernel, self._events, self._paths = kernel, events, paths
        self._repeats: dict[arp_probe.Question, float] = {}  # when to repeat the first request
        self._asking: dict[arp_probe.Question, _Asking] = {}
        self._settled: set[arp_probe.Question] = set()

    def due(self) -> float | None:
        """Return the next deadline of a probe, in seconds of the monotonic clock; None if no probe runs."""
        return min((asking.due for asking in self._asking.values()), default=None)

    def repeats(self) -> tuple[float, ...]:
        """Return when to re-send unanswered probes, as `due`."""
        return tuple(self._repeats.values())

    def repeat(self) -> None:
        """Re-send unanswered probes that are due: see `arp_probe.REPEAT_SECONDS`."""
        for question, due in list(self._repeats.items()):
            asking = self._asking.get(question)
            if asking is not None and not asking.answers and due > time.monotonic():
                continue
            del self._repeats[question]
            if asking is None or asking.answers or self._state(question, ()) & NUD_VALID:
                continue
            try:
                self._kernel.solicit_again(question.ifindex, question.next_address(()))
            except GuestnetError:
                continue  # the interface or the entry is gone: `serve` handles it

    def consider(self, report: Report) -> None:
        """Start probes for interfaces that a pass found configured; drop those of other interfaces."""
        about = set()
        for interface in report.interfaces:
            if interface.plan or interface.waiting:
                continue
            question = arp_probe.question(report.settings, interface.settings, interface.link, interface.choice.style)
            if question is not None:
                about.add(question)
        self._settled &= about
        self._asking = {question: asking for question, asking in self._asking.items() if question in about}
        fresh = about - self._settled - set(self._asking)
        self._events.neighbours(bool(fresh or self._asking))
        for question in fresh:
            self._ask(question, ())
            self._repeats[question] = time.monotonic() + arp_probe.REPEAT_SECONDS

    def serve(self, *, judge_silence: bool) -> bool:
        """Check for answers; return True if a device route was abandoned, which needs another pass.

        Args:
            judge_silence: False while the interface may be down without a notification, so that silence proves nothing.
        """
        gave_up = False
        for question, asking in list(self._asking.items()):
            state = self._state(question, asking.answers)
            prompt = bool(state & NUD_VALID)
            if not prompt and (not judge_silence or asking.due > time.monotonic()):
                continue
            if state == 0:
                self._ask(question, asking.answers)  # the link went down and up meanwhile, which removed the entry
                continue
            answers = (*asking.answers, prompt)
            verdict = question.verdict(answers)
            if verdict is None:
                self._ask(question, answers)
                continue
            del self._asking[question]
            self._events.neighbours(bool(self._asking))
            self._settled.add(question)
            gave_up |= not verdict and self._give_up(question)
        return gave_up

    def _state(self, question: arp_probe.Question, answers: tuple[bool, ...]) -> int:
        try:
            return self._kernel.neighbour_state(question.ifindex, question.next_address(answers))[0]
        except GuestnetError:
            return NUD_FAILED  # an unknown state counts as no answer

    def _ask(self, question: arp_probe.Question, answers: tuple[bool, ...]) -> None:
        address = question.next_address(answers)
        state = self._state(question, answers)
        try:
            if state & NUD_VALID and not state & NUD_PERMANENT:
                self._kernel.forget(question.ifindex, address)  # an old entry is not an answer
            self._kernel.solicit(question.ifindex, address)
        except GuestnetError:
            # The interface disappeared after the pass; its event will follow.
            self._asking.pop(question, None)
            return
        self._asking[question] = _Asking(answers, time.monotonic() + arp_probe.PROMPT_SECONDS)

    def _give_up(self, question: arp_probe.Question) -> bool:
        fallback = arp_probe.fallback(question)
        try:
            record_fallback(self._paths, question.ifindex, question.mac, fallback)
        except GuestnetError as error:
            log(ERROR, str(error))
            return False
        log(WARNING, f"falling back to the gateway route: {fallback.reason}")
        return True
