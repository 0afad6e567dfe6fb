# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets and bytes of each interface, from /proc/net/dev (proc(5))."""

from __future__ import annotations

from ..namedtuple import NamedTuple

_COLUMNS = 16  # eight of what was received, eight of what was sent


class Counter(NamedTuple):
    """One direction.

    Args:
        packets: how many.
        bytes: in all.
        errors: packets that were lost to an error.
        dropped: packets that were dropped for lack of room, or before a rule saw them.
    """

    packets: int
    bytes: int
    errors: int
    dropped: int


class Traffic(NamedTuple):
    """Both directions, as this qube sees them: the packets that a client qube sends are received here."""

    received: Counter
    sent: Counter


def parse(table: str) -> dict[str, Traffic]:
    """Return the traffic of each interface by its name.

    Args:
        table: /proc/net/dev; malformed lines are ignored.
    """
    found = {}
    for line in table.splitlines():
        name, colon, numbers = line.rpartition(":")  # an alias has a colon in its name
        words = numbers.split()
        if colon and len(words) == _COLUMNS and all(word.isdecimal() for word in words):
            counts = list(map(int, words))
            found[name.strip()] = Traffic(_counter(counts[:8]), _counter(counts[8:]))
    return found


def _counter(counts: list[int]) -> Counter:
    octets, packets, errors, dropped = counts[:4]
    return Counter(packets, octets, errors, dropped)
