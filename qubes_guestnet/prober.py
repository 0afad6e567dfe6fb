# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks, where a device route is in use, whether the provider answers ARP for everybody; gives the route up if not.

What to ask and what the answers mean is in `core.proxyarp`. Here are the clock, the kernel and the record.
"""

from __future__ import annotations

import time

from .core import proxyarp
from .core.namedtuple import NamedTuple
from .core.report import Report
from .errors import GuestnetError
from .paths import Paths
from .reconcile import record_fallback
from .system import netlink
from .system.netlink_messages import NUD_FAILED, NUD_PERMANENT, NUD_VALID
from .system.systemd import ERROR, WARNING, log


class _Asking(NamedTuple):
    """A question on its way: what was answered so far, and until when the next answer is prompt."""

    answers: tuple[bool, ...]
    due: float


class Prober:
    """The questions of the resident agent.

    Args:
        kernel: asked to resolve, and how that went.
        events: a neighbour that is resolved wakes the loop, while a question is on its way.
        paths: where the record is.
    """

    def __init__(self, kernel: netlink.Kernel, events: netlink.Events, paths: Paths) -> None:
        self._kernel, self._events, self._paths = kernel, events, paths
        self._repeats: dict[proxyarp.Question, float] = {}  # when to ask the first time again
        self._asking: dict[proxyarp.Question, _Asking] = {}
        self._settled: set[proxyarp.Question] = set()

    def due(self) -> float | None:
        """When the next answer is late, in seconds of the monotonic clock; None when none is awaited."""
        return min((asking.due for asking in self._asking.values()), default=None)

    def repeats(self) -> tuple[float, ...]:
        """When to ask again whom nobody has answered for yet, as `due`."""
        return tuple(self._repeats.values())

    def repeat(self) -> None:
        """Ask again where it is time to: see `proxyarp.REPEAT_SECONDS`."""
        for question, due in list(self._repeats.items()):
            asking = self._asking.get(question)
            if asking is not None and not asking.answers and due > time.monotonic():
                continue
            del self._repeats[question]
            if asking is None or asking.answers or self._state(question, ()) & NUD_VALID:
                continue
            try:
                self._kernel.forget(question.ifindex, question.whom(()))
                self._kernel.solicit(question.ifindex, question.whom(()))
            except GuestnetError:
                continue  # the interface went, or the entry: `serve` finds out

    def consider(self, report: Report) -> None:
        """Ask about interfaces that a pass found configured; forget what was about others."""
        about = set()
        for interface in report.interfaces:
            if interface.plan or interface.waiting:
                continue
            question = proxyarp.question(report.settings, interface.settings, interface.link, interface.choice.style)
            if question is not None:
                about.add(question)
        self._settled &= about
        self._asking = {question: asking for question, asking in self._asking.items() if question in about}
        fresh = about - self._settled - set(self._asking)
        self._events.neighbours(bool(fresh or self._asking))
        for question in fresh:
            self._ask(question, ())
            self._repeats[question] = time.monotonic() + proxyarp.REPEAT_SECONDS

    def serve(self, *, judge_silence: bool) -> bool:
        """Look for answers. True when a device route was given up, and a pass is to follow.

        Args:
            judge_silence: False while the interface may have gone down unnoticed, and its silence means nothing.
        """
        gave_up = False
        for question, asking in list(self._asking.items()):
            state = self._state(question, asking.answers)
            prompt = bool(state & NUD_VALID)
            if not prompt and (not judge_silence or asking.due > time.monotonic()):
                continue
            if state == 0:
                self._ask(question, asking.answers)  # the link went down and up meanwhile, and the entry with it
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

    def _state(self, question: proxyarp.Question, answers: tuple[bool, ...]) -> int:
        try:
            return self._kernel.neighbour_state(question.ifindex, question.whom(answers))[0]
        except GuestnetError:
            return NUD_FAILED  # not knowing is no answer

    def _ask(self, question: proxyarp.Question, answers: tuple[bool, ...]) -> None:
        address = question.whom(answers)
        state = self._state(question, answers)
        try:
            if state & NUD_VALID and not state & NUD_PERMANENT:
                self._kernel.forget(question.ifindex, address)  # what it knows already is no answer
            self._kernel.solicit(question.ifindex, address)
        except GuestnetError:
            # The interface went between the pass and now, and its event is on the way.
            self._asking.pop(question, None)
            return
        self._asking[question] = _Asking(answers, time.monotonic() + proxyarp.PROMPT_SECONDS)

    def _give_up(self, question: proxyarp.Question) -> bool:
        fallback = proxyarp.fallback(question)
        try:
            record_fallback(self._paths, question.ifindex, question.mac, fallback)
        except GuestnetError as error:
            log(ERROR, str(error))
            return False
        log(WARNING, f"falling back to the gateway route: {fallback.reason}")
        return True
