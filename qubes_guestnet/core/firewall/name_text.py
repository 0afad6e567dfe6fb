# SPDX-License-Identifier: GPL-2.0-or-later
"""The name cache as text, kept in /run across restarts of the agent.

The text has a line for each server, name and address. A file that is not in exactly this form is ignored: an empty
cache costs one round of look-ups, but a wrong address would open the firewall.
"""

from __future__ import annotations

from .. import checks, endpoint
from ..endpoint import Endpoint
from . import name_cache, name_messages
from .name_cache import Cache, Entry, Held
from .name_messages import NXDOMAIN, REFUSED, Question

HEADER = "names 1"
LONGEST = 4 << 20
_NONE = "-"
_REASONS = frozenset({_NONE, NXDOMAIN, REFUSED, *name_messages.REASONS})


def render(cache: Cache) -> bytes:
    """Return the text of a cache, without look-ups in flight, which a restarted agent repeats."""
    lines = [HEADER, *(f"server {server.address} {server.port}" for server in cache.servers)]
    for question, entry in sorted(cache.entries.items()):
        numbers = (entry.answered, int(entry.whole), entry.failures, entry.missing, entry.due)
        words = ("name", question.family, question.name, *numbers, entry.reason or _NONE)
        lines.append(" ".join(map(str, words)))
        lines += [f"held {held.address} {held.heard} {held.ttl}" for held in entry.held]
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def restore(untrusted_data: bytes | None, path: str, now: int) -> tuple[Cache, str]:
    """Return the cache of a former agent.

    Args:
        untrusted_data: content of the file; None if it is missing.
        path: path of the file, for the message.
        now: the time, by the clock of the cache.

    Returns:
        The cache, and "" or, if the file is damaged and the cache thus empty, one line for the journal.
    """
    if untrusted_data is None:
        return Cache(), ""
    try:
        return _parse(untrusted_data, now), ""
    except ValueError as error:
        return Cache(), f"{path}: damaged ({error}); the names in firewall rules are looked up again"


def _parse(untrusted_data: bytes, now: int) -> Cache:
    if len(untrusted_data) > LONGEST or not untrusted_data.isascii():
        raise ValueError("not ASCII, or too long")
    header, *lines = untrusted_data.decode("ascii").split("\n")[:-1] or [""]
    if header != HEADER:
        raise ValueError("not of this version")
    servers: list[Endpoint] = []
    entries: dict[Question, Entry] = {}
    question = None
    for line in lines:
        kind, *words = line.split(" ")
        if kind == "server" and len(words) == 2:
            family = 6 if ":" in words[0] else 4
            servers.append(Endpoint(name_messages.address_of(family, words[0]), endpoint.port(words[1])))
        elif kind == "name" and len(words) == 8:
            question, entries[question] = _entry(words, now)
        elif kind == "held" and len(words) == 3 and question is not None:
            held = _held(question.family, words, entries[question].answered)
            entries[question] = entries[question]._replace(held=(*entries[question].held, held))
        else:
            raise ValueError(f"unknown line: {line[:40]!r}")
    cache = Cache(tuple(servers), entries)
    _check(cache)
    if render(cache) != untrusted_data:
        raise ValueError("not in canonical form")
    return cache


def _entry(words: list[str], now: int) -> tuple[Question, Entry]:
    family, name, *numbers, reason = words
    answered, whole, failures, missing, due = map(_number, numbers)
    entry = Entry((), answered, whole == 1, failures, "" if reason == _NONE else reason, missing, due)
    if reason not in _REASONS or max(answered, missing) > now or due > now + name_cache.LONGEST:
        raise ValueError(f"{name[:40]!r}: invalid reason or time")
    return Question(_number(family), name), entry


def _held(family: int, words: list[str], answered: int) -> Held:
    text, heard, ttl = words
    held = Held(name_messages.address_of(family, text), _number(heard), _number(ttl))
    if held.heard > answered or held.ttl > name_messages.LONGEST_TTL:
        raise ValueError(f"{text}: invalid time")
    return held


def _check(cache: Cache) -> None:
    """Raise ValueError if the cache exceeds its bounds, or if its addresses are out of order."""
    most = name_cache.MOST_ADDRESSES // max(1, len(cache.entries))
    if len(cache.entries) > name_cache.MOST_QUESTIONS or len(cache.servers) > name_messages.MOST_SERVERS:
        raise ValueError("too many names or servers")
    for question, entry in cache.entries.items():
        numbers = [int(held.address) for held in entry.held]
        if len(numbers) > min(most, name_messages.MOST_ADDRESSES) or numbers != sorted(set(numbers)):
            raise ValueError(f"{question.name}: too many addresses, or not in order")


def _number(untrusted_text: str) -> int:
    if not checks.is_decimal(untrusted_text, 12):
        raise ValueError(f"not a number: {untrusted_text[:12]!r}")
    return int(untrusted_text)
