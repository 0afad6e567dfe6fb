# SPDX-License-Identifier: GPL-2.0-or-later
"""A terminal for a command that runs in a qube: a pseudo-terminal of its own, and the person's one handed through.

The command's terminal has to be one that no session outside has, else there is no job control in it, and Ctrl-C would
reach the wrong processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

_CHUNK = 65536
_SIGNALLED = 128
_ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def raw(outer: int, master: int) -> Iterator[None]:
    """While inside, keys go through the person's terminal as they are, and the command's has its size.

    Args:
        outer: the person's terminal.
        master: the master end of the command's.
    """

    def resize(_number: int, _frame: FrameType | None) -> None:
        size = fcntl.ioctl(outer, termios.TIOCGWINSZ, b"\0" * 8)
        fcntl.ioctl(master, termios.TIOCSWINSZ, size)

    resize(0, None)
    saved = termios.tcgetattr(outer)
    before = {number: signal.signal(number, _end) for number in _ENDING}
    before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, resize)
    try:
        tty.setraw(outer)
        yield
    finally:
        termios.tcsetattr(outer, termios.TCSADRAIN, saved)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(_SIGNALLED + number)  # by way of the `finally` that gives the terminal back


def copy(outer: int, master: int, other: int, ended: Callable[[], bool]) -> None:
    """Copy between the two terminals until `ended`, which is asked when `other` is readable; what was said is shown."""
    sources = [outer, master, other]
    while True:
        ready = select.select(sources, [], [])[0]
        if master in ready and not _pass_on(master, sys.stdout.fileno()):
            sources.remove(master)
        if outer in ready and not _pass_on(outer, master):
            sources.remove(outer)
        if other in ready and ended():
            break
    while master in sources and select.select([master], [], [], 0)[0] and _pass_on(master, sys.stdout.fileno()):
        pass


def _pass_on(source: int, sink: int) -> bool:
    """Copy what is there; False at the end, which at a master is EIO: no process has the terminal any more."""
    try:
        data = os.read(source, _CHUNK)
        while data:
            data = data[os.write(sink, data) :]
            if not data:
                return True
    except OSError:
        pass
    return False
