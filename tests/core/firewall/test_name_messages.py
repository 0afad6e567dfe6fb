# SPDX-License-Identifier: GPL-2.0-or-later
"""The messages of the name look-up: one form each, both ways; anything else is refused, by one kind of error."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_guestnet.core.endpoint import Endpoint
from qubes_guestnet.core.firewall import name_messages as messages
from qubes_guestnet.core.firewall.name_messages import Answer, Question, Request

SERVERS = (Endpoint(ipaddress.ip_address("10.139.1.1")), Endpoint(ipaddress.ip_address("2001:db8::53"), 5353))
REQUEST = Request(SERVERS, (Question(4, "example.org"), Question(6, "example.org"), Question(4, "-_.a")))
TEXT = b"names 1\nserver 10.139.1.1 53\nserver 2001:db8::53 5353\nask 4 example.org\nask 6 example.org\nask 4 -_.a\n"
A1, A2 = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2")
B1 = ipaddress.ip_address("2001:db8::1")
Q4, Q6 = Question(4, "example.org"), Question(6, "example.org")

ANSWERS = [
    (Answer(Q4, messages.ADDRESSES, 300, (A1, A2)), b"answer 4 example.org addresses 300 192.0.2.1 192.0.2.2"),
    (Answer(Q6, messages.ADDRESSES, 0, (B1,)), b"answer 6 example.org addresses 0 2001:db8::1"),
    (Answer(Q4, messages.PART, 86400, (A1,)), b"answer 4 example.org part 86400 192.0.2.1"),
    (Answer(Q4, messages.NODATA, 60), b"answer 4 example.org nodata 60"),
    (Answer(Q4, messages.NXDOMAIN, 60), b"answer 4 example.org nxdomain 60"),
    (Answer(Q4, messages.FAILED, reason=messages.TIMEOUT), b"answer 4 example.org failed timeout"),
    (Answer(Q4, messages.REFUSED), b"answer 4 example.org refused"),
]


def test_a_request_has_one_form() -> None:
    assert messages.render_request(REQUEST) == TEXT
    assert messages.parse_request(TEXT) == REQUEST


@pytest.mark.parametrize(("answer", "text"), ANSWERS)
def test_an_answer_has_one_form(answer: Answer, text: bytes) -> None:
    assert messages.render_answer(answer) == text
    assert messages.parse_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"names 1\n",
        b"names 2\nserver 10.139.1.1 53\nask 4 a\n",
        TEXT.removesuffix(b"\n"),
        TEXT + b"\n",
        TEXT + b"ask 4 example.org\n",  # twice
        TEXT + b"server 10.139.1.2 53\n",  # out of order
        TEXT.replace(b"ask 4 -_.a", b"ask 4  -_.a"),
        TEXT.replace(b"ask 4 -_.a", b"ask 5 -_.a"),
        TEXT.replace(b"ask 4 -_.a", b"ask 04 -_.a"),
        TEXT.replace(b"ask 4 -_.a", b"ask 4 A"),
        TEXT.replace(b"ask 4 -_.a", b"ask 4 "),
        TEXT.replace(b"ask 4 -_.a", b"ask 4 a/b"),
        TEXT.replace(b"ask 4 -_.a", b"ask 4 " + b"a" * 254),
        TEXT.replace(b"ask 4 -_.a", b"ask 4"),
        TEXT.replace(b"ask 4 -_.a", b"tell 4 a"),
        TEXT.replace(b"ask 4 -_.a", b"ask 4 \xc3\xa4"),
        TEXT.replace(b" 53\n", b" 0\n"),
        TEXT.replace(b" 53\n", b" 65536\n"),
        TEXT.replace(b" 53\n", b" 053\n"),
        TEXT.replace(b"10.139.1.1", b"10.139.1"),
        TEXT.replace(b"10.139.1.1", b"10.139.1.256"),
        TEXT.replace(b"2001:db8::53", b"2001:DB8::53"),
        TEXT.replace(b"2001:db8::53", b"fe80::1%eth0"),
        TEXT.replace(b"2001:db8::53", b"2001:db8:0::53"),
        b"names 1\n" + b"".join(b"server 10.139.1.%d 53\n" % number for number in range(5)) + b"ask 4 a\n",
        b"names 1\nserver 10.139.1.1 53\n" + b"".join(b"ask 4 a%d\n" % number for number in range(129)),
        b"names 1\n" + b"x y z\n" * 133,
        b"x" * 50_000,
    ],
)
def test_what_is_no_request_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        messages.parse_request(text)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"answer 4 example.org",
        b"answer 4 example.org known 300",
        b"answer 4 example.org addresses 300",
        b"answer 4 example.org addresses",
        b"answer 4 example.org addresses x 192.0.2.1",
        b"answer 4 example.org addresses 86401 192.0.2.1",
        b"answer 4 example.org addresses 0300 192.0.2.1",
        b"answer 4 example.org addresses 1234567 192.0.2.1",
        b"answer 4 example.org addresses 300 192.0.2.2 192.0.2.1",
        b"answer 4 example.org addresses 300 192.0.2.1 192.0.2.1",
        b"answer 4 example.org addresses 300 192.0.2.1/32",
        b"answer 4 example.org addresses 300 2001:db8::1",
        b"answer 6 example.org addresses 300 192.0.2.1",
        b"answer 6 example.org addresses 300 " + b"0" * 46,
        b"answer 4 example.org addresses 300 192.0.2.1 }; add rule",
        b"answer 4 example.org nodata",
        b"answer 4 example.org nodata 60 192.0.2.1",
        b"answer 4 example.org failed",
        b"answer 4 example.org failed because",
        b"answer 4 example.org failed 60",
        b"answer 4 example.org refused timeout",
        b"answer 4 example.org refused\n",
        b"Answer 4 example.org refused",
        b"answer 4 Example.org refused",
        b"answer 4 example.org addresses 300 " + b" ".join(b"192.0.2.%d" % number for number in range(65)),
        b"answer 4 example.org addresses 300 " + b" ".join(b"192.0.2.%d" % number for number in range(99)),
        b"answer 4 example.org refused".ljust(5000),
        b"answer 4 example.org \xff",
    ],
)
def test_what_is_no_answer_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        messages.parse_answer(text)


@given(st.binary(max_size=200) | st.text(alphabet="aks 146server\n.:namnswdo", max_size=200).map(str.encode))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for parse, render in (
        (messages.parse_request, messages.render_request),
        (messages.parse_answer, messages.render_answer),
    ):
        try:
            parsed = parse(data)
        except ValueError:
            continue
        assert render(parsed) == data  # type: ignore[arg-type]


NAMES = st.text(alphabet="abz019-_.", min_size=1, max_size=253)
QUESTIONS = st.builds(Question, st.sampled_from([4, 6]), NAMES)
ADDRESSES4 = st.lists(st.ip_addresses(v=4), min_size=1, max_size=64, unique=True).map(lambda found: sorted(found))
ADDRESSES6 = st.lists(st.ip_addresses(v=6), min_size=1, max_size=64, unique=True).map(lambda found: sorted(found))


@given(
    st.lists(st.builds(Endpoint, st.ip_addresses(), st.integers(1, 65535)), min_size=1, max_size=4, unique=True),
    st.lists(QUESTIONS, min_size=1, max_size=128, unique=True),
)
def test_each_request_comes_back_as_it_was(servers: list[Endpoint], questions: list[Question]) -> None:
    request = Request(tuple(servers), tuple(questions))
    data = messages.render_request(request)
    assert len(data) <= messages.LONGEST_REQUEST
    assert messages.parse_request(data) == request


@given(NAMES, st.integers(0, 86400), ADDRESSES4, ADDRESSES6, st.sampled_from([messages.ADDRESSES, messages.PART]))
def test_each_answer_comes_back_as_it_was(name: str, ttl: int, four: list, six: list, kind: str) -> None:
    for answer in (Answer(Question(4, name), kind, ttl, four), Answer(Question(6, name), kind, ttl, six)):
        data = messages.render_answer(answer)
        assert len(data) <= messages.LONGEST_ANSWER
        assert messages.parse_answer(data) == answer


def test_the_longest_messages_are_within_their_limits() -> None:
    questions = tuple(Question(4, f"{number:a>253}") for number in range(messages.MOST_QUESTIONS))
    last = ipaddress.IPv6Address("2fff:ffff:ffff:ffff:ffff:ffff:ffff:ff00")
    servers = tuple(Endpoint(last + number, 65535) for number in range(messages.MOST_SERVERS))
    assert len(messages.render_request(Request(servers, questions))) < messages.LONGEST_REQUEST
    addresses = tuple(last + number for number in range(messages.MOST_ADDRESSES))
    answer = Answer(Question(6, "a" * 253), messages.ADDRESSES, messages.LONGEST_TTL, addresses)
    assert len(messages.render_answer(answer)) < messages.LONGEST_ANSWER


@pytest.mark.parametrize(
    "request_",
    [
        Request((), REQUEST.questions),
        Request(SERVERS, ()),
        Request(SERVERS + SERVERS, REQUEST.questions),
        Request(SERVERS, REQUEST.questions * 2),
        Request(tuple(Endpoint(A1 + number) for number in range(5)), REQUEST.questions),
        Request(SERVERS, tuple(Question(4, f"a{number}") for number in range(129))),
    ],
)
def test_a_request_beyond_its_bounds_is_not_made(request_: Request) -> None:
    with pytest.raises(ValueError, match="a request has"):
        messages.render_request(request_)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("example.org", ""),
        ("_sip.a-b.example.org", ""),
        ("-", ""),
        ("printer", ""),
        ("localhost.example.org", ""),
        ("x" * 63, ""),
        (".".join(["x" * 63] * 3 + ["x" * 61]), ""),
        (".".join(["x" * 63] * 4), "1 to 253"),
        ("", "1 to 253"),
        ("x" * 64, "each part"),
        (".", "each part"),
        ("a..b", "each part"),
        ("a.", "each part"),
        (".a", "each part"),
        ("a b", "letters"),
        ("Example.org", "letters"),
        ("ä.de", "letters"),
        ("10", "a number"),
        ("127.1", "a number"),
        ("192.0.2.1", "a number"),
        ("0x7f000001", ""),
        ("localhost", "localhost"),
        ("a.localhost", "localhost"),
        ("local", "local"),
        ("printer.local", "local"),
    ],
)
def test_which_names_are_asked(name: str, problem: str) -> None:
    found = messages.problem_of(name)
    assert bool(found) == bool(problem)
    assert problem in found


def test_a_name_is_asked_in_one_form() -> None:
    assert messages.canonical("Example.ORG.") == "example.org"
    assert messages.canonical("a..") == "a."
