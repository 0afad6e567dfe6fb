# SPDX-License-Identifier: GPL-2.0-or-later
"""The named timers of the loop, in seconds of the monotonic clock."""

from __future__ import annotations

import time


class Timers(dict[str, float]):
    """Name → when it expires."""

    def expired(self, name: str, *, default: bool = False) -> bool:
        """Return whether a timer has expired, and remove it if so.

        Args:
            name: of the timer.
            default: for one that is not set.
        """
        due = self.get(name)
        if due is None:
            return default
        if due > time.monotonic():
            return False
        del self[name]
        return True

    def within(self, name: str, seconds: float) -> None:
        """Set a timer; an earlier time stays."""
        due = time.monotonic() + seconds
        self[name] = min(due, self.get(name, due))

    def replace(self, name: str, due: float | None) -> None:
        """Set a timer to a time, or remove it."""
        self.pop(name, None)
        if due is not None:
            self[name] = due
