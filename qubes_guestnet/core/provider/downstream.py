# SPDX-License-Identifier: GPL-2.0-or-later
"""Plan the set `downstream`: addresses of client qubes, which no outside machine may use.

An address stays while its qube may return, because a halted qube must not be impersonated either (QSB-056). While the
list of such qubes is unknown, no address is removed.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..namedtuple import NamedTuple
from ..operations import Planned
from ..owned_state import Record, checksum
from ..values import IPAddress
from .provider_operations import ChangeDownstream


class Facts(NamedTuple):
    """The facts for the plan.

    Args:
        connected: addresses in dom0's list of client qubes.
        behind: addresses of the vifs.
        there: addresses in the set.
        complete: `connected` and `behind` are complete.
    """

    connected: frozenset[IPAddress]
    behind: frozenset[IPAddress]
    there: frozenset[IPAddress]
    complete: bool = True


def plan(facts: Facts, record: Record) -> Planned:
    """Return the pending operations; when none are left, the record has the checksum of dom0's list."""
    wanted = facts.connected | facts.behind
    stale = facts.there - wanted if facts.complete else frozenset[IPAddress]()
    if wanted <= facts.there and not stale:
        return Planned((), record._replace(provided=record.provided._replace(connected=total(facts.connected))))
    return Planned((ChangeDownstream(ordered(wanted - facts.there), ordered(stale)),), record)


def follows(record: Record, connected: Iterable[IPAddress]) -> bool:
    """Return whether the set was last filled from dom0's present list: an attach does not list the whole set."""
    return record.provided.connected == total(connected)


def ordered(addresses: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
    """Sort the addresses, so that plan and log list them in the same order."""
    return tuple(sorted(addresses, key=lambda address: (address.version, int(address))))


def total(connected: Iterable[IPAddress]) -> str:
    """Return a checksum of dom0's list."""
    return checksum(" ".join(map(str, ordered(connected))).encode())
