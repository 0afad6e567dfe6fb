# SPDX-License-Identifier: GPL-2.0-or-later
"""Plan the runs of the user's hooks from their last input in the owned record.

The record is written before they run: an agent that is killed in between does not run them twice, and an agent that
cannot write its record does not run them after every pass.
"""

from __future__ import annotations

from collections.abc import Iterable

from .. import hooks
from ..hooks import HookFacts
from ..operations import Outcome, Planned
from ..owned_state import Record
from ..report import InterfaceReport
from ..settings import Settings
from .service_operations import StartHooks

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..values import Link


def changed(interfaces: Iterable[InterfaceReport], settings: Settings, record: Record) -> tuple[tuple[Link, str], ...]:
    """Return the uplinks for which the hooks are due, each with the fingerprint of its present state."""
    found = []
    for interface in interfaces:
        if interface.link is not None:
            now, told = hooks.fingerprint(interface.desired, settings.dns.servers), record.interface(interface.link)
            if hooks.due(told.hooked, now, provider=settings.provider, configured=interface.configured):
                found.append((interface.link, now))
    return tuple(found)


def plan(
    changes: Iterable[tuple[Link, str]], found: Iterable[HookFacts], record: Record, clock: int, so_far: Outcome
) -> Planned:
    """Return the pending operations.

    Args:
        changes: by `changed`.
        found: the hooks as they are on disk.
        record: the owned record.
        clock: seconds of the wall clock: what the hooks write from then on is theirs (behaviour B124).
        so_far: result of the operations of this pass so far.
    """
    paths, ops = hooks.runnable(found), []
    refused = {op.ifindex for op in so_far.failed if isinstance(op, StartHooks)}
    for link, now in changes:
        record = record.with_interface(record.interface(link)._replace(hooked=now))
        record = record._replace(provided=record.provided._replace(hooks=clock))
        ops += [StartHooks(link.ifindex, paths)] if paths else []
    # Hooks that could not be started stay due (behaviour B147).
    entries = (entry._replace(hooked="") if entry.ifindex in refused else entry for entry in record.interfaces)
    return Planned(tuple(ops), record._replace(interfaces=tuple(entries)))
