# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C: print one line at any moment, and leave nothing behind.

The terminal sends SIGINT to all processes of the command. Only the process that the user started handles it: it ends
everything that it began, prints "interrupted" and exits. It raises no exception, because an exception at a random
moment would also hit clean-ups and finalisers, which print it as a traceback (B143).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STATUS = 128 + signal.SIGINT
# Python ignores these itself, and `subprocess` has its children not do so.
_PYTHONS_OWN = {signal.SIGPIPE, signal.SIGXFSZ}
CleanUp = Callable[[], None]
_clean_ups: list[CleanUp] = []


def install() -> None:
    """Handle SIGINT from now on; if it is ignored, as in a shell's background job, keep it ignored."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _answer)


def finish() -> None:
    """Stop handling SIGINT, because the command is finished."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def add(clean_up: CleanUp) -> None:
    """Register a function that SIGINT calls before the process ends; the last one added is called first."""
    _clean_ups.append(clean_up)


def remove(clean_up: CleanUp) -> None:
    """Revert `add`."""
    _clean_ups.remove(clean_up)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Block terminating signals inside: for a fork and its `add`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_it_to_the_parent() -> None:
    """In a new child, which has inherited the handler: SIGINT does nothing here, and SIGTERM comes from the parent."""
    _clean_ups.clear()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _nothing)  # not SIG_IGN, which programs would inherit


def let_programs_have_signals() -> None:
    """Have programs started from now on ignore and block no signal; one that this process ignores still does nothing.

    What is ignored or blocked is inherited through exec(3), a handler is not: a shell starts a background job with
    SIGINT and SIGQUIT ignored, nohup with SIGHUP.
    """
    for number in signal.valid_signals() - _PYTHONS_OWN:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, _nothing)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _nothing(_number: int, _frame: FrameType | None) -> None:
    return


def end(child: int) -> None:
    """Send SIGTERM to a child, and wait for it; ignore one that has ended already."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)


def say() -> None:
    """Print the line, below the terminal's present line."""
    for descriptor in (1, 2):
        if os.isatty(descriptor):
            _write(descriptor, b"\n")
            break
    _write(2, b"interrupted\n")


def _write(descriptor: int, text: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(descriptor, text)


def _answer(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one changes nothing
    for clean_up in reversed(_clean_ups):
        with contextlib.suppress(Exception):  # the process ends, whatever a clean-up finds
            clean_up()
    say()
    os._exit(STATUS)
