# SPDX-License-Identifier: GPL-2.0-or-later
"""When to start the next pass, from the times of wake-ups, in seconds of a monotonic clock passed in by the caller.

The first wake-up after a quiet time starts a pass at once, so a change by hand is in force within milliseconds. So does
a pressing wake-up: dom0 has committed the rules of a qube, for IPv6 directly after those for IPv4. Other wake-ups soon
after a pass wait for 50 ms of silence, at most 500 ms, and share one pass: dom0 writes a change of provider as a dozen
keys, one at a time.

If another program keeps removing our configuration, the agent limits its repairs: after 20 of them within 10 s it makes
one pass a second. A pass that changes something because the desired state changed is not a repair, however frequent:
the name servers of a VPN that goes up and down used to be followed up to a second late (S-410).
"""

from __future__ import annotations

from .namedtuple import NamedTuple

QUIET_SECONDS = 0.05
LONGEST_SECONDS = 0.5
FIGHT_LIMIT = 20
FIGHT_WINDOW_SECONDS = 10.0
FIGHT_PAUSE_SECONDS = 1.0


class Pace(NamedTuple):
    """The wake-ups and passes so far.

    Args:
        passed: end of the last pass.
        first: first wake-up that no pass has answered yet; None for none.
        last: the latest such wake-up.
        fights: times of repairs within the window.
        wanted: desired state of the last pass.
        pressing: one of the wake-ups does not wait for silence.
    """

    passed: float = float("-inf")
    first: float | None = None
    last: float = float("-inf")
    fights: tuple[float, ...] = ()
    wanted: object = None
    pressing: bool = False

    def woken(self, now: float, *, pressing: bool = False) -> Pace:
        """Return the state after a wake-up.

        Args:
            now: its time.
            pressing: it starts a pass at once, unless another program keeps reverting our changes.
        """
        first = now if self.first is None else self.first
        return self._replace(first=first, last=now, pressing=self.pressing or pressing)

    def done(self, now: float, changed: bool = False, wanted: object = None) -> Pace:
        """Return the state after a pass, which answers all wake-ups so far.

        Args:
            now: its end.
            changed: it changed something although dom0 had written nothing.
            wanted: the part of its desired state that dom0 does not decide; None: the same as before.
        """
        recent = tuple(then for then in self.fights if now - then < FIGHT_WINDOW_SECONDS)
        fought = changed and wanted in (None, self.wanted)
        kept = self.wanted if wanted is None else wanted
        return Pace(passed=now, fights=(*recent, now) if fought else recent, wanted=kept)

    def due(self) -> float | None:
        """Return when to start the next pass; None if there was no wake-up."""
        if self.first is None:
            return None
        if len(self.fights) >= FIGHT_LIMIT:
            return max(self.first, self.passed + FIGHT_PAUSE_SECONDS)
        if self.pressing or self.first - self.passed >= QUIET_SECONDS:
            return self.first
        return min(self.last + QUIET_SECONDS, self.first + LONGEST_SECONDS)
