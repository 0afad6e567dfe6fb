# SPDX-License-Identifier: GPL-2.0-or-later
"""The entries of QubesDB, for verbs that read them once."""

from __future__ import annotations

from collections.abc import Callable

from ..core.settings import PROVIDER_KEY, UPLINK_PREFIXES
from ..errors import StoreError
from ..system.qubesdb import store as qubesdb

STORE_SECONDS = 10.0  # for udev, which can be earlier than qubes-db.service


def entries() -> dict[str, bytes]:
    """Return all relevant entries of this qube.

    Raises:
        StoreError: QubesDB does not answer.
    """
    store = qubesdb.connect()
    try:
        if not store.read(PROVIDER_KEY):
            return qubesdb.read_all(store, UPLINK_PREFIXES)
        from ..core.provider import settings as provider  # the other prefixes pass by the firewall rules of 250 qubes

        return qubesdb.read_all(store, provider.EVERYTHING)
    finally:
        store.close()


def patiently(read: Callable[[], dict[str, bytes]]) -> dict[str, bytes]:
    """Call `read` until QubesDB answers, and return its result.

    Args:
        read: may raise StoreError.

    Raises:
        StoreError: it has not answered in STORE_SECONDS.
    """
    try:
        return read()
    except StoreError:
        import tenacity  # 24 ms and asyncio (in 8.2), only for callers that must wait

    retry = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(StoreError),
        wait=tenacity.wait_exponential(multiplier=0.05, max=1),
        stop=tenacity.stop_after_delay(STORE_SECONDS),
        reraise=True,
    )
    return retry(read)
