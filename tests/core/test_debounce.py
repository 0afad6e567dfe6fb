# SPDX-License-Identifier: GPL-2.0-or-later
"""When the next pass starts. All times are seconds of a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet.core.debounce import (
    FIGHT_LIMIT,
    FIGHT_PAUSE_SECONDS,
    FIGHT_WINDOW_SECONDS,
    LONGEST_SECONDS,
    QUIET_SECONDS,
    Pace,
)


def test_nothing_asks_for_a_pass() -> None:
    assert Pace().due() is None
    assert Pace().woken(1.0).done(1.0).due() is None


def test_after_a_quiet_time_at_once() -> None:
    assert Pace().woken(1.0).due() == 1.0
    assert Pace().done(1.0).woken(1.0 + QUIET_SECONDS).due() == 1.0 + QUIET_SECONDS


def test_close_behind_a_pass_after_a_silence() -> None:
    pace = Pace().done(1.0).woken(1.01)
    assert pace.due() == 1.01 + QUIET_SECONDS
    assert pace.woken(1.03).due() == 1.03 + QUIET_SECONDS


def test_what_never_falls_silent_waits_so_long_and_no_longer() -> None:
    pace = Pace().done(1.0)
    for step in range(1, 100):
        pace = pace.woken(1.0 + step / 100)
    assert pace.due() == 1.01 + LONGEST_SECONDS


@pytest.mark.behaviour("B79")
def test_what_presses_waits_for_no_silence_but_is_no_way_around_a_fight() -> None:
    pace = Pace().done(1.0).woken(1.001, pressing=True).woken(1.002)
    assert pace.due() == 1.001
    assert not pace.done(1.01).pressing
    last = 100.0 + (FIGHT_LIMIT - 1) / 10
    assert fought(FIGHT_LIMIT).woken(last + 0.1, pressing=True).due() == last + FIGHT_PAUSE_SECONDS


def fought(times: int, start: float = 100.0) -> Pace:
    pace = Pace()
    for step in range(times):
        pace = pace.woken(start + step / 10).done(start + step / 10, changed=True)
    return pace


def test_a_fight_is_slowed_down_and_never_given_up() -> None:
    last = 100.0 + (FIGHT_LIMIT - 1) / 10
    assert fought(FIGHT_LIMIT).woken(last + 0.1).due() == last + FIGHT_PAUSE_SECONDS
    assert fought(FIGHT_LIMIT - 1).woken(last).due() == last
    assert fought(FIGHT_LIMIT).woken(last + 3.0).due() == last + 3.0


@pytest.mark.behaviour("B37")
@pytest.mark.scenario("S-410")
def test_what_is_wanted_anew_is_followed_at_once_however_often() -> None:
    pace, now = Pace(wanted="the uplink's servers"), 100.0
    for number in range(3 * FIGHT_LIMIT):
        now += 0.1
        pace = pace.woken(now)
        assert pace.due() == now
        pace = pace.done(now, True, "the tunnel's server" if number % 2 == 0 else "the uplink's servers")
    assert pace.fights == ()


def test_the_same_wanted_again_is_a_fight_also_where_a_pass_in_between_does_not_say_what_it_wants() -> None:
    pace = Pace()
    for number in range(FIGHT_LIMIT + 1):
        pace = pace.done(100.0 + number / 10).done(100.0 + number / 10, True, "one server")
    assert len(pace.fights) == FIGHT_LIMIT  # but for the first, which wanted something new


def test_a_fight_that_is_over_is_forgotten() -> None:
    later = 100.0 + FIGHT_WINDOW_SECONDS + FIGHT_LIMIT
    pace = fought(FIGHT_LIMIT).woken(later).done(later)
    assert pace.fights == ()
    assert pace.woken(later + 0.01).due() == later + 0.01 + QUIET_SECONDS


@given(st.lists(st.tuples(st.floats(0, 2), st.booleans(), st.booleans()), max_size=60))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_wake_up_is_answered_within_the_longest_time(steps: list[tuple[float, bool, bool]]) -> None:
    now, pace = 0.0, Pace()
    for pause, wake, fight in steps:
        now += pause
        if wake:
            pace = pace.woken(now)
        due = pace.due()
        assert (due is None) == (pace.first is None)
        if due is not None and pace.first is not None:
            assert pace.first <= due <= pace.first + max(LONGEST_SECONDS, FIGHT_PAUSE_SECONDS)
            if due <= now:
                pace = pace.done(now, fight)
        assert len(pace.fights) <= len(steps)
