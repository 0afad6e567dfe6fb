# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache of names in firewall rules, and the times of their next look-ups (F-20 to F-25).

The cache is a value: each function takes one and returns the next. Times are whole seconds, from 1 on, of a clock that
never goes back while /run exists and that includes suspended time (CLOCK_BOOTTIME).
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Mapping

from ..endpoint import Endpoint
from ..namedtuple import NamedTuple
from ..values import IPAddress
from . import name_messages
from .name_messages import ADDRESSES, FAILED, NODATA, NXDOMAIN, PART, REFUSED, Answer, Question

SHORTEST = 60  # between two look-ups of one name, if its time to live is shorter
LONGEST = 3600
LONGEST_NEGATIVE = 300  # between two look-ups of a name without addresses
FIRST_RETRY, LONGEST_RETRY = 5, 300
LINGER = 60  # an address that a name no longer has stays so long after its time to live (F-24)
STALE = 86_400  # the addresses of a name stay so long after its look-ups fail (F-23)
APART = 60  # between two answers that say that a name does not exist
MOST_NAMES = 256  # per qube
MOST_QUESTIONS = 4096  # for all qubes
MOST_ADDRESSES = 16_384  # for all names
# Look-ups are due on a time grid, so that one request contains many, and the look-up service can end in between.
_GRID = 5
_MOST_FAILURES = 1000


class Held(NamedTuple):
    """An address of a name.

    Args:
        address: an address of the question's family.
        heard: time of the last answer that contained it.
        ttl: time to live in that answer, in seconds.
    """

    address: IPAddress
    heard: int
    ttl: int


class Entry(NamedTuple):
    """The state of one question.

    Args:
        held: sorted by address: those of the last answer, and those that the name had until recently.
        answered: time of the last answer, with or without addresses; 0 for never, so the name is unknown.
        whole: `held` has all addresses of that answer.
        failures: consecutive look-ups without an answer.
        reason: why the last look-up failed: one of `name_messages.REASONS`, NXDOMAIN or REFUSED; "" if it succeeded.
        missing: time of the first answer that the name does not exist, if no other came since; 0 for none.
        due: time of the next look-up; 0 for never.
        asked: start of the look-up in flight; 0 for none.
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
    """The cache of all questions.

    Args:
        servers: the queried servers; without any no look-up is possible.
        entries: one per question in the rules; the mapping is never modified.
    """

    servers: tuple[Endpoint, ...] = ()
    entries: Mapping[Question, Entry] = {}


class Known(NamedTuple):
    """The known addresses of a name, for rules.

    Args:
        addresses: sorted; empty if the name has none of this family.
        whole: these are all. If not, any other address may belong to the name, so a `drop` must match all of them.
    """

    addresses: tuple[IPAddress, ...]
    whole: bool


class Share(NamedTuple):
    """The questions of all qubes, within the bounds.

    Args:
        questions: the questions to look up.
        left_out: questions beyond the bounds, which stay unknown, by qube; empty if there are none.
    """

    questions: frozenset[Question]
    left_out: Mapping[str, tuple[Question, ...]]


def share(lists: Mapping[str, Iterable[Question]]) -> Share:
    """Limit the questions to 256 names per qube, and to an equal share of 4096 if there are many qubes (F-25).

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
    """Return the cache for the present rules and redirection.

    New servers are queried for everything at once (F-20, F-43); answers of the former ones are then ignored.

    Args:
        cache: the former cache.
        questions: questions of all rules.
        servers: servers to query from now on.
        now: the time.
        anew: query everything at once even if the servers are the same, because they are in another network.
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
    """Return the questions for one request, those most likely to be answered first."""
    if not cache.servers:
        return ()
    found = [
        (entry.failures, entry.due, question)
        for question, entry in cache.entries.items()
        if not entry.asked and 0 < entry.due <= now
    ]
    return tuple(question for _, _, question in sorted(found)[: name_messages.MOST_QUESTIONS])


def next_time(cache: Cache) -> int:
    """Return when `due` or `expire` has something to do next; 0 for never."""
    times = [entry.due for entry in cache.entries.values() if entry.due and not entry.asked and cache.servers]
    for entry in cache.entries.values():
        times += [_end(held) for held in entry.held if held.heard != entry.answered]
        times += [entry.answered + STALE + 1] if entry.answered else []
    return min(times, default=0)


def asked(cache: Cache, questions: Iterable[Question], now: int) -> Cache:
    """Return the cache with these questions in flight."""
    return _with(cache, {question: cache.entries[question]._replace(asked=now) for question in questions})


def answered(cache: Cache, answers: Iterable[Answer], now: int, jitter: float, shortest: int = SHORTEST) -> Cache:
    """Return the cache with these answers; answers to questions that are not in flight are ignored.

    Args:
        cache: the former cache.
        answers: each to a different question.
        now: the time.
        jitter: a random number from 0 to below 1; it adds up to a tenth of the time to live.
        shortest: the shortest time between two look-ups of a name, 30 to 1800 s.
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
    """Return the cache after some questions in flight will not be answered.

    Args:
        cache: the former cache.
        questions: the unanswered questions.
        reason: one of `name_messages.REASONS`.
        now: the time.
        jitter: as for `answered`.
    """
    return answered(cache, [Answer(question, FAILED, reason=reason) for question in questions], now, jitter)


def expire(cache: Cache, now: int) -> Cache:
    """Return the cache without expired former addresses, and without addresses of names that failed for a day."""
    changed = {}
    for question, entry in cache.entries.items():
        if entry.answered and now - entry.answered > STALE:
            changed[question] = _unknown(entry)
        elif any(held.heard != entry.answered and _end(held) <= now for held in entry.held):
            changed[question] = entry._replace(held=_lasting(entry, now))
    return _with(cache, changed)


def known(cache: Cache, question: Question) -> Known | None:
    """Return the known addresses for a rule; None if unknown: an accept matches nothing, a drop everything (F-22)."""
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
        # The time identifies addresses that are not in the new answer, even if two answers arrive within one second.
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
    """Return an entry after an answer that its name does not exist; a second such answer removes its addresses."""
    first = entry.missing or now
    entry = entry._replace(failures=0, reason=NXDOMAIN, missing=first)
    if entry.answered and now - first < APART:
        return entry._replace(due=_grid(now, max(APART, shortest), spread))
    wait = min(max(ttl, shortest), max(LONGEST_NEGATIVE, shortest))
    return _unknown(entry)._replace(due=_grid(now, wait, spread))


def _unknown(entry: Entry) -> Entry:
    return entry._replace(held=(), answered=0, whole=True)


def _grid(now: int, seconds: int, spread: float) -> int:
    """Return the time after so many seconds plus at most a tenth, but not later than the longest time."""
    at = -(-(now + seconds + int(seconds * spread / 10)) // _GRID) * _GRID
    return at if at <= now + LONGEST else (now + LONGEST) // _GRID * _GRID


def _end(held: Held) -> int:
    """Return when an address that the name no longer has is removed."""
    return held.heard + held.ttl + LINGER


def _lasting(entry: Entry, now: int) -> tuple[Held, ...]:
    return tuple(held for held in entry.held if held.heard == entry.answered or _end(held) > now)


def _sorted(held: Iterable[Held]) -> tuple[Held, ...]:
    return tuple(sorted(held, key=lambda each: int(each.address)))


def _most_of_one(questions: int) -> int:
    """Return the most addresses per name that keep the total within its bound."""
    return min(name_messages.MOST_ADDRESSES, MOST_ADDRESSES // max(1, questions))


def _trim(entry: Entry, most: int) -> Entry:
    """Return an entry with at most so many addresses: those of the answer first, then the latest former ones."""
    if len(entry.held) <= most:
        return entry
    current = [held for held in entry.held if held.heard == entry.answered]
    left = sorted((held for held in entry.held if held.heard != entry.answered), key=lambda held: -held.heard)
    whole = entry.whole and len(current) <= most
    return entry._replace(held=_sorted((current + left)[:most]), whole=whole)


def _with(cache: Cache, changed: Mapping[Question, Entry]) -> Cache:
    return cache._replace(entries={**cache.entries, **changed}) if changed else cache
