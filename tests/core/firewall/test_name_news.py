# SPDX-License-Identifier: GPL-2.0-or-later
"""What the journal says of names: each trouble once, every name in it, and that it ended."""

from __future__ import annotations

import ipaddress

import pytest

from qubes_guestnet.core import endpoint
from qubes_guestnet.core.firewall import name_cache, name_messages, name_news
from qubes_guestnet.core.firewall.name_cache import Cache, Entry, Held
from qubes_guestnet.core.firewall.name_messages import Question

Q = Question(4, "example.org")
SERVERS = endpoint.of((ipaddress.ip_address("10.139.1.1"),))
HELD = (Held(ipaddress.ip_address("192.0.2.1"), 900, 300),)
FINE = Entry(HELD, 900, due=1200)


@pytest.mark.parametrize(
    ("entry", "code", "words"),
    [
        (Entry(due=900), "", ""),
        (FINE, "", ""),
        (Entry(due=900, failures=1, reason="timeout"), "unknown", "(the name servers do not answer): an accept entry"),
        (Entry(due=900, reason="nxdomain", missing=800), "unknown", "(it does not exist): an accept entry"),
        (FINE._replace(failures=1, reason="server"), "stale", "(the name servers refuse or fail): the last addresses"),
        (
            FINE._replace(reason="nxdomain", missing=950),
            "missing",
            "are removed if the next answer, in a minute, confirms that",
        ),
        (FINE._replace(whole=False), "part", "matches the first of them"),
        (Entry(reason="refused"), "invalid", "(the look-up refuses it)"),
    ],
)
def test_what_is_wrong_with_a_name(entry: Entry, code: str, words: str) -> None:
    found = name_news.trouble(Q, entry)
    assert found[0] == code
    assert words in found[1]
    assert bool(found[1]) == bool(words)


def test_a_name_that_is_none_has_the_reason() -> None:
    entry = name_cache.follow(Cache(), [Question(4, "127.1")], SERVERS, 900).entries[Question(4, "127.1")]
    assert "write an address or network instead" in name_news.trouble(Question(4, "127.1"), entry)[1]


@pytest.mark.behaviour("B75")
def test_each_failing_name_is_told_once() -> None:
    questions = [Question(family, name) for family in (4, 6) for name in ("a.org", "b.org", "c.org")]
    new = name_cache.follow(Cache(), questions, SERVERS, 900)
    assert name_news.news(Cache(), new) == ()
    failed = name_cache.lost(name_cache.asked(new, questions, 900), questions, "timeout", 900, 0)
    (line,) = name_news.news(new, failed)
    assert line.startswith(
        "firewall: a.org (IPv4), b.org (IPv4), c.org (IPv4), a.org (IPv6), b.org (IPv6) and 1 more: not known yet"
    )
    again = name_cache.lost(name_cache.asked(failed, questions, 905), questions, "server", 905, 0)
    assert name_news.news(failed, again) == ()


def test_the_end_of_a_trouble_is_told() -> None:
    before = Cache(SERVERS, {Q: FINE._replace(failures=3, reason="timeout")})
    assert name_news.news(before, Cache(SERVERS, {Q: FINE})) == (
        "firewall: example.org (IPv4): answered again without a problem",
    )
    assert name_news.news(before, Cache(SERVERS, {})) == ()


def test_names_beyond_the_bound_are_told() -> None:
    many = [Question(4, f"a{number:03}.org") for number in range(name_cache.MOST_NAMES + 7)]
    (line,) = name_news.left_out(name_cache.share({"10.137.0.5": many, "10.137.0.6": [Q]}))
    assert line.startswith("firewall of 10.137.0.5: 7 names over the limit are not looked up (a256.org (IPv4), ")
    assert "and 2 more)" in line


def test_every_reason_has_its_words() -> None:
    for reason in name_messages.REASONS:
        code, words = name_news.trouble(Q, Entry(reason=reason, failures=1, due=1))
        assert code == name_news.UNKNOWN
        assert name_messages.REASONS[reason] in words
