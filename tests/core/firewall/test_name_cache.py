# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of names, step by step: when it is asked for, what stays, what goes."""

from __future__ import annotations

import ipaddress

import pytest

from qubes_guestnet.core import endpoint
from qubes_guestnet.core.firewall import name_cache, name_messages
from qubes_guestnet.core.firewall.name_cache import Cache, Entry, Known
from qubes_guestnet.core.firewall.name_messages import Answer, Question
from qubes_guestnet.core.values import IPAddress

FIRST = endpoint.of((ipaddress.ip_address("10.139.1.1"),))
SECOND = endpoint.of((ipaddress.ip_address("10.139.1.2"),))
Q = Question(4, "example.org")
OTHER = Question(6, "example.org")
START = 1000
LONG = name_cache.LONGEST


def address(number: int) -> IPAddress:
    return ipaddress.IPv4Address("192.0.2.0") + number


def answer(*numbers: int, ttl: int = 300, part: bool = False) -> Answer:
    kind = name_messages.PART if part else name_messages.ADDRESSES
    return Answer(Q, kind, ttl, sorted(map(address, numbers)))


NODATA = Answer(Q, name_messages.NODATA, 60)
NXDOMAIN = Answer(Q, name_messages.NXDOMAIN, 60)
TIMEOUT = Answer(Q, name_messages.FAILED, reason=name_messages.TIMEOUT)
REFUSED = Answer(Q, name_messages.REFUSED)


class Steps:
    """A cache with one question, and what happens to it."""

    def __init__(self, *answers: Answer) -> None:
        self.now = START
        self.cache = name_cache.follow(Cache(), [Q], FIRST, self.now)
        for each in answers:
            self.hear(each)

    def hear(self, heard: Answer, after: int | None = None, jitter: float = 0.0, shortest: int = 60) -> None:
        """Wait until the look-up is due, or for `after` seconds, and take its answer."""
        self.wait(max(self.entry.due - self.now, 0) if after is None else after)
        self.cache = name_cache.asked(self.cache, [Q], self.now)
        self.cache = name_cache.answered(self.cache, [heard], self.now, jitter, shortest)

    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.cache = name_cache.expire(self.cache, self.now)

    @property
    def entry(self) -> Entry:
        return self.cache.entries[Q]

    @property
    def known(self) -> Known | None:
        return name_cache.known(self.cache, Q)

    @property
    def numbers(self) -> list[int] | None:
        return None if self.known is None else [int(each) & 0xFF for each in self.known.addresses]


def test_a_name_is_unknown_until_it_has_an_answer() -> None:
    steps = Steps()
    assert steps.known is None
    assert name_cache.known(steps.cache, OTHER) is None
    assert name_cache.due(steps.cache, START) == (Q,)
    steps.hear(answer(2, 1))
    assert steps.known == Known((address(1), address(2)), whole=True)


def test_a_name_without_addresses_is_known_to_have_none() -> None:
    assert Steps(NODATA).known == Known((), whole=True)


@pytest.mark.parametrize("bad", [NXDOMAIN, TIMEOUT])
def test_a_name_that_never_had_an_answer_stays_unknown(bad: Answer) -> None:
    steps = Steps(bad, bad, bad)
    assert steps.known is None
    assert steps.entry.due > steps.now


def test_what_is_in_flight_is_not_asked_twice_and_what_is_not_is_not_answered() -> None:
    steps = Steps()
    steps.cache = name_cache.answered(steps.cache, [answer(1)], steps.now, 0)
    assert steps.known is None
    steps.cache = name_cache.asked(steps.cache, [Q], steps.now)
    assert name_cache.due(steps.cache, steps.now + 10_000) == ()
    other = Answer(OTHER, name_messages.NODATA, 60)
    assert name_cache.answered(steps.cache, [other], steps.now, 0) == steps.cache


def within(steps: Steps, seconds: int) -> bool:
    """Whether it is asked again after so long, a tenth and a step of the grid more at most."""
    return seconds <= steps.entry.due - steps.now <= min(seconds * 1.1 + 5, LONG)


@pytest.mark.parametrize(
    ("ttl", "seconds"), [(0, 60), (59, 60), (60, 60), (61, 61), (300, 300), (3599, 3599), (3600, 3600), (86_400, 3600)]
)
def test_it_is_asked_again_by_the_time_to_live(ttl: int, seconds: int) -> None:
    steps = Steps(answer(1, ttl=ttl))
    assert within(steps, seconds)
    assert name_cache.due(steps.cache, steps.entry.due - 1) == ()
    assert name_cache.due(steps.cache, steps.entry.due) == (Q,)


@pytest.mark.parametrize("heard", [answer(1, ttl=10), NODATA, NXDOMAIN])
def test_the_least_time_is_settable(heard: Answer) -> None:
    steps = Steps()
    steps.hear(heard, shortest=600)
    assert within(steps, 600)


@pytest.mark.parametrize("kind", [name_messages.NODATA, name_messages.NXDOMAIN])
def test_a_name_without_addresses_is_asked_for_more_often(kind: str) -> None:
    steps = Steps(Answer(Q, kind, 86_400))
    assert within(steps, name_cache.LONGEST_NEGATIVE)


@pytest.mark.parametrize(("ttl", "longest"), [(60, 66), (1000, 1100), (3600, 3600)])
def test_jitter_adds_up_to_a_tenth(ttl: int, longest: int) -> None:
    times = set()
    for number in range(100):
        steps = Steps()
        steps.hear(answer(1, ttl=ttl), jitter=number / 100)
        times.add(steps.entry.due - steps.now)
    assert min(times) >= min(ttl, 3600)
    assert max(times) <= min(longest + 4, 3600)
    assert len(times) > 1 or ttl >= 3600


def test_each_name_has_a_jitter_of_its_own() -> None:
    questions = [Question(4, f"a{number}") for number in range(100)]
    cache = name_cache.asked(name_cache.follow(Cache(), questions, FIRST, START), questions, START)
    answers = [Answer(question, name_messages.NODATA, 200) for question in questions]
    cache = name_cache.answered(cache, answers, START, 0.5)
    assert len({entry.due for entry in cache.entries.values()}) > 3


@pytest.mark.behaviour("B74")
def test_failed_look_ups_are_repeated_with_growing_pauses() -> None:
    steps = Steps()
    for pause in (5, 10, 20, 40, 80, 160, 300, 300, 300, 300):
        steps.hear(TIMEOUT)
        assert within(steps, pause)
    for _ in range(2000):
        steps.hear(TIMEOUT)
    assert steps.entry.failures == 1000
    steps.hear(answer(1))
    assert steps.numbers == [1]
    assert (steps.entry.failures, steps.entry.reason) == (0, "")


@pytest.mark.behaviour("B76")
def test_new_servers_are_asked_at_once() -> None:
    steps = Steps(answer(1, ttl=3600))
    steps.cache = name_cache.follow(steps.cache, [Q], FIRST, steps.now)
    assert name_cache.due(steps.cache, steps.now) == ()
    steps.cache = name_cache.asked(steps.cache, [Q], steps.now)  # of the former servers
    steps.cache = name_cache.follow(steps.cache, [Q], SECOND, steps.now + 1)
    assert name_cache.due(steps.cache, steps.now + 1) == (Q,)
    assert steps.numbers == [1]
    # An answer of a former server comes too late.
    assert name_cache.answered(steps.cache, [answer(9)], steps.now + 1, 0) == steps.cache


def test_without_a_server_nothing_is_due() -> None:
    cache = name_cache.follow(Cache(), [Q], (), START)
    assert name_cache.due(cache, START) == ()
    assert name_cache.next_time(cache) == 0
    cache = name_cache.follow(cache, [Q], FIRST, START + 100)
    assert name_cache.due(cache, START + 100) == (Q,)


def test_what_no_rule_has_is_forgotten() -> None:
    steps = Steps(answer(1))
    steps.cache = name_cache.follow(steps.cache, [OTHER], FIRST, steps.now)
    assert list(steps.cache.entries) == [OTHER]
    assert steps.known is None


@pytest.mark.parametrize("name", ["localhost", "a.local", "127.1", "a..b"])
def test_what_is_no_name_to_ask_for_is_never_due(name: str) -> None:
    question = Question(4, name)
    cache = name_cache.follow(Cache(), [question], FIRST, START)
    cache = name_cache.follow(cache, [question], SECOND, START)
    assert name_cache.due(cache, START + 100_000) == ()
    assert name_cache.next_time(cache) == 0
    assert name_cache.known(cache, question) is None


def test_what_the_look_up_refuses_is_not_asked_again() -> None:
    steps = Steps(answer(1), REFUSED)
    assert steps.known is None
    assert steps.entry.due == 0


# --- what stays, what goes -------------------------------------------------------------------------------------------


def test_a_failed_look_up_keeps_what_is_known_for_a_day() -> None:
    steps = Steps(answer(1, 2))
    heard = steps.now
    while steps.now < heard + name_cache.STALE - 600:
        steps.hear(TIMEOUT)
        assert steps.numbers == [1, 2]
    steps.wait(heard + name_cache.STALE - steps.now)
    assert steps.numbers == [1, 2]
    assert name_cache.next_time(steps.cache) <= steps.now + 1
    steps.wait(1)
    assert steps.known is None
    assert steps.entry.failures > 0
    assert steps.entry.due > 0


def test_a_name_that_is_said_not_to_exist_twice_is_forgotten() -> None:
    steps = Steps(answer(1), NXDOMAIN)
    assert steps.numbers == [1]
    steps.hear(NXDOMAIN, after=59)  # as after a change of servers
    assert steps.numbers == [1]
    steps.hear(NXDOMAIN, after=1)
    assert steps.known is None
    steps.hear(answer(2))
    assert steps.numbers == [2]
    assert steps.entry.missing == 0


def test_an_answer_between_the_two_makes_it_count_anew() -> None:
    steps = Steps(answer(1), NXDOMAIN, answer(1), NXDOMAIN)
    assert steps.numbers == [1]
    steps = Steps(answer(1), NXDOMAIN)
    steps.cache = name_cache.follow(steps.cache, [Q], SECOND, steps.now + 1)
    steps.hear(NXDOMAIN, after=100)
    assert steps.numbers == [1], "the first was of other servers"


def test_a_failure_between_the_two_does_not() -> None:
    steps = Steps(answer(1), NXDOMAIN, TIMEOUT)
    steps.hear(NXDOMAIN, after=60)
    assert steps.known is None


def test_an_address_that_left_stays_for_its_time_to_live_and_a_minute() -> None:
    steps = Steps(answer(1, 2, ttl=100))
    heard = steps.now
    steps.hear(answer(2, 3, ttl=100), after=30)
    assert steps.numbers == [1, 2, 3]
    assert name_cache.next_time(steps.cache) == min(heard + 160, steps.entry.due)
    steps.wait(heard + 159 - steps.now)
    assert steps.numbers == [1, 2, 3]
    steps.wait(1)
    assert steps.numbers == [2, 3]


def test_an_address_that_left_goes_with_the_next_answer_too() -> None:
    steps = Steps(answer(1, ttl=0))
    steps.hear(answer(2), after=61)
    assert steps.numbers == [2]


def test_two_answers_in_one_second_are_two() -> None:
    steps = Steps(answer(1, ttl=0))
    heard = steps.now
    steps.hear(answer(2, ttl=0), after=0)
    assert steps.numbers == [1, 2]
    steps.wait(heard + 60 - steps.now)
    assert steps.numbers == [2]


def test_addresses_of_a_name_that_has_none_any_more_leave_in_time() -> None:
    steps = Steps(answer(1, ttl=60), NODATA)
    assert steps.numbers == [1]
    steps.wait(60)
    assert steps.numbers == []


def test_an_address_that_comes_again_has_not_left() -> None:
    steps = Steps(answer(1, 2, ttl=60), answer(2, ttl=60), answer(1, 2, ttl=60))
    steps.wait(1000)
    assert steps.numbers == [1, 2]


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_a_name_has_at_most_64_addresses_first_those_of_the_answer() -> None:
    steps = Steps(answer(*range(60), ttl=600), answer(*range(100, 110), ttl=600))
    assert steps.numbers == [*range(54), *range(100, 110)]
    assert steps.known is not None
    assert steps.known.whole, "those of the answer are all there"


def test_a_name_of_which_there_are_more_is_not_whole() -> None:
    steps = Steps(answer(*range(64), part=True))
    assert steps.known is not None
    assert not steps.known.whole
    steps.hear(answer(1))
    assert steps.known.whole


def test_many_names_have_fewer_addresses_each() -> None:
    steps = Steps(answer(*range(64)))
    many = [Question(4, f"a{number}") for number in range(1023)]
    steps.cache = name_cache.follow(steps.cache, [Q, *many], FIRST, steps.now)
    assert steps.numbers == list(range(16))
    assert steps.known is not None
    assert not steps.known.whole
    steps.hear(answer(*range(64)))
    assert steps.numbers == list(range(16))


def test_a_qube_has_at_most_256_names() -> None:
    names = [Question(4, f"a{number:03}") for number in range(300)]
    found = name_cache.share({"10.137.0.5": reversed(names), "10.137.0.6": [Q, Q]})
    assert found.questions == {Q, *names[:256]}
    assert found.left_out == {"10.137.0.5": tuple(names[256:])}


def test_many_qubes_have_an_equal_share() -> None:
    lists = {f"10.137.0.{qube}": [Question(4, f"q{qube}-{number}") for number in range(256)] for qube in range(64)}
    found = name_cache.share(lists)
    assert len(found.questions) == name_cache.MOST_QUESTIONS
    assert {len(names) for names in found.left_out.values()} == {256 - 64}
    assert name_cache.share({}) == name_cache.Share(frozenset(), {})


def test_one_request_has_as_many_questions_as_fit_those_that_failed_last() -> None:
    names = [Question(4, f"a{number:03}") for number in range(200)]
    cache = name_cache.follow(Cache(), names, FIRST, START)
    failed = names[:50]
    cache = name_cache.lost(name_cache.asked(cache, failed, START), failed, name_messages.TIMEOUT, START, 0)
    assert {entry.reason for entry in cache.entries.values()} == {"", name_messages.TIMEOUT}
    batch = name_cache.due(cache, START + 300)
    assert list(batch) == names[50 : 50 + name_messages.MOST_QUESTIONS]
    rest = name_cache.due(name_cache.asked(cache, batch, START + 300), START + 300)
    assert list(rest) == names[50 + name_messages.MOST_QUESTIONS :] + failed


@pytest.mark.behaviour("B76")
def test_the_same_servers_in_another_network_are_asked_at_once() -> None:
    steps = Steps(answer(1))
    assert name_cache.follow(steps.cache, [Q], steps.cache.servers, steps.now).entries[Q].due > steps.now
    moved = name_cache.follow(steps.cache, [Q], steps.cache.servers, steps.now, anew=True)
    assert name_cache.due(moved, steps.now) == (Q,)
    assert name_cache.known(moved, Q) == name_cache.known(steps.cache, Q)


def test_of_what_is_in_flight_only_what_was_lost_failed() -> None:
    names = [Question(4, f"a{number}") for number in range(3)]
    cache = name_cache.asked(name_cache.follow(Cache(), names, FIRST, START), names, START)
    cache = name_cache.lost(cache, names[:1], name_messages.PROGRAM, START, 0)
    assert [cache.entries[name].asked for name in names] == [0, START, START]
    assert cache.entries[names[0]].reason == name_messages.PROGRAM


def test_the_next_time_is_that_of_the_first_look_up() -> None:
    steps = Steps()
    assert name_cache.next_time(steps.cache) == START
    assert name_cache.next_time(Cache()) == 0
    steps.cache = name_cache.asked(steps.cache, [Q], START)
    assert name_cache.next_time(steps.cache) == 0, "the look-up itself is waited for"
    steps = Steps(answer(1, ttl=100))
    assert name_cache.next_time(steps.cache) == steps.entry.due


def test_nothing_to_expire_changes_nothing() -> None:
    steps = Steps(answer(1))
    assert name_cache.expire(steps.cache, steps.now) is steps.cache
