# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of the names in firewall rules, and when to ask again (F-20 to F-25).

The cache is a value: each function takes one and returns the next. Times are whole seconds, from 1 on, of a clock that
only goes forward as long as /run lasts and that counts suspended time too (CLOCK_BOOTTIME).
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Mapping

from ..endpoint import Endpoint
from ..namedtuple import NamedTuple
from ..values import IPAddress
from . import name_messages
from .name_messages import ADDRESSES, FAILED, NODATA, NXDOMAIN, PART, REFUSED, Answer, Question

SHORTEST = 60  # between two look-ups of one name, where its time to live is shorter
LONGEST = 3600
LONGEST_NEGATIVE = 300  # of a name without addresses: a new one is found after so long at the latest
FIRST_RETRY, LONGEST_RETRY = 5, 300
LINGER = 60  # an address that left the answer, after its time to live (F-24)
STALE = 86_400  # a name that cannot be looked up any more (F-23)
APART = 60  # between two answers that say that a name does not exist
MOST_NAMES = 256  # of one qube
MOST_QUESTIONS = 4096  # of all qubes
MOST_ADDRESSES = 16_384  # of all names
# Look-ups are due on a grid, so that one request carries many, and the look-up service can end in between.
_GRID = 5
_MOST_FAILURES = 1000


class Held(NamedTuple):
    """An address of a name.

    Args:
        address: of the question's family.
        heard: when the last answer that had it came.
        ttl: of that answer, in seconds.
    """

    address: IPAddress
    heard: int
    ttl: int


class Entry(NamedTuple):
    """What is known of one question.

    Args:
        held: sorted by address: those of the last answer, and those that left it not long ago.
        answered: when the last answer with addresses, or of a name without any, came; 0 for never: the name is unknown.
        whole: all addresses of that answer are held.
        failures: look-ups in a row without an answer.
        reason: why the last look-up has not given an answer: one of `name_messages.REASONS`, NXDOMAIN or REFUSED; "".
        missing: when the name was first said not to exist, without an answer since; 0 for not.
        due: when to ask; 0 for never.
        asked: since when a look-up is in flight; 0 for none.
    """

    held: tuple[Held, ...] = ()
    answered: int = 0
    whole: bool = True
    failures: int = 0
    reason: str = ""
    missing: int = 0
    due: int = 0
    asked: int = 0


class Cache(NamedTuple):
    """All of it.

    Args:
        servers: that are asked; none: nothing can be.
        entries: for exactly the questions that rules have. It is never changed.
    """

    servers: tuple[Endpoint, ...] = ()
    entries: Mapping[Question, Entry] = {}


class Known(NamedTuple):
    """What rules go by.

    Args:
        addresses: sorted; none, if the name has none of this family.
        whole: these are all. If not, what is not listed may be the name's too, so an entry that drops has to widen.
    """

    addresses: tuple[IPAddress, ...]
    whole: bool


class Share(NamedTuple):
    """The questions of all qubes, within the bounds.

    Args:
        questions: that are asked.
        left_out: those that are not, and so stay unknown, by qube; empty where there are none.
    """

    questions: frozenset[Question]
    left_out: Mapping[str, tuple[Question, ...]]


def share(lists: Mapping[str, Iterable[Question]]) -> Share:
    """Bound what is asked for: 256 names of a qube, and an equal share of 4096 where there are many qubes (F-25).

    Args:
        lists: the questions of each qube's rules.
    """
    most = min(MOST_NAMES, MOST_QUESTIONS // max(1, len(lists)))
    questions: set[Question] = set()
    left_out = {}
    for qube, wanted in lists.items():
        ordered = sorted(set(wanted))
        questions.update(ordered[:most])
        if ordered[most:]:
            left_out[qube] = tuple(ordered[most:])
    return Share(frozenset(questions), left_out)


def follow(
    cache: Cache, questions: Iterable[Question], servers: tuple[Endpoint, ...], now: int, *, anew: bool = False
) -> Cache:
    """Return the cache for what rules and the redirection say now.

    New servers are asked for everything at once (F-20, F-43); what is in flight to the former ones does not count.

    Args:
        cache: before.
        questions: of all rules.
        servers: that are asked from now on.
        now: the time.
        anew: ask for everything at once also where the servers are the same: they are in another network.
    """
    changed = anew or servers != cache.servers
    entries = {}
    for question in questions:
        entry = cache.entries.get(question) or _new(question, now)
        if changed and entry.due:
            entry = entry._replace(due=now, asked=0, failures=0, missing=0)
        entries[question] = entry
    most = _most_of_one(len(entries))
    trimmed = {question: _trim(entry, most) for question, entry in entries.items()}
    return Cache(servers, trimmed)


def due(cache: Cache, now: int) -> tuple[Question, ...]:
    """Return what to ask in one request; first what is most likely to have an answer."""
    if not cache.servers:
        return ()
    found = [
        (entry.failures, entry.due, question)
        for question, entry in cache.entries.items()
        if not entry.asked and 0 < entry.due <= now
    ]
    return tuple(question for _, _, question in sorted(found)[: name_messages.MOST_QUESTIONS])


def next_time(cache: Cache) -> int:
    """Return when there is next something to do by `due` or `expire`; 0 for never."""
    times = [entry.due for entry in cache.entries.values() if entry.due and not entry.asked and cache.servers]
    for entry in cache.entries.values():
        times += [_end(held) for held in entry.held if held.heard != entry.answered]
        times += [entry.answered + STALE + 1] if entry.answered else []
    return min(times, default=0)


def asked(cache: Cache, questions: Iterable[Question], now: int) -> Cache:
    """Return the cache with these questions in flight."""
    return _with(cache, {question: cache.entries[question]._replace(asked=now) for question in questions})


def answered(cache: Cache, answers: Iterable[Answer], now: int, jitter: float, shortest: int = SHORTEST) -> Cache:
    """Return the cache with these answers; those to what is not in flight are left out.

    Args:
        cache: before.
        answers: each to another question.
        now: the time.
        jitter: from 0 to below 1, another one each time: a tenth of the time to live is added by it.
        shortest: the least time between two look-ups of a name, 30 to 1800 s.
    """
    most = _most_of_one(len(cache.entries))
    changed = {}
    for answer in answers:
        entry = cache.entries.get(answer.question)
        if entry is not None and entry.asked:
            spread = (jitter + binascii.crc32(answer.question.name.encode()) / 2**32) % 1
            changed[answer.question] = _trim(_next(entry, answer, now, spread, shortest), most)
    return _with(cache, changed)


def lost(cache: Cache, questions: Iterable[Question], reason: str, now: int, jitter: float) -> Cache:
    """Return the cache when no more answers come to some of what is in flight.

    Args:
        cache: before.
        questions: without an answer.
        reason: one of `name_messages.REASONS`.
        now: the time.
        jitter: as of `answered`.
    """
    return answered(cache, [Answer(question, FAILED, reason=reason) for question in questions], now, jitter)


def expire(cache: Cache, now: int) -> Cache:
    """Return the cache without addresses that left an answer long enough ago, and without names of more than a day."""
    changed = {}
    for question, entry in cache.entries.items():
        if entry.answered and now - entry.answered > STALE:
            changed[question] = _unknown(entry)
        elif any(held.heard != entry.answered and _end(held) <= now for held in entry.held):
            changed[question] = entry._replace(held=_lasting(entry, now))
    return _with(cache, changed)


def known(cache: Cache, question: Question) -> Known | None:
    """Return what a rule goes by; None: the name is unknown, an accept matches nothing and a drop everything (F-22)."""
    entry = cache.entries.get(question)
    if entry is None or not entry.answered:
        return None
    return Known(tuple(held.address for held in entry.held), entry.whole)


def _new(question: Question, now: int) -> Entry:
    return Entry(reason=REFUSED) if name_messages.problem_of(question.name) else Entry(due=now)


def _next(entry: Entry, answer: Answer, now: int, spread: float, shortest: int) -> Entry:
    """Return an entry after its answer."""
    entry = entry._replace(asked=0)
    if answer.kind in (ADDRESSES, PART, NODATA):
        fresh = [Held(address, now, answer.ttl) for address in answer.addresses]
        # What left the answer is known by its time, also where two answers came within one second.
        gone = [held for held in entry.held if held.address not in answer.addresses and _end(held) > now]
        left = [held._replace(heard=min(held.heard, now - 1)) for held in gone]
        longest = max(LONGEST_NEGATIVE, shortest) if answer.kind == NODATA else LONGEST
        at = _grid(now, min(max(answer.ttl, shortest), longest), spread)
        return Entry(_sorted(fresh + left), now, answer.kind != PART, due=at)
    if answer.kind == NXDOMAIN:
        return _missing(entry, answer.ttl, now, spread, shortest)
    if answer.kind == REFUSED:
        return Entry(reason=REFUSED)
    retry = min(FIRST_RETRY << min(entry.failures, 10), LONGEST_RETRY)
    failures = min(entry.failures + 1, _MOST_FAILURES)
    return entry._replace(failures=failures, reason=answer.reason, due=_grid(now, retry, spread))


def _missing(entry: Entry, ttl: int, now: int, spread: float, shortest: int) -> Entry:
    """Return an entry after an answer that its name does not exist: a known one is forgotten at the second such."""
    first = entry.missing or now
    entry = entry._replace(failures=0, reason=NXDOMAIN, missing=first)
    if entry.answered and now - first < APART:
        return entry._replace(due=_grid(now, max(APART, shortest), spread))
    wait = min(max(ttl, shortest), max(LONGEST_NEGATIVE, shortest))
    return _unknown(entry)._replace(due=_grid(now, wait, spread))


def _unknown(entry: Entry) -> Entry:
    return entry._replace(held=(), answered=0, whole=True)


def _grid(now: int, seconds: int, spread: float) -> int:
    """Return when so many seconds are over, a tenth at most later, but not later than the longest time."""
    at = -(-(now + seconds + int(seconds * spread / 10)) // _GRID) * _GRID
    return at if at <= now + LONGEST else (now + LONGEST) // _GRID * _GRID


def _end(held: Held) -> int:
    """Return when an address goes that has left the answer."""
    return held.heard + held.ttl + LINGER


def _lasting(entry: Entry, now: int) -> tuple[Held, ...]:
    return tuple(held for held in entry.held if held.heard == entry.answered or _end(held) > now)


def _sorted(held: Iterable[Held]) -> tuple[Held, ...]:
    return tuple(sorted(held, key=lambda each: int(each.address)))


def _most_of_one(questions: int) -> int:
    """Return how many addresses a name may have, so that those of all names stay within their bound."""
    return min(name_messages.MOST_ADDRESSES, MOST_ADDRESSES // max(1, questions))


def _trim(entry: Entry, most: int) -> Entry:
    """Return an entry with so many addresses: the first of the answer, then those that left it last."""
    if len(entry.held) <= most:
        return entry
    current = [held for held in entry.held if held.heard == entry.answered]
    left = sorted((held for held in entry.held if held.heard != entry.answered), key=lambda held: -held.heard)
    whole = entry.whole and len(current) <= most
    return entry._replace(held=_sorted((current + left)[:most]), whole=whole)


def _with(cache: Cache, changed: Mapping[Question, Entry]) -> Cache:
    return cache._replace(entries={**cache.entries, **changed}) if changed else cache
