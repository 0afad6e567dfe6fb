# SPDX-License-Identifier: GPL-2.0-or-later
"""Wait for an outcome with a deadline, instead of sleeping for a guess."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from qubes_guestnet.lab.patience import patient

T = TypeVar("T")
FIRST_PAUSE_S = 0.005
LONGEST_PAUSE_S = 0.2


def eventually(check: Callable[[], T], deadline_s: float = 10.0, what: str = "", trouble: Callable[[], str] = str) -> T:
    """Call `check` until it returns something true, and return that.

    A check may also assert; its last AssertionError is then the error of the test.

    Args:
        check: looks at the outcome; called at least once, and once more after the deadline.
        deadline_s: how long to go on, in seconds, on real hardware: an emulated machine gets longer. Generous: it is
            only ever spent by a failing test.
        what: what is waited for, for the message.
        trouble: tells more when the deadline has passed, such as the agent's log.

    Raises:
        AssertionError: the deadline passed.
    """
    deadline_s = patient(deadline_s)
    start = time.monotonic()
    pause = FIRST_PAUSE_S
    while True:
        late = time.monotonic() - start > deadline_s
        try:
            result = check()
            if result:
                return result
            failed: AssertionError | None = None
        except AssertionError as error:
            result, failed = None, error
        if late:
            name = what or getattr(check, "__name__", "the outcome")
            message = f"{name} did not come about within {deadline_s:g} s; last seen: {failed or result!r}\n{trouble()}"
            raise AssertionError(message) from failed
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE_S)


def never(check: Callable[[], object], for_s: float, what: str = "") -> None:
    """The opposite: `check` must stay false for `for_s` seconds. For things that must not happen, so use it sparingly.

    Raises:
        AssertionError: it happened.
    """
    end = time.monotonic() + for_s
    while time.monotonic() < end:
        seen = check()
        if seen:
            raise AssertionError(f"{what or getattr(check, '__name__', 'it')} happened: {seen!r}")
        time.sleep(0.02)
