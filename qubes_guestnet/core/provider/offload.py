# SPDX-License-Identifier: GPL-2.0-or-later
"""Plan whether connections are offloaded.

Offloaded packets bypass the rules and the forwarding sysctl. So the record notes the flowtable before it is loaded, and
removes the note only after it is deleted: each step that closes forwarding, or loads rules, deletes it first.
"""

from __future__ import annotations

from ..namedtuple import NamedTuple
from ..operations import Outcome, Planned
from ..owned_state import OFFLOADED, Record
from .provider_operations import EndFlowtable, LoadFlowtable

# Temporary reasons, which a later pass removes.
NOT_YET, NO_DEVICE = "nothing is forwarded yet", "there is no interface"
_QUIET = (NOT_YET, NO_DEVICE)


class Facts(NamedTuple):
    """The observed facts.

    Args:
        reason: the obstacle, "" for none.
        wanted: the flowtable to load if there is no obstacle.
        holds: the flowtable that this process loaded last, if no other program changed rules since; None for none.
        recorded: before this pass the record noted a flowtable.
        refusal: why the kernel refused to load it in this pass; "" if it did not, or if nft failed.
    """

    reason: str = ""
    wanted: LoadFlowtable = LoadFlowtable((), ipv6=False)
    holds: LoadFlowtable | None = None
    recorded: bool = False
    refusal: str = ""


class OffloadMemory(NamedTuple):
    """The state between passes.

    Args:
        refused: why the kernel takes no flowtable; tested once in the life of an agent.
        judged: the obstacle in other programs' rules, and whether IPv6 was included; None: not judged.
        holds: the flowtable loaded last, if no other program changed rules since.
        told: the last logged state.
    """

    refused: str = ""
    judged: tuple[bool, str] | None = None
    holds: LoadFlowtable | None = None
    told: str = ""


def against(*, allowed: bool, forwarding: bool, refused: str) -> str:
    """Return the obstacle apart from other programs' rules, "" for none.

    Args:
        allowed: the owner of the qube allows the offload.
        forwarding: the base rules are loaded, and every desired family is forwarded.
        refused: why the kernel takes no flowtable, "" if unknown or if it takes one.
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
        # A refused transaction is not in force, so the note in the record is wrong.
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
    """Return whether a reason is not logged."""
    return reason in _QUIET


def _noted(record: Record, words: str) -> Record:
    return record._replace(provided=record.provided._replace(offload=words))
