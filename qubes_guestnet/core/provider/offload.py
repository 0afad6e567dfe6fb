# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether connections are offloaded: from what is there to operations.

What is offloaded passes by the rules and by the switch of forwarding. So the record says that there may be a flowtable
before it is loaded, and says otherwise only when it is gone: whatever ends forwarding, or loads rules, ends it first.
"""

from __future__ import annotations

from ..namedtuple import NamedTuple
from ..operations import Outcome, Planned
from ..owned_state import OFFLOADED, Record
from .provider_operations import EndFlowtable, LoadFlowtable

# Reasons that go by themselves: another pass comes soon.
NOT_YET, NO_DEVICE = "nothing is forwarded yet", "there is no interface"
_QUIET = (NOT_YET, NO_DEVICE)


class Facts(NamedTuple):
    """All that is looked at.

    Args:
        reason: what is against it, "" for nothing.
        wanted: what is to be loaded where nothing is.
        holds: what this process loaded last, as long as no other program changed any rule since; None for nothing.
        recorded: the record said before this pass that there may be a flowtable.
        refusal: why the kernel refused to load it in this pass, "" where it did not, or the program failed.
    """

    reason: str = ""
    wanted: LoadFlowtable = LoadFlowtable((), ipv6=False)
    holds: LoadFlowtable | None = None
    recorded: bool = False
    refusal: str = ""


class OffloadMemory(NamedTuple):
    """What one pass leaves for the next.

    Args:
        refused: why the kernel takes no flowtable; asked once in the life of an agent.
        judged: what the rules of others have against it, and whether that was for IPv6 too; None: to be looked at.
        holds: what was loaded last, as long as no other program changed any rule since.
        told: what the journal was told last.
    """

    refused: str = ""
    judged: tuple[bool, str] | None = None
    holds: LoadFlowtable | None = None
    told: str = ""


def against(*, allowed: bool, forwarding: bool, refused: str) -> str:
    """Return what is against it before the rules of others are looked at, "" for nothing.

    Args:
        allowed: by the owner of the qube.
        forwarding: the base rules are in, and every family that is to be forwarded is.
        refused: why the kernel takes no flowtable, "" where it is not known to take none.
    """
    if not allowed:
        return "service flag guestnet-no-offload is set"
    return refused if forwarding else NOT_YET


def plan(facts: Facts, record: Record, so_far: Outcome) -> Planned:
    """Return the pending operations; `waits` has the reason where nothing is to be offloaded.

    Args:
        facts: observed.
        record: the owned record.
        so_far: result of the operations of this pass so far.
    """
    wanted, reason = facts.wanted, facts.reason
    names, refused = len(wanted.names), wanted in so_far.failed
    if not reason and not names:
        reason = NO_DEVICE
    if not reason and refused and facts.refusal:
        reason = f"the kernel takes no flowtable ({facts.refusal})"
    if reason:
        # Of a transaction that was refused nothing is in force, nor is what the record said of it beforehand.
        there = facts.recorded if refused else record.provided.offloading
        if there and EndFlowtable() not in so_far.done:
            return Planned((EndFlowtable(),), record, (reason,))
        return Planned((), _noted(record, f"off: {reason}"), (reason,))
    if wanted in so_far.done or (facts.holds == wanted and record.provided.offloading):
        return Planned((), record)
    return Planned((wanted,), _noted(record, f"{OFFLOADED}({names} devices)"))


def plan_ending(record: Record, so_far: Outcome) -> Planned:
    """End the offload, before the rules go or forwarding ends.

    Args:
        record: the owned record.
        so_far: result of the operations of this pass so far.
    """
    if record.provided.offloading and EndFlowtable() not in so_far.done:
        return Planned((EndFlowtable(),), record)
    return Planned((), _noted(record, ""))


def is_quiet(reason: str) -> bool:
    """Return whether the owner of the qube need not be told of a reason."""
    return reason in _QUIET


def _noted(record: Record, words: str) -> Record:
    return record._replace(provided=record.provided._replace(offload=words))
