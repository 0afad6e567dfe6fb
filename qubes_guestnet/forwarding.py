# SPDX-License-Identifier: GPL-2.0-or-later
"""The switch of forwarding of each family: closed, opened, and left alone where another program has closed it.

The record says beforehand what is about to be done. A family that the record calls forwarded, and that the kernel does
not forward though we have not `shut` it, was therefore switched off by another program or by the owner, and stays so
(behaviour B133).
"""

from __future__ import annotations

from functools import partial

from .core.values import IPV4, IPV6, Tunable
from .system import tunables
from .system.systemd import INFO, WARNING, log
from .work import Work

FORWARDING = {IPV4: ("ipv4", "ip_forward"), IPV6: ("ipv6", "conf", "all", "forwarding")}


def forwarded() -> frozenset[int]:
    """Families that the kernel forwards now."""
    return frozenset(family for family in FORWARDING if _forwards(family))


def obey(work: Work) -> None:
    """Find out which families another program has switched off, and have the pass leave them so.

    Args:
        work: the pass; its `stopped` is set.

    Raises:
        FileError: the switches cannot be read.
    """
    record, on = work.provided, forwarded()
    if not work.active:
        return
    stopped = (record.stopped | (record.forwarding - record.shut)) - on
    work.stopped = stopped
    if work.dry_run or stopped == record.stopped:
        return
    for family in sorted(stopped - record.stopped):
        remedy = "it stays off until `qubes-guestnet forwarding on`"
        log(WARNING, f"IPv{family} forwarding was switched off by another program ({_name(family)} = 0): {remedy}")
    for family in sorted(record.stopped - stopped):
        log(INFO, f"IPv{family} forwarding was switched on again by another program")
    ours = record.forwarding | (record.stopped & on)
    work.save(record._replace(stopped=stopped, forwarding=ours - stopped))


def close_unwanted(work: Work) -> None:
    """Close what we opened and what is not to be forwarded any more."""
    for family in sorted(work.provided.forwarding - work.families):
        if _forwards(family):
            _write(work, family, "0")
        if not work.dry_run:
            record = work.provided
            work.save(record._replace(forwarding=record.forwarding - {family}, shut=record.shut - {family}))


def shut(work: Work) -> None:
    """Close all that this qube forwards for others, for as long as it takes to bring the rules back."""
    families = forwarded() if work.active else forwarded() & work.provided.forwarding
    for family in sorted(families):
        work.attempt(partial(_write, work, family, "0"))
    work.closing = families


def open_wanted(work: Work) -> None:
    """Open what is to be forwarded."""
    for family in sorted(work.families):
        if not _forwards(family) or (work.dry_run and family in work.closing):
            _write(work, family, "1")
        if not work.dry_run:
            work.save(work.provided._replace(shut=work.provided.shut - {family}))


def _write(work: Work, family: int, value: str) -> None:
    if not work.dry_run:
        record = work.provided
        work.save(record._replace(forwarding=record.forwarding | {family}, shut=record.shut | {family}))
    work.do(str(Tunable(FORWARDING[family], value)), partial(tunables.write, FORWARDING[family], value))


def _forwards(family: int) -> bool:
    return tunables.read(FORWARDING[family]) == "1"


def _name(family: int) -> str:
    return ".".join(("net", *FORWARDING[family]))
