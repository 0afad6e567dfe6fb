# SPDX-License-Identifier: GPL-2.0-or-later
"""Plan the forwarding sysctl of each family: close it, open it, or leave it if another program closed it.

The record is written before each change. So if the record says that a family is forwarded, and the sysctl is 0 although
the agent did not close it, the user or another program did, and it stays closed (behaviour B133). The agent repeats
closing if another program opens it again, but never repeats opening.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..operations import Outcome, Planned
from ..owned_state import Provided, Record
from .provider_operations import CloseForwarding, OpenForwarding


def stopped(provided: Provided, on: frozenset[int]) -> frozenset[int]:
    """Return families whose forwarding another program has switched off.

    Args:
        provided: as recorded.
        on: families that the kernel forwards.
    """
    return (provided.stopped | (provided.forwarding - provided.shut)) - on


def obeying(provided: Provided, on: frozenset[int]) -> Provided:
    """Return the record with families that another program switched off as stopped, and those switched on as ours."""
    off = stopped(provided, on)
    if off == provided.stopped:
        return provided
    ours = provided.forwarding | (provided.stopped & on)
    return provided._replace(stopped=off, forwarding=ours - off)


def plan_closing(families: Iterable[int], on: frozenset[int], record: Record) -> Planned:
    """Close these families permanently: they are no longer recorded as ours.

    Args:
        families: not to be forwarded any more.
        on: families that the kernel forwards.
        record: the owned record.
    """
    families = frozenset(families)
    provided, gone = record.provided, families - on
    provided = provided._replace(forwarding=provided.forwarding - gone, shut=provided.shut - gone)
    return _switch(families & on, record._replace(provided=provided), on=False)


def plan_shutting(families: Iterable[int], on: frozenset[int], record: Record) -> Planned:
    """Close these families until the rules are restored; they stay recorded as ours."""
    return _switch(frozenset(families) & on, record, on=False)


def plan_opening(families: Iterable[int], on: frozenset[int], record: Record, so_far: Outcome) -> Planned:
    """Open these families.

    Args:
        families: to be forwarded.
        on: families that the kernel forwards.
        record: the owned record.
        so_far: what came of the operations of this pass: one that was opened and is closed is another's doing.
    """
    families = frozenset(families)
    opened = frozenset(family for family in families if OpenForwarding(family) in so_far.done)
    provided = record.provided._replace(shut=record.provided.shut - (families & (on | opened)))
    return _switch(families - on - opened, record._replace(provided=provided), on=True)


def _switch(families: frozenset[int], record: Record, *, on: bool) -> Planned:
    provided = record.provided
    provided = provided._replace(forwarding=provided.forwarding | families, shut=provided.shut | families)
    kind = OpenForwarding if on else CloseForwarding
    ops = tuple(kind(family) for family in sorted(families))
    return Planned(ops, record._replace(provided=provided))
