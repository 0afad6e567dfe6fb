# SPDX-License-Identifier: GPL-2.0-or-later
"""Desktop notifications about a list that refuses everything because of an error, and their frequency (F-38).

They are a courtesy: the journal, `status` and `check` have the same information.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..values import IPAddress
from .binding import Bound

PAUSE = 60.0  # seconds between two notifications about one address
_FIRST, _REST = frozenset("abcdefghijklmnopqrstuvwxyz_"), frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")
_LONGEST_USER, _LONGEST_TEXT = 32, 300


def due(last: Mapping[IPAddress, float], handled: Iterable[Bound], now: float) -> tuple[Bound, ...]:
    """Return the lists for which a notification is due.

    Args:
        last: address → time of its last notification, in seconds of a monotonic clock.
        handled: lists that have just come into force.
        now: present time of the same clock.
    """
    bad = (bound for bound in handled if bound.refused or bound.ruleset.problems)
    return tuple(bound for bound in bad if now >= last.get(bound.ruleset.address, -PAUSE) + PAUSE)


def noticed(last: Mapping[IPAddress, float], shown: Iterable[Bound], now: float) -> Mapping[IPAddress, float]:
    """Return when notifications were shown, without those that delay no other one any more.

    Args:
        last: as for `due`.
        shown: just now.
        now: of the same clock.
    """
    recent = {address: at for address, at in last.items() if now < at + PAUSE}
    return recent | {bound.ruleset.address: now for bound in shown}


def text(bound: Bound) -> tuple[str, str]:
    """Return title and text of a notification."""
    problem = next(map(str, bound.ruleset.problems), "")
    return f"Firewall rules of {bound.ruleset.address} have an error", problem[:_LONGEST_TEXT]


def user(untrusted: bytes) -> str:
    """Return the name of the desktop's user, as dom0 writes it; "" if it is not a valid user name."""
    name = untrusted.decode("ascii", "replace")
    valid = 0 < len(name) <= _LONGEST_USER and name[0] in _FIRST and _REST.issuperset(name)
    return name if valid else ""
