# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that a pass changes outside of this process is an operation: a frozen value. This is their order.

A planner looks at facts and returns operations. What `plan` prints is their text, a dry run is not carrying them out,
and a pass is over when a plan made of fresh facts is empty. `dispatch` says which adapter carries out which kind, and
`flow` does it. A new kind takes a class, its place in ORDER, and a row in `dispatch`; a test says what is missing. The
tables here and there name a kind by its class, because most qubes never load most of them.

Rules, each held by a property test:

1. The order is ORDER's and no caller's; within a kind it is the planner's.
2. An operation that failed stops those behind it that are about the same thing, and no other (`hinders`).
3. What failed is in the next plan, because that comes from the world and not from what was tried.
4. The record is on disk before the operations that it tells of; where it cannot be, what must not happen twice is left
   out (NEEDS_RECORD).
"""

from __future__ import annotations

from collections.abc import Iterable

from .namedtuple import NamedTuple, distinct

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/lean)
if TYPE_CHECKING:
    from ..errors import GuestnetError
    from . import plan
    from .provider_operations import ProviderOperation
    from .record import Record
    from .service_operations import ServiceOperation

# The sysctl.d files count before a link goes up (behaviour B17). A profile is on disk before NetworkManager is told to
# read it, and read before it is put in force. The kernel is ready before a service is asked that may hang, and
# systemd-resolved, which may, is the last one.
# What is offloaded passes by the rules and by the switch of forwarding: the flowtable ends first, and comes last.
# Forwarding closes before anything else changes, and opens when all that protects others is in.
ORDER = (
    "EndFlowtable",
    "CloseForwarding",
    "ChangeDownstream",
    "LoadRedirection",
    "KeepForeignRedirection",
    "PurgeConntrack",
    "SetFirewallServers",
    "UnitJob",
    "ApplySysctl",
    "Op",  # among themselves by plan.ORDER
    "RewriteProfile",
    "PublishProfile",
    "LoadProfile",
    "ReapplyProfile",
    "ActivateProfile",
    "RemoveProfile",
    "StartHooks",
    "SetLinkNames",
    "RevertLinkNames",
    "OpenForwarding",
    "LoadFlowtable",
)
_POSITION = {kind: position for position, kind in enumerate(ORDER)}

# What follows from these is observed before anything else is done: a user's file may switch IPv6 off, and
# NetworkManager puts a profile that it has read in force by itself.
ENDS_ROUND = frozenset({"ApplySysctl", "LoadProfile"})
# Without a record of it this would be done again in each pass.
NEEDS_RECORD = frozenset({"StartHooks"})
# What an operation is about, by the name of a field.
_ABOUT = dict.fromkeys(("PublishProfile", "LoadProfile", "ReapplyProfile", "ActivateProfile"), "name")


@distinct
class ApplySysctl(NamedTuple):
    """Have systemd-sysctl apply the files of sysctl.d to an interface."""

    interface: str

    def __str__(self) -> str:
        return f"systemd-sysctl for {self.interface}"


if TYPE_CHECKING:
    Operation = plan.Op | ApplySysctl | ServiceOperation | ProviderOperation


class Planned(NamedTuple):
    """What a planner makes of facts.

    Args:
        ops: to carry out, in order.
        record: the owned record as it has to be on disk before them.
        waits: what somebody else has to do first, in words.
        errors: what could not be observed.
    """

    ops: tuple[Operation, ...]
    record: Record
    waits: tuple[str, ...] = ()
    errors: tuple[GuestnetError, ...] = ()


class Outcome(NamedTuple):
    """What came of operations.

    Args:
        done: carried out, in order.
        failed: refused, or left out because they depend on a refused one.
        errors: why.
    """

    done: tuple[Operation, ...] = ()
    failed: tuple[Operation, ...] = ()
    errors: tuple[GuestnetError, ...] = ()

    def and_then(self, later: Outcome) -> Outcome:
        """This and what came of later ones."""
        return Outcome(self.done + later.done, self.failed + later.failed, self.errors + later.errors)


def kind(op: Operation) -> str:
    """The kind of an operation, as the tables name it."""
    return type(op).__name__


def in_order(ops: Iterable[Operation]) -> tuple[Operation, ...]:
    """Operations sorted by ORDER; those of one kind stay in the order given."""
    return tuple(sorted(ops, key=lambda op: _POSITION[kind(op)]))


def hinders(failed: Operation, op: Operation) -> bool:
    """Whether an operation cannot be done, or must not, because another one failed."""
    by_itself = getattr(failed, "hinders", None)
    if by_itself is not None:
        return bool(by_itself(op))
    about = [getattr(each, _ABOUT.get(kind(each), ""), None) for each in (failed, op)]
    return about[0] is not None and about[0] == about[1]


def instead(op: Operation) -> Operation | None:
    """What to do in place of an operation that was refused; None for nothing."""
    return getattr(op, "instead", None)
