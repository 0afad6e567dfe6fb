# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals as wake-ups of a poll loop."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable


class Signals:
    """Signals that arrive in `poll` and nowhere else.

    A signal in the middle of a QubesDB request makes the C library lose its place in the stream (#10643). So they are
    blocked, and let through only while we wait.

    Args:
        numbers: the signals to take.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self._numbers = frozenset(numbers)
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        for number in self._numbers:
            signal.signal(number, lambda *_: None)  # an ignored signal would not reach the wake-up pipe
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._poll = select.poll()
        self.register(self._reader)

    def register(self, fd: int) -> None:
        """Wait for this file descriptor too."""
        self._poll.register(fd, select.POLLIN)

    def unregister(self, fd: int) -> None:
        """Do not wait for it any longer."""
        self._poll.unregister(fd)

    def poll(self, seconds: float | None) -> tuple[frozenset[int], frozenset[int]]:
        """Wait for something to happen.

        Args:
            seconds: at most this long; None for as long as it takes.

        Returns:
            The readable file descriptors, and the signals that came.
        """
        timeout = None if seconds is None else max(0.0, seconds) * 1000
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)
        try:
            ready = {fd for fd, _ in self._poll.poll(timeout)}
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        came: set[int] = set()
        if self._reader in ready:
            came.update(os.read(self._reader, 4096))
        return frozenset(ready - {self._reader}), frozenset(came)

    def rest(self, seconds: float) -> None:
        """Wait for a signal and nothing else; it is told by the next `poll`."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)
        try:
            poll.poll(seconds * 1000)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
