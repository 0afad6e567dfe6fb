# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache in /run: what is written comes back, and a file that is anything else is an empty cache and one line."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_guestnet.core import endpoint
from qubes_guestnet.core.firewall import name_cache, name_messages, name_text
from qubes_guestnet.core.firewall.name_cache import Cache, Entry, Held
from qubes_guestnet.core.firewall.name_messages import Answer, Question

NOW, PATH = 5000, "/run/qubes-guestnet/names"
SERVERS = endpoint.of((ipaddress.ip_address("10.139.1.1"), ipaddress.ip_address("2001:db8::53")))
A1, A2, B1 = map(ipaddress.ip_address, ("192.0.2.1", "192.0.2.2", "2001:db8::1"))
CACHE = Cache(
    SERVERS,
    {
        Question(4, "example.org"): Entry((Held(A1, 4000, 300), Held(A2, 4500, 300)), 4500, due=4800),
        Question(6, "example.org"): Entry((Held(B1, 4500, 0),), 4500, False, 2, name_messages.TIMEOUT, due=5005),
        Question(4, "gone"): Entry(reason=name_messages.NXDOMAIN, missing=4990, due=5100),
        Question(4, "localhost"): Entry(reason=name_messages.REFUSED),
    },
)
TEXT = b"""\
names 1
server 10.139.1.1 53
server 2001:db8::53 53
name 4 example.org 4500 1 0 0 4800 -
held 192.0.2.1 4000 300
held 192.0.2.2 4500 300
name 4 gone 0 1 0 4990 5100 nxdomain
name 4 localhost 0 1 0 0 0 refused
name 6 example.org 4500 0 2 0 5005 timeout
held 2001:db8::1 4500 0
"""


def test_the_text_has_a_line_for_each_fact() -> None:
    assert name_text.render(CACHE) == TEXT
    assert name_text.restore(TEXT, PATH, NOW) == (CACHE, "")


def test_no_file_is_an_empty_cache() -> None:
    assert name_text.restore(None, PATH, NOW) == (Cache(), "")
    assert name_text.restore(name_text.render(Cache()), PATH, NOW) == (Cache(), "")


def test_what_is_in_flight_is_asked_again() -> None:
    question = Question(4, "example.org")
    cache = name_cache.follow(Cache(), [question], SERVERS, NOW)
    flying = name_cache.asked(cache, [question], NOW)
    assert name_text.restore(name_text.render(flying), PATH, NOW) == (cache, "")


def test_a_restart_asks_for_nothing_that_is_not_due() -> None:
    cache, _ = name_text.restore(TEXT, PATH, 4790)
    assert cache == Cache(), "the file is of the future"
    cache, _ = name_text.restore(TEXT, PATH, NOW)
    again = name_cache.follow(cache, list(cache.entries), SERVERS, NOW)
    assert name_cache.due(again, NOW) == (Question(4, "example.org"),)


REPLACED: list[tuple[Any, Any]] = [
    (b"names 1", b"names 2"),
    (b"names 1\n", b""),
    (b"server 10.139.1.1 53", b"server 10.139.1.1"),
    (b"server 10.139.1.1 53", b"server 10.139.1.1 x"),
    (b"server 10.139.1.1", b"server 10.139.1.256"),
    (b"server 2001:db8::53", b"server 2001:DB8::53"),
    (b"server 2001:db8::53 53\n", b"server 2001:db8::53 53\n" + b"server 10.0.0.1 53\n" * 3),
    (b"name 4 example.org", b"name 5 example.org"),
    (b"name 4 example.org", b"name 4 Example.org"),
    (b"name 4 example.org", b"name 4 example.org "),
    (b"name 4 example.org 4500 1", b"name 4 example.org 4500 2"),
    (b"name 4 example.org 4500 1", b"name 4 example.org 04500 1"),
    (b"name 4 example.org 4500 1", b"name 4 example.org -1 1"),
    (b"name 4 example.org 4500 1", b"name 4 example.org 5001 1"),
    (b"name 4 example.org 4500 1", b"name 4 example.org 0 1"),
    (b"4990 5100 nxdomain", b"5001 5100 nxdomain"),
    (b"4990 5100 nxdomain", b"4990 8601 nxdomain"),
    (b"4990 5100 nxdomain", b"4990 5100 because"),
    (b"4990 5100 nxdomain", b"4990 1234567890123 nxdomain"),
    (b"held 192.0.2.1 4000 300\n", b"held 192.0.2.3 4000 300\n"),  # out of order
    (b"held 192.0.2.1 4000 300\n", b"held 192.0.2.2 4000 300\n"),  # twice
    (b"held 192.0.2.1 4000 300\n", b"held 192.0.2.1 4501 300\n"),
    (b"held 192.0.2.1 4000 300\n", b"held 192.0.2.1 4000 86401\n"),
    (b"held 192.0.2.1 4000 300\n", b"held 2001:db8::1 4000 300\n"),
    (b"held 192.0.2.1 4000 300\n", b"held 192.0.2.1 4000\n"),
    (b"held 192.0.2.1 4000 300\n", b"".join(b"held 192.0.1.%d 4000 300\n" % number for number in range(64))),
    (b"server 10.139.1.1 53\n", b"held 192.0.2.1 4000 300\nserver 10.139.1.1 53\n"),
    (b"server 10.139.1.1 53\n", b"\nserver 10.139.1.1 53\n"),
    (b"name 4 gone", b"name 4 example.org"),
    (b"name 4 gone", b"name 4 g\xc3\xb6ne"),
    (b"held 2001:db8::1 4500 0\n", b"held 2001:db8::1 4500 0"),
    (b"held 2001:db8::1 4500 0\n", b"held 2001:db8::1 4500 0\n\n"),
]


@pytest.mark.parametrize(("old", "new"), REPLACED)
def test_a_damaged_file_is_an_empty_cache_and_one_line(old: bytes, new: bytes) -> None:
    assert TEXT.count(old) >= 1
    cache, line = name_text.restore(TEXT.replace(old, new, 1), PATH, NOW)
    assert cache == Cache()
    assert line.startswith(f"{PATH}: damaged (")
    assert "looked up again" in line
    assert "\n" not in line


def test_a_file_beyond_the_bounds_is_damaged() -> None:
    assert name_text.restore(b"names 1\n" + b"x" * name_text.LONGEST, PATH, NOW)[0] == Cache()
    lines = "".join(f"name 4 a{number:05} 0 1 0 0 0 -\n" for number in range(name_cache.MOST_QUESTIONS + 1))
    assert name_text.restore(f"names 1\n{lines}".encode(), PATH, NOW)[0] == Cache()
    cache, line = name_text.restore(f"names 1\n{lines[: lines.rindex('name')]}".encode(), PATH, NOW)
    assert (len(cache.entries), line) == (name_cache.MOST_QUESTIONS, "")


def test_the_largest_cache_is_within_the_length_of_the_file() -> None:
    names = [Question(6, f"{number:a>253}") for number in range(name_cache.MOST_QUESTIONS)]
    each = name_cache.MOST_ADDRESSES // name_cache.MOST_QUESTIONS
    last = ipaddress.IPv6Address("2fff:ffff:ffff:ffff:ffff:ffff:ffff:0")
    now = 10**10
    held = tuple(Held(last + number, now, 86400) for number in range(each))
    entry = Entry(held, now, False, 1000, name_messages.UNREACHABLE, now, now)
    data = name_text.render(Cache(SERVERS, dict.fromkeys(names, entry)))
    assert len(data) < name_text.LONGEST
    assert name_text.restore(data, PATH, now)[1] == ""


@given(st.binary(max_size=300) | st.text(alphabet="names 1server\nheld.0", max_size=300).map(str.encode))
def test_no_bytes_raise(data: bytes) -> None:
    for text in (data, TEXT + data, TEXT[: len(data)] + data):
        cache, line = name_text.restore(text, PATH, NOW)
        assert bool(line) == (cache == Cache()) or name_text.render(cache) == text


@given(st.integers(0, len(TEXT) - 1), st.integers(0, 255))
def test_a_changed_byte_never_opens_more_than_it_says(place: int, byte: int) -> None:
    """It is either refused, or it is the text of another cache within all bounds."""
    text = TEXT[:place] + bytes((byte,)) + TEXT[place + 1 :]
    cache, line = name_text.restore(text, PATH, NOW)
    assert line or name_text.render(cache) == text


# --- a whole life ----------------------------------------------------------------------------------------------------

NAMES = [Question(family, name) for family in (4, 6) for name in ("a.example", "b.example", "localhost")]
KINDS = [name_messages.ADDRESSES, name_messages.PART, name_messages.NODATA, name_messages.NXDOMAIN]
STEP = st.one_of(
    st.tuples(st.just("wait"), st.integers(0, 4000)),
    st.tuples(st.just("follow"), st.lists(st.sampled_from(NAMES), max_size=6), st.integers(0, 2)),
    st.tuples(st.just("ask"), st.just(0)),
    st.tuples(st.just("answer"), st.sampled_from(KINDS), st.integers(0, 86400), st.sets(st.integers(0, 80))),
    st.tuples(st.just("lost"), st.just(0)),
    st.tuples(st.just("restart"), st.just(0)),
)


class Life:
    """A cache, and beside it all addresses that an answer ever had, with the time until which they may count."""

    def __init__(self) -> None:
        self.now, self.cache = NOW, Cache()
        self.may: dict[tuple[Question, int], int] = {}

    def step(self, kind: str, *what: Any) -> None:
        if kind == "wait":
            self.now += what[0]
        elif kind == "follow":
            self.cache = name_cache.follow(self.cache, what[0], SERVERS[: what[1]], self.now)
            self.may = {key: until for key, until in self.may.items() if key[0] in what[0]}
        elif kind == "ask":
            self.cache = name_cache.asked(self.cache, name_cache.due(self.cache, self.now), self.now)
        elif kind == "lost":
            flying = [question for question, entry in self.cache.entries.items() if entry.asked]
            self.cache = name_cache.lost(self.cache, flying, name_messages.TIMEOUT, self.now, 0.3)
        elif kind == "restart":
            self.cache, line = name_text.restore(name_text.render(self.cache), PATH, self.now)
            assert line == ""
        else:
            self.hear(*what)
        self.cache = name_cache.expire(self.cache, self.now)

    def hear(self, kind: str, ttl: int, numbers: set[int]) -> None:
        flying = [question for question, entry in self.cache.entries.items() if entry.asked]
        answers = [made for question in flying if (made := one(question, kind, ttl, numbers))]
        self.cache = name_cache.answered(self.cache, answers, self.now, 0.7)
        for answer in answers:
            if answer.kind in KINDS[:3]:
                heard = {int(address) for address in answer.addresses}
                for question, number in list(self.may):
                    if question == answer.question and self.may[question, number] > 10**9:
                        self.may[question, number] -= 10**9  # not in the last answer any more
                self.may.update({(answer.question, number): 10**9 + self.now + ttl + 60 for number in heard})

    def judge(self) -> None:
        total = 0
        for question, entry in self.cache.entries.items():
            total += len(entry.held)
            assert len(entry.held) <= name_messages.MOST_ADDRESSES
            found = name_cache.known(self.cache, question)
            for address in found.addresses if found else ():
                assert self.may[question, int(address)] > self.now, "no answer has it, or it left long ago"
            assert not found or self.now - entry.answered <= name_cache.STALE
            assert entry.due <= self.now + name_cache.LONGEST
            assert entry.due or question.name == "localhost"
        assert total <= name_cache.MOST_ADDRESSES
        assert all(self.cache.entries[question].due <= self.now for question in name_cache.due(self.cache, self.now))


def one(question: Question, kind: str, ttl: int, numbers: set[int]) -> Answer | None:
    """An answer of this kind, if there can be one."""
    base = ipaddress.ip_address("192.0.2.0") if question.family == 4 else ipaddress.ip_address("2001:db8::")
    addresses = [base + number for number in sorted(numbers)[:64]] if kind in KINDS[:2] else []
    if kind in KINDS[:2] and not addresses:
        return None
    return Answer(question, kind, ttl, addresses)


@given(st.lists(STEP, max_size=40))
def test_no_life_goes_beyond_the_bounds(steps: list[Any]) -> None:
    life = Life()
    life.step("follow", NAMES, 1)
    for step in steps:
        life.step(*step)
        life.judge()
