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

from collections.abc import Iterable, Iterator
from itertools import groupby

from .namedtuple import NamedTuple, distinct

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..errors import GuestnetError
    from . import plan
    from .dns.redirection_operations import RedirectionOperation
    from .firewall.consequences import Consequence
    from .firewall.operations import Operation as FirewallOperation
    from .owned_state import Record
    from .provider.provider_operations import ProviderOperation
    from .provider.rules_operations import RulesOperation
    from .provider.vif_operations import VifOperation
    from .shared_operations import SharedOperation
    from .uplink.service_operations import ServiceOperation

# The sysctl.d files count before a link goes up (behaviour B17). A profile is on disk before NetworkManager is told to
# read it, and read before it is put in force. The kernel is ready before a service is asked that may hang, and
# systemd-resolved, which may, is the last one.
# What is offloaded passes by the rules and by the switch of forwarding: the flowtable ends first, and comes last.
# Forwarding closes before anything else changes, and opens when all that protects others is in.
# Of a vif, the link goes down before its elements go, and these are in, with its record, before it goes up. What is in
# conntrack is forgotten in between, so that no connection of a former holder of its addresses is left.
# What one qube may do is in force before the connections that it refuses now are cut, and both before dom0's programs
# are told that it is.
ORDER = (
    "EndFlowtable",
    "CloseForwarding",
    "LeaveGuard",
    "UnloadRules",
    "LoadRules",
    "LoadRulesInParts",
    "PurgeUntranslated",
    "CloseVif",
    "RemoveElements",
    "ChangeDownstream",
    "LoadRedirection",
    "KeepForeignRedirection",
    "PurgeConntrack",
    "WriteVifRecord",
    "SetLimits",
    "SetElement",
    "WriteTunable",
    "PrepareVif",
    "OpenVif",
    "RemoveVifRecord",
    "MarkVifClosed",
    "KeepVifRecord",
    "SetFirewallServers",
    "LoadFirewallTable",
    "SetDnsServers",
    "ChangeName",
    "SetQubeRules",
    "RemoveQubeRules",
    "RemoveQubeChain",
    "RemoveName",
    "EndConnections",
    "ExportNames",
    "CountHandled",
    "UnitJob",
    "ApplySysctl",
    "Op",  # among themselves by plan.ORDER
    "PublishFile",
    "RewriteProfile",
    "PublishProfile",
    "LoadProfile",
    "ReapplyProfile",
    "ActivateProfile",
    "RemoveProfile",
    "StartHooks",
    "SetLinkNames",
    "RevertLinkNames",
    "StandGuard",
    "OpenForwarding",
    "LoadFlowtable",
)
_POSITION = {kind: position for position, kind in enumerate(ORDER)}

# What follows from these is observed before anything else is done: a user's file may switch IPv6 off, and
# NetworkManager puts a profile that it has read in force by itself.
ENDS_ROUND = frozenset({"ApplySysctl", "LoadProfile"})
# Without a record of it this would be done again in each pass.
# For the second one forwarding is held by the record.
NEEDS_RECORD = frozenset({"StartHooks", "LoadRulesInParts"})
# Those that follow each other are one transaction of nft, and how the adapters call it; what may be done meanwhile.
JOINED = frozenset({"RemoveElements", "ChangeDownstream", "SetLimits", "SetElement"})
TRANSACTION = "Transaction"
# The same, but of any size: the firewall of all qubes changes at once. One that is refused is halved (`firewall`).
WHOLE = frozenset(
    {
        "LoadFirewallTable",
        "SetDnsServers",
        "ChangeName",
        "SetQubeRules",
        "RemoveQubeRules",
        "RemoveQubeChain",
        "RemoveName",
    }
)
# The limits of five vifs in both families. Those of ten are longer than the kernel accepts at once in a user namespace,
# and a refusal, or a slow kernel, holds up no more than a few of 250.
PIECE_LINES = 500
BESIDE = frozenset({"WriteTunable", "PrepareVif"})
# Where the interface is gone the round goes on with the others.
VANISHES_ALONE = frozenset({"CloseVif", "PrepareVif", "OpenVif"})

# By which failed ones an operation is stopped, where both have one name.
_PROFILE = frozenset({"PublishProfile", "LoadProfile", "ReapplyProfile", "ActivateProfile"})
_READY = frozenset({"PurgeConntrack", "WriteVifRecord", "SetLimits"})
_ENDED = frozenset({"CloseVif", "RemoveElements", "PurgeConntrack", "WriteTunable"})
_STOPPED_BY = {
    **dict.fromkeys(_PROFILE, _PROFILE),
    "WriteVifRecord": frozenset({"PurgeConntrack"}),
    "PrepareVif": frozenset({"WriteVifRecord"}),
    "SetLimits": _READY,
    "SetElement": _READY,
    "OpenVif": _READY | {"SetElement", "WriteTunable", "PrepareVif", "OpenVif"},
    "RemoveVifRecord": _ENDED,
    "MarkVifClosed": _ENDED,
}


@distinct
class ApplySysctl(NamedTuple):
    """Have systemd-sysctl apply the files of sysctl.d to an interface."""

    interface: str

    def __str__(self) -> str:
        return f"systemd-sysctl for {self.interface}"


if TYPE_CHECKING:
    Operation = (
        plan.Op
        | ApplySysctl
        | ServiceOperation
        | ProviderOperation
        | RedirectionOperation
        | SharedOperation
        | VifOperation
        | RulesOperation
        | FirewallOperation
        | Consequence
    )


class Planned(NamedTuple):
    """What a planner makes of facts.

    Args:
        ops: to carry out, in order.
        record: the owned record as it has to be on disk before them.
        waits: steps of other programs that must come first, in words.
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
    """Return the kind of an operation, as the tables name it."""
    return type(op).__name__


def in_order(ops: Iterable[Operation]) -> tuple[Operation, ...]:
    """Return operations sorted by ORDER; those of one kind stay in the order given."""
    return tuple(sorted(ops, key=lambda op: _POSITION[kind(op)]))


def together(ops: Iterable[Operation]) -> Iterator[tuple[Operation, ...]]:
    """Operations one by one, but for those that are one transaction, of at most PIECE_LINES where there are several."""
    for joined, part in groupby(ops, lambda op: (kind(op) in JOINED, kind(op) in WHOLE)):
        if joined == (True, False):
            yield from _pieces(part)
        elif joined == (False, True):
            yield tuple(part)
        else:
            yield from ((op,) for op in part)


def _pieces(ops: Iterable[Operation]) -> Iterator[tuple[Operation, ...]]:
    piece: list[Operation] = []
    lines = 0
    for op in ops:
        own = getattr(op, "text", "").count("\n")
        if piece and lines + own > PIECE_LINES:
            yield tuple(piece)
            piece, lines = [], 0
        piece.append(op)
        lines += own
    yield tuple(piece)


def hinders(failed: Operation, op: Operation) -> bool:
    """Return whether an operation cannot be done, or must not, because another one failed."""
    by_itself = getattr(failed, "hinders", None)
    if by_itself is not None:
        return bool(by_itself(op))
    if kind(failed) not in _STOPPED_BY.get(kind(op), ()):
        return False
    return getattr(failed, "name", None) == getattr(op, "name", "")


def instead(op: Operation) -> Operation | None:
    """Return what to do in place of an operation that was refused; None for nothing."""
    return getattr(op, "instead", None)
