# SPDX-License-Identifier: GPL-2.0-or-later
"""Operations, which are frozen values, and their order. A pass changes things outside of this process by them alone.

A planner reads facts and returns operations. `plan` prints their text; a dry run does not carry them out; a pass ends
when a plan from fresh facts is empty. `dispatch` maps each kind to its adapter, and `flow` calls the adapters. A new
kind needs a class, a place in ORDER, and a row in `dispatch`; a test names what is missing. The tables name a kind by
the name of its class, because most qubes never load most of the classes.

Rules, each verified by a property test:

1. ORDER decides the order, not the caller; within a kind the planner does.
2. A failed operation stops later ones that depend on it, and no others (`hinders`).
3. A failed operation is planned again in the next pass, because a plan comes from the observed state, not from former
   attempts.
4. The record is on disk before the operations that it describes. If it cannot be written, operations that must not
   happen twice are left out (NEEDS_RECORD).
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

# sysctl.d is applied before a link goes up (behaviour B17). A profile is on disk before NetworkManager loads it, and
# loaded before it is activated. The kernel is configured before any call to a service that may hang; systemd-resolved
# comes last.
# Offloaded packets bypass the rules and the forwarding sysctl: the flowtable is removed first, and created last.
# Forwarding closes before anything else changes, and opens when all protecting rules are loaded.
# A vif's link goes down before its elements are removed; before it goes up, its elements and its record are in place.
# In between, connections in conntrack are deleted, so that none of a former holder of its addresses remains.
# The rules of a qube are in force before the connections that they refuse are deleted; both come before dom0's programs
# are notified.
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
    "Op",  # plan.ORDER sorts these among themselves
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

# After these the state is observed again before any other operation: a user's file may disable IPv6, and NetworkManager
# activates a profile that it has loaded by itself.
ENDS_ROUND = frozenset({"ApplySysctl", "LoadProfile"})
# Without a record each pass would start the hooks again, and forwarding would not be held after LoadRulesInParts.
NEEDS_RECORD = frozenset({"StartHooks", "LoadRulesInParts"})
# Consecutive operations of these kinds form one nft transaction, which `dispatch` has under the name TRANSACTION.
JOINED = frozenset({"RemoveElements", "ChangeDownstream", "SetLimits", "SetElement"})
TRANSACTION = "Transaction"
# The same, without a limit on the size: the firewall of all qubes changes at once. A refused transaction is halved
# (`firewall`).
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
# The limits of five vifs in both families. In a user namespace the kernel does not accept those of ten in one message;
# and a refusal, or a slow kernel, delays only a few of 250 qubes.
PIECE_LINES = 500
# The adapters may carry these out while a transaction is running.
BESIDE = frozenset({"WriteTunable", "PrepareVif"})
# If the interface of one of these has vanished, the round continues with the other interfaces.
VANISHES_ALONE = frozenset({"CloseVif", "PrepareVif", "OpenVif"})

# The kinds whose failure stops an operation with the same name.
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
    """Make systemd-sysctl apply the files of sysctl.d to an interface."""

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
    """The result of a planner.

    Args:
        ops: operations to carry out, in order.
        record: the owned record that must be on disk before them.
        waits: steps of other programs that must come first, in words.
        errors: errors of observations.
        seen: what was observed, for the report of the pass.
    """

    ops: tuple[Operation, ...]
    record: Record
    waits: tuple[str, ...] = ()
    errors: tuple[GuestnetError, ...] = ()
    seen: object = None


class Outcome(NamedTuple):
    """The result of carrying out operations.

    Args:
        done: operations that succeeded, in order.
        failed: operations that were refused, or left out because they depend on a refused one.
        errors: the reasons.
    """

    done: tuple[Operation, ...] = ()
    failed: tuple[Operation, ...] = ()
    errors: tuple[GuestnetError, ...] = ()

    def and_then(self, later: Outcome) -> Outcome:
        """Return this result combined with that of later operations."""
        return Outcome(self.done + later.done, self.failed + later.failed, self.errors + later.errors)


def kind(op: Operation) -> str:
    """Return the kind of an operation, as the tables name it."""
    return type(op).__name__


def in_order(ops: Iterable[Operation]) -> tuple[Operation, ...]:
    """Return operations sorted by ORDER; those of one kind stay in the order given."""
    return tuple(sorted(ops, key=lambda op: _POSITION[kind(op)]))


def together(ops: Iterable[Operation]) -> Iterator[tuple[Operation, ...]]:
    """Yield operations one by one, and those of one transaction together, in pieces of at most PIECE_LINES lines."""
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
    """Return the operation that replaces a refused one; None for none."""
    return getattr(op, "instead", None)
