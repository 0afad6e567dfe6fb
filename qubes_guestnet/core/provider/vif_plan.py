# SPDX-License-Identifier: GPL-2.0-or-later
"""Plan the operations on vifs: configure, repair, close, and take down.

Connections of a former holder of an address are forgotten first (behaviour B53). The record is ahead of the kernel.
What lets a vif send is in before its link goes up (B50), and out before its record is removed; `operations` has the
order, and what a refused operation stops.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from ..namedtuple import NamedTuple
from ..nft import limits, rules_text
from ..nft.limits import InForce, Kept, Limits
from ..operations import Outcome
from ..shared_operations import PurgeConntrack
from ..values import Link, State, Tunable
from . import settings as provider
from . import vif_order
from .downstream import ordered
from .settings import ProviderSettings
from .vif import GONE, Vif
from .vif_operations import (
    CloseVif,
    KeepVifRecord,
    MarkVifClosed,
    OpenVif,
    PrepareVif,
    RemoveElements,
    RemoveVifRecord,
    SetElement,
    SetLimits,
    WriteTunable,
    WriteVifRecord,
)
from .vif_order import VifReport

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..operations import Operation

Values = Mapping[tuple[str, ...], "str | None"]


class Common(NamedTuple):
    """The facts that all vifs of a pass share.

    Args:
        settings: of the provider.
        mtu: of the vifs, in bytes; 0 for leaving it as it is.
        limits: of each of them; None: those in force stay.
        kept: how long conntrack keeps connections.
        arp: the kernel has nftables for ARP.
    """

    settings: ProviderSettings
    mtu: int = 0
    limits: Limits | None = None
    kept: Kept = Kept()
    arp: bool = True


class Facts(NamedTuple):
    """The facts about one vif.

    Args:
        vif: what is to be recorded of it.
        known: its record, None where there is none.
        link: the interface, None where there is none.
        observed: what it has.
        values: of the settings that are wanted; None for what this kernel does not have.
        others: vifs in service that may have an address of it.
        present: elements of the sets, by `vif_order.listed`; None: not looked at.
        found: limits in force; None: not looked at.
    """

    vif: Vif
    known: Vif | None
    link: Link | None
    observed: State = State()
    values: Values = MappingProxyType({})
    others: tuple[Vif, ...] = ()
    present: frozenset[str] | None = None
    found: InForce | None = None


def desired(vif: Vif, common: Common) -> State:
    """Return what the interface is to have."""
    return provider.desired(vif, common.settings)._replace(mtu=common.mtu)


def tunables(vif: Vif, common: Common, others: Iterable[Vif]) -> tuple[Tunable, ...]:
    """Return the settings that are wanted of a vif, beside others in service."""
    ipv6, outranked = vif_order.has_ipv6(vif, common.settings), vif_order.outranked(vif, others)
    return vif_order.tunables(vif.name.text, ipv6=ipv6, outranked=outranked)


def differs(tunable: Tunable, values: Values) -> bool:
    """Return whether it is to be written; what the kernel does not have (IPv6 switched off in it, #5110) is not."""
    return values.get(tunable.path) not in (None, tunable.value)


def report(facts: Facts, common: Common, *, every: bool = False) -> VifReport:
    """Return the pending operations for one vif that is there.

    Args:
        facts: observed.
        common: for every vif.
        every: what was not looked at, elements and limits, is to do.
    """
    vif, link = facts.vif, facts.link
    if link is None:
        return VifReport(vif, None)
    ops = vif_order.up(link, desired(vif, common), facts.observed, vif, common.settings.held)
    settings = tuple(each for each in tunables(vif, common, facts.others) if differs(each, facts.values))
    if facts.present is not None:
        elements, words = wrong_elements(vif, common, facts.present), limit(vif, common, facts.found)
    elif every:
        elements, words = allowed(vif, common), limit(vif, common, None)
    else:
        return VifReport(vif, link, ops, (), settings, seen=False)
    return VifReport(vif, link, ops, elements, settings, limits=words)


def allowed(vif: Vif, common: Common) -> tuple[str, ...]:
    """Return the lines of nft that let a vif send."""
    return tuple(vif_order.letting_send((vif,), common.settings, arp=common.arp).splitlines())


def wrong_elements(vif: Vif, common: Common, present: frozenset[str]) -> tuple[str, ...]:
    """Return the lines of nft that make the sets hold what they should of a vif."""
    missing = tuple(line for line in allowed(vif, common) if not vif_order.is_there(line, present))
    # Of an address that it has and may not use now, as when IPv6 goes; what others let it use is theirs to end.
    idle = frozenset(vif.addresses) - frozenset(provider.elements(vif, common.settings).downstream)
    lines = rules_text.detach(vif.name.text, ordered(idle), idle, _mac(vif, common)).splitlines()
    stale = (line for line in lines if line.startswith("delete") and vif_order.is_there(line, present))
    return (*missing, *stale)


def limit(vif: Vif, common: Common, found: InForce | None) -> str:
    """Return what nft has to load for the limits of a vif; all of it where it is not known what is in force."""
    versions = sorted({address.version for address in provider.elements(vif, common.settings).downstream})
    if found is not None and not limits.missing(vif.name.text, versions, common.limits, found, common.kept):
        return ""
    return limits.attach(vif.name.text, versions, common.limits or Limits(), common.kept)


def _mac(vif: Vif, common: Common) -> str:
    """Return the address that a qube may speak by ARP from; "" where the kernel has no nftables for it."""
    return vif.mac if common.arp else ""


def set_up(found: VifReport, known: Vif | None, so_far: Outcome, *, fresh: bool = False) -> tuple[Operation, ...]:
    """Return operations that do what a report says is to do.

    Args:
        found: by `report`.
        known: its record.
        so_far: what came of the operations of this pass; what nft has taken is in, where it is not looked at again.
        fresh: another qube may have had the addresses before, and must leave no open door behind (behaviour B53).
    """
    early, late = vif_order.split(found.ops)
    vif, name = found.vif._replace(gateways=found.vif.gateways | vif_order.added(early)), found.vif.name.text
    once: list[Operation] = [PurgeConntrack(vif.addresses, name)] if fresh and vif.addresses else []
    record = [WriteVifRecord(vif)] if vif != known else []
    once += record
    once += _let_send(name, found.limits, found.elements)
    ops = [op for op in once if op not in so_far.done]
    ops += [WriteTunable(name, tunable) for tunable in found.tunables]
    ops += map(PrepareVif, early)
    return (*ops, *map(OpenVif, late))


def refill(vif: Vif, common: Common, present: frozenset[str], found: InForce) -> tuple[Operation, ...]:
    """Return operations that make sets and limits hold what they should of a vif, and change nothing else of it.

    Args:
        vif: as recorded.
        common: for every vif.
        present: elements of the sets, by `vif_order.listed`.
        found: limits in force.
    """
    return _let_send(vif.name.text, limit(vif, common, found), wrong_elements(vif, common, present))


def _let_send(name: str, words: str, lines: Iterable[str]) -> tuple[Operation, ...]:
    limited = (SetLimits(name, words),) if words else ()
    return (*limited, *(SetElement(name, line) for line in lines))


def checks(vif: Vif, others: Iterable[Vif], there: Iterable[Vif], values: Values) -> tuple[WriteTunable, ...]:
    """Have those that share an address with a vif, which came or went, check by the routes as they have to now.

    Args:
        vif: that came or went.
        others: to look at.
        there: all that are in service now.
        values: of their settings.
    """
    there = tuple(there)
    sharing = (other for other in others if not frozenset(vif.addresses).isdisjoint(other.addresses))
    wanted = (vif_order.source_check(other.name.text, outranked=vif_order.outranked(other, there)) for other in sharing)
    return tuple(WriteTunable(vif.name.text, tunable) for tunable in wanted if differs(tunable, values))


def lock_out(vif: Vif, common: Common, others: Iterable[Vif], values: Values, *, sure: bool) -> tuple[Operation, ...]:
    """Let a vif send nothing. Its addresses stay protected while a qube that has them may come back.

    Args:
        vif: as recorded.
        common: for every vif.
        others: every other vif that has a record.
        values: of the settings of `source_checks`.
        sure: it is known which qubes may come back.
    """
    name, others = vif.name.text, tuple(others)
    there = tuple(other for other in others if other.device != GONE)
    kept = common.settings.connected | {address for other in others for address in other.addresses}
    if not sure or not common.settings.active or "connected" in common.settings.held:
        kept |= frozenset(vif.addresses)
    text = rules_text.detach(name, vif.addresses, kept, _mac(vif, common)) + limits.detach(name)
    ops: list[Operation] = [RemoveElements(name, text), *checks(vif, there, there, values)]
    return (*ops, PurgeConntrack(vif.addresses, name)) if vif.addresses else tuple(ops)


def source_checks(others: Iterable[Vif]) -> tuple[tuple[str, ...], ...]:
    """Return the settings of other vifs that depend on which vifs are in service."""
    return tuple(vif_order.source_check(other.name.text, outranked=False).path for other in others)


def close(vif: Vif, locking: tuple[Operation, ...], so_far: Outcome) -> tuple[Operation, ...]:
    """Close a vif whose device went, or left its name to another one; hotplug will take it out of service.

    After a step that failed its record stays as it is: the next pass does all of it again.

    Args:
        vif: as recorded.
        locking: by `lock_out`.
        so_far: result of the operations of this pass so far.
    """
    last = MarkVifClosed(vif._replace(device=GONE))
    return () if last in so_far.done or so_far.failed else (*locking, last)


def drop(
    vif: Vif,
    link: Link | None,
    observed: State,
    locking: tuple[Operation, ...],
    so_far: Outcome,
    *,
    taken: bool = False,
) -> tuple[Operation, ...]:
    """Take a vif out of service; every step is done, whatever another says.

    After a step that failed the record stays, as that of no device: the next sweep does all of it again.

    Args:
        vif: as recorded.
        link: the interface, None where it is gone or another vif's.
        observed: what it has.
        locking: by `lock_out`.
        so_far: result of the operations of this pass so far.
        taken: another device has the name, and is a stranger until hotplug says whose it is (behaviour B117).
    """
    name = vif.name.text
    last = MarkVifClosed(Vif(vif.name, vif.mac, vif.kind, device=GONE)) if taken else RemoveVifRecord(name)
    kept = KeepVifRecord(vif._replace(device=GONE))
    if last in so_far.done or kept in so_far.done:
        return ()
    if last in so_far.failed:
        return (kept,)
    ops: list[Operation] = list(map(CloseVif, vif_order.down(link, observed, vif))) if link is not None else []
    ops += locking
    return (*(op for op in ops if op not in so_far.done), last)
