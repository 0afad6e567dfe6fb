# SPDX-License-Identifier: GPL-2.0-or-later
"""The pauses of core/backoff, computed by tenacity where it works."""

from __future__ import annotations

from ..core import backoff

_works = True


def pause(attempt: int) -> float:
    """Return how many seconds to wait before the next attempt.

    Args:
        attempt: how many attempts failed in this outage, from 1.
    """
    global _works
    if not _works:
        return backoff.pause(attempt)
    from . import deferred_imports  # only on the error path, as tenacity itself

    class Attempt:  # the one field of tenacity's RetryCallState that a wait looks at
        attempt_number = attempt

    try:
        wait = deferred_imports.submodule("tenacity.wait").wait_exponential
        return float(wait(multiplier=backoff.FIRST_SECONDS, max=backoff.LONGEST_SECONDS)(Attempt()))
    except Exception as error:  # B149: a broken release of a library must not end the agent in an outage
        from .systemd import WARNING, log

        _works = False
        log(WARNING, f"cannot use tenacity, using built-in pauses: {error}")
        return backoff.pause(attempt)
