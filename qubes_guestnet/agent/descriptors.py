# SPDX-License-Identifier: GPL-2.0-or-later
"""The changing file descriptors of one part of the agent, registered with the loop's poll."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..system.signals import Signals


class Descriptors:
    """The descriptors of one part that the loop polls.

    Args:
        signals: the loop's poll.
    """

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self._known = frozenset[int]()

    def follow(self, fds: Iterable[int]) -> None:
        """Wait for these from now on, and for no others of this part.

        Args:
            fds: open ones; a negative number stands for none.
        """
        wanted = frozenset(fd for fd in fds if fd >= 0)
        for fd in self._known - wanted:
            self._signals.unregister(fd)
        for fd in wanted - self._known:
            self._signals.register(fd)
        self._known = wanted

    def are_ready(self, ready: Collection[int]) -> bool:
        """Return whether one of them is readable.

        Args:
            ready: of all.
        """
        return not self._known.isdisjoint(ready)
