# SPDX-License-Identifier: GPL-2.0-or-later
"""When to start the next pass, given when wake-ups came. Times are seconds of a monotonic clock, passed in.

The first wake-up after a quiet time is followed at once: a change by hand is then in force within a few milliseconds.
So is one that is pressing: dom0 has committed the rules of a qube, of IPv6 directly behind those of IPv4. What else
comes close behind a pass waits for 50 ms of silence, 500 ms at most, and is one pass: dom0 writes a change of
provider as a dozen keys, one at a time.

A program that takes away what we set, each time we set it, is answered only so often: after 20 passes of that kind
within 10 s there is one a second. A pass that changes something because another thing is wanted now is not of that
kind, however often: a VPN that goes up and down had its names followed up to a second late (S-410).
"""

from __future__ import annotations

from .namedtuple import NamedTuple

QUIET_SECONDS = 0.05
LONGEST_SECONDS = 0.5
FIGHT_LIMIT = 20
FIGHT_WINDOW_SECONDS = 10.0
FIGHT_PAUSE_SECONDS = 1.0


class Pace(NamedTuple):
    """What has happened so far.

    Args:
        passed: end of the last pass.
        first: first wake-up that no pass has answered yet, None when there is none.
        last: the latest such wake-up.
        fights: when passes had to restore what we had set before, within the window.
        wanted: what the last pass was to bring about.
        pressing: one of the wake-ups waits for no silence.
    """

    passed: float = float("-inf")
    first: float | None = None
    last: float = float("-inf")
    fights: tuple[float, ...] = ()
    wanted: object = None
    pressing: bool = False

    def woken(self, now: float, *, pressing: bool = False) -> Pace:
        """After a wake-up.

        Args:
            now: when it came.
            pressing: it is followed at once, unless another program fights us.
        """
        first = now if self.first is None else self.first
        return self._replace(first=first, last=now, pressing=self.pressing or pressing)

    def done(self, now: float, changed: bool = False, wanted: object = None) -> Pace:
        """After a pass, which answers all wake-ups so far.

        Args:
            now: its end.
            changed: it had to change something though dom0 had written nothing.
            wanted: what it was to bring about, as far as dom0 does not decide it; None: the same as before.
        """
        recent = tuple(then for then in self.fights if now - then < FIGHT_WINDOW_SECONDS)
        fought = changed and wanted in (None, self.wanted)
        kept = self.wanted if wanted is None else wanted
        return Pace(passed=now, fights=(*recent, now) if fought else recent, wanted=kept)

    def due(self) -> float | None:
        """Return when to start the next pass; None when nothing asks for one."""
        if self.first is None:
            return None
        if len(self.fights) >= FIGHT_LIMIT:
            return max(self.first, self.passed + FIGHT_PAUSE_SECONDS)
        if self.pressing or self.first - self.passed >= QUIET_SECONDS:
            return self.first
        return min(self.last + QUIET_SECONDS, self.first + LONGEST_SECONDS)
