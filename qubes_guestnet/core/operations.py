# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that a pass changes outside of this process, as values; and the order in which it is done.

A planner looks at facts and returns operations. What `plan` prints is their text, a dry run is not carrying them out,
and a pass is over when a plan made of fresh facts is empty. `dispatch` says which adapter carries out which kind, and
`flow` does it. A new kind takes a class here, its place in ORDER and a row in `dispatch`; a test says what is missing.

Rules, each held by a property test:

1. The order is ORDER's and no caller's; within a kind it is the planner's.
2. An operation that failed stops those behind it that are about the same thing, and no other (`hinders`).
3. What failed is in the next plan, because that comes from the world and not from what was tried.
4. The record is on disk before the operations that it tells of; where it cannot be, what must not happen twice is left
   out (NEEDS_RECORD).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from . import networkmanager, plan
from .namedtuple import NamedTuple, distinct

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/lean)
if TYPE_CHECKING:
    from typing import Any

    from ..errors import GuestnetError
    from .record import Record
    from .resolved import LinkNames


@distinct
class RewriteProfile(NamedTuple):
    """Save a profile of the user's anew, with the present name of its interface (behaviour B31)."""

    name: str
    text: str

    def __str__(self) -> str:
        return f"publish {networkmanager.FOLDER}/{self.name}: interface name of the former release changed"


@distinct
class PublishProfile(NamedTuple):
    """Write the profile of an uplink to disk."""

    name: str
    text: bytes

    def __str__(self) -> str:
        return f"publish {networkmanager.FOLDER}/{self.name}"


@distinct
class RemoveProfile(NamedTuple):
    """Take a profile of ours away, from NetworkManager and from disk; `uuid` is "" where the file names none."""

    name: str
    uuid: str

    def __str__(self) -> str:
        return f"remove {networkmanager.FOLDER}/{self.name}"


@distinct
class ApplySysctl(NamedTuple):
    """Have systemd-sysctl apply the files of sysctl.d to an interface."""

    interface: str

    def __str__(self) -> str:
        return f"systemd-sysctl for {self.interface}"


@distinct
class LoadProfile(NamedTuple):
    """Have NetworkManager read a profile: it does not watch its folder."""

    name: str

    def __str__(self) -> str:
        return f"nmcli connection load {networkmanager.FOLDER}/{self.name}"


@distinct
class ActivateProfile(NamedTuple):
    """Put a profile in force on an interface."""

    name: str
    interface: str
    uuid: str

    def __str__(self) -> str:
        return f'nmcli connection up "{networkmanager.profile_name(self.interface)}" ifname {self.interface}'


@distinct
class ReapplyProfile(NamedTuple):
    """Put a changed profile in force, with the interface staying up."""

    name: str
    interface: str
    uuid: str

    def __str__(self) -> str:
        return f"nmcli device reapply {self.interface}"


@distinct
class StartHooks(NamedTuple):
    """Start the user's hooks for a change of the uplink, one after the other."""

    ifindex: int
    paths: tuple[str, ...]

    def __str__(self) -> str:
        return f"start hook {' '.join(self.paths)}"


@distinct
class SetLinkNames(NamedTuple):
    """Give a link its servers and domains in systemd-resolved."""

    ifindex: int
    interface: str
    names: LinkNames

    def __str__(self) -> str:
        servers, domains = " ".join(self.names.servers), " ".join(self.names.domains)
        return f"resolvectl dns {self.interface} {servers}; resolvectl domain {self.interface} {domains}"


@distinct
class RevertLinkNames(NamedTuple):
    """Take the servers and domains of a link away in systemd-resolved."""

    ifindex: int
    interface: str

    def __str__(self) -> str:
        return f"resolvectl revert {self.interface}"


if TYPE_CHECKING:
    Operation = (
        plan.Op
        | RewriteProfile
        | PublishProfile
        | RemoveProfile
        | ApplySysctl
        | LoadProfile
        | ActivateProfile
        | ReapplyProfile
        | StartHooks
        | SetLinkNames
        | RevertLinkNames
    )

# The sysctl.d files count before a link goes up (behaviour B17). A profile is on disk before NetworkManager is told to
# read it, and read before it is put in force. The kernel is ready before a service is asked that may hang, and
# systemd-resolved, which may, is the last one.
ORDER: tuple[type[Any], ...] = (
    ApplySysctl,
    plan.Op,  # among themselves by plan.ORDER
    RewriteProfile,
    PublishProfile,
    LoadProfile,
    ReapplyProfile,
    ActivateProfile,
    RemoveProfile,
    StartHooks,
    SetLinkNames,
    RevertLinkNames,
)
_POSITION = {kind: position for position, kind in enumerate(ORDER)}

# What follows from these is observed before anything else is done: a user's file may switch IPv6 off, and
# NetworkManager puts a profile that it has read in force by itself.
ENDS_ROUND = frozenset[type]({ApplySysctl, LoadProfile})
# Without a record of it this would be done again in each pass.
NEEDS_RECORD = frozenset[type]({StartHooks})
# What is done in place of an operation that was refused: a device that cannot be changed in place goes down and up.
_INSTEAD: dict[type, Callable[..., Operation]] = {ReapplyProfile: ActivateProfile}
# What an operation is about, by the name of a field.
_ABOUT = {
    PublishProfile: "name",
    LoadProfile: "name",
    ActivateProfile: "name",
    ReapplyProfile: "name",
}


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


def in_order(ops: Iterable[Operation]) -> tuple[Operation, ...]:
    """Operations sorted by ORDER; those of one kind stay in the order given."""
    return tuple(sorted(ops, key=lambda op: _POSITION[type(op)]))


def hinders(failed: Operation, op: Operation) -> bool:
    """Whether an operation cannot be done, or must not, because another one failed."""
    if isinstance(failed, plan.Op) and isinstance(op, plan.Op):
        return plan.hinders(failed, op)
    about = [getattr(each, _ABOUT[type(each)]) if type(each) in _ABOUT else None for each in (failed, op)]
    return about[0] is not None and about[0] == about[1]


def instead(op: Operation) -> Operation | None:
    """What to do in place of an operation that was refused; None for nothing."""
    other = _INSTEAD.get(type(op))
    return other(*op) if other is not None else None
