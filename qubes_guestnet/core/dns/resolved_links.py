# SPDX-License-Identifier: GPL-2.0-or-later
"""Plan the servers of the uplinks in systemd-resolved.

The owned record is written before the servers of a link are set: after an agent was killed in between, the next one
reverts too much, which is harmless, and never too little.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..namedtuple import NamedTuple
from ..operations import Outcome, Planned
from ..owned_state import Interface, Record
from ..report import InterfaceReport
from ..settings import Settings
from ..uplink.desired import Flags
from ..uplink.service_operations import RevertLinkNames, SetLinkNames
from ..values import Link
from . import resolved
from .resolved import LinkNames

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..operations import Operation


class LinkFacts(NamedTuple):
    """The name service of one uplink.

    Args:
        link: the interface.
        wanted: desired settings; None if we set nothing on it.
        seen: present settings; None if unknown, as when systemd-resolved is not running.
    """

    link: Link
    wanted: LinkNames | None
    seen: LinkNames | None = None


def asked(interface: InterfaceReport, settings: Settings, flags: Flags) -> LinkFacts | None:
    """Return the desired settings of an interface; None if its present settings stay."""
    if interface.link is None or settings.dns.held:
        return None
    there = not interface.removed and bool(interface.desired.addresses or interface.settings.held)
    servers = settings.dns.servers if interface.rank == 0 else ()
    names = resolved.wanted(servers, flags, networkmanager=interface.manager.networkmanager, there=there)
    return LinkFacts(interface.link, names)


def concerned(facts: LinkFacts, record: Record) -> bool:
    """Return whether a link has or needs settings of ours; if not, systemd-resolved is not called."""
    return facts.wanted is not None or record.interface(facts.link).resolved


def plan(links: Iterable[LinkFacts], record: Record, so_far: Outcome) -> Planned:
    """Return the pending operations.

    Args:
        links: observed links that are `concerned`.
        record: the owned record.
        so_far: result of the operations of this pass so far.
    """
    ops: list[Operation] = []
    for link, names, seen in links:
        entry, revert = record.interface(link), RevertLinkNames(link.ifindex, link.name)
        if seen is None:
            continue
        if names is not None:
            entry = entry._replace(resolved=True)
            ops += [SetLinkNames(link.ifindex, link.name, names)] if seen != names else []
        elif revert in so_far.done:
            entry = entry._replace(resolved=False)
        else:
            ops.append(revert)
        record = record.with_interface(entry)
    return Planned(tuple(ops), record)


def forget(entry: Interface, link: Link) -> Iterable[Operation]:
    """Return the operations that remove the servers of an interface that is taken down."""
    if entry.resolved:
        yield RevertLinkNames(link.ifindex, link.name)
