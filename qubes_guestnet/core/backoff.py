# SPDX-License-Identifier: GPL-2.0-or-later
"""The pauses between attempts: 0.1 s, doubled each time, at most 5 s.

Without jitter: each qube has a QubesDB of its own, there is no crowd to disperse.
"""

from __future__ import annotations

FIRST_SECONDS, LONGEST_SECONDS = 0.1, 5.0
_DOUBLINGS = 10  # enough to reach the longest pause; the exponent must not grow without limit


def pause(attempt: int) -> float:
    """Return how many seconds to wait before the next attempt.

    Args:
        attempt: how many attempts failed in this outage, from 1.
    """
    return float(min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** min(attempt - 1, _DOUBLINGS)))
