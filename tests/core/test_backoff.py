# SPDX-License-Identifier: GPL-2.0-or-later
"""The pauses between attempts, as numbers; tests/contract/test_store_outage has those that tenacity gives."""

from __future__ import annotations

import pytest

from qubes_guestnet.core import backoff


@pytest.mark.behaviour("B106")
def test_the_pause_doubles_from_a_tenth_of_a_second_and_ends_at_five_seconds() -> None:
    assert [backoff.pause(attempt) for attempt in range(1, 9)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


@pytest.mark.behaviour("B106")
def test_an_outage_of_days_overflows_nothing() -> None:
    assert backoff.pause(100_000) == backoff.LONGEST_SECONDS
