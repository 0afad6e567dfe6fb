# SPDX-License-Identifier: GPL-2.0-or-later
"""The entries of QubesDB, for verbs that read them once."""

from __future__ import annotations

from collections.abc import Callable

from ..core.namedtuple import NamedTuple
from ..core.settings import PROVIDER_KEY, UPLINK_PREFIXES
from ..errors import GuestnetError, StoreError
from ..system import devices
from ..system.qubesdb import store as qubesdb

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from typing import TypeVar

    from ..core.report import Report

    Found = TypeVar("Found")

STORE_SECONDS = 10.0  # udev may call before qubes-db.service is ready
_READINGS = 10


class Reading(NamedTuple):
    """The input of a pass.

    Args:
        present: indices of the interfaces, listed before the entries were read; see `reconcile.Pass`.
        entries: the entries of QubesDB.
    """

    present: frozenset[int]
    entries: dict[str, bytes]


def take(read: Callable[[], dict[str, bytes]] | None = None) -> Reading:
    """List the interfaces, then read the entries, which are therefore newer than each listed interface.

    Args:
        read: replaces `entries`, for other entries.

    Raises:
        KernelError: the interfaces cannot be listed.
        StoreError: QubesDB does not answer.
    """
    return Reading(frozenset(devices.names()), (read or entries)())


def with_newer_entries(reading: Reading, run: Callable[[Reading], Report]) -> Report:
    """Return the report of a pass; repeat it with a new reading if an uplink came after the entries were read (B4).

    Args:
        reading: for the first pass.
        run: one pass.

    Raises:
        GuestnetError: an interface appeared during each reading.
        StoreError: QubesDB does not answer.
    """
    for _ in range(_READINGS):
        report = run(reading)
        if not report.late:
            return report
        reading = take()
    raise GuestnetError(f"a new interface appeared during each of {_READINGS} readings of QubesDB", "try again")


def entries() -> dict[str, bytes]:
    """Return all relevant entries of this qube.

    Raises:
        StoreError: QubesDB does not answer.
    """
    store = qubesdb.connect()
    try:
        if not store.read(PROVIDER_KEY):
            return qubesdb.read_all(store, UPLINK_PREFIXES)
        from ..core.provider import settings as provider  # these prefixes exclude the firewall rules of 250 qubes

        return qubesdb.read_all(store, provider.EVERYTHING)
    finally:
        store.close()


def patiently(read: Callable[[], Found]) -> Found:
    """Call `read` until QubesDB answers, and return its result.

    Args:
        read: may raise StoreError.

    Raises:
        StoreError: it has not answered in STORE_SECONDS.
    """
    try:
        return read()
    except StoreError:
        import tenacity  # costs 24 ms and asyncio (in 8.2), only for callers that must wait

    retry = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(StoreError),
        wait=tenacity.wait_exponential(multiplier=0.05, max=1),
        stop=tenacity.stop_after_delay(STORE_SECONDS),
        reraise=True,
    )
    return retry(read)
