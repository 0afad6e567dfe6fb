# SPDX-License-Identifier: GPL-2.0-or-later
"""The store: entries of QubesDB read and watched, never waiting longer than the caller allows.

Two connections, because a watch event may arrive between a request and its reply: a `Store` for requests, and
`Watches` for nothing but watches. Order of use: watches first, then the first read, or an update in between is lost
(B77). An event says only "something changed": read everything afresh.

The `qubesdb` binding is used where it is installed (`binding.py`), else the protocol is spoken directly
(`direct.py`). A directory given, or named by QUBES_GUESTNET_QUBESDB_DIR, always means the direct client: the
binding has its socket compiled in.

After a StoreError that is not a StoreRefused the state of the connection is unknown, so it answers every further call
with a StoreError: throw both connections away, wait (`retry_pause`), connect anew, and read everything. Nothing is
logged here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from .direct import DirectStore, DirectWatches

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Protocol

    class Store(Protocol):
        """A connection for requests. Every call raises StoreError when there is no proper answer in time."""

        def read(self, path: str) -> bytes | None:
            """Return the value of one entry; None when there is no such entry, which is not an error."""

        def multiread(self, prefix: str) -> dict[str, bytes]:
            """Return all entries whose path begins with `prefix` (not only in that folder), sorted, in one round
            trip.
            """

        def list(self, prefix: str) -> list[str]:
            """Return the paths that begin with `prefix`, sorted."""

        def write(self, path: str, value: bytes) -> None:
            """Set an entry. Raises StoreRefused on the read-only socket."""

        def rm(self, path: str) -> None:
            """Remove an entry, or with a trailing slash all below; missing entries are ignored. Raises StoreRefused."""

        def close(self) -> None:
            """Close the connection; do nothing if it is closed."""

    class Watches(Protocol):
        """A connection for watches."""

        def fileno(self) -> int:
            """Return the descriptor for poll: readable when drain() has something to say."""

        def watch(self, path: str) -> None:
            """Watch an entry, or with a trailing slash everything below. Existing entries cause no event.

            An event may arrive together with the reply: call drain() afterwards, for fileno() does not show that one.
            """

        def unwatch(self, path: str) -> None:
            """Remove one watch of this path; a missing watch is ignored. Late events may still arrive."""

        paths: tuple[str, ...]

        def drain(self) -> bool:
            """Consume all pending events without waiting; return whether there was one.

            `paths` then holds their paths: each once, in the order of its last event.

            Raises:
                StoreError: the daemon went away, or the watches were lost; connect anew and read everything.
            """

        def close(self) -> None:
            """Close the connection; do nothing if it is closed."""


DIRECTORY = "/var/run/qubes"
DIRECTORY_VARIABLE = "QUBES_GUESTNET_QUBESDB_DIR"
TIMEOUT = 1.0


def connect(*, writable: bool = False, directory: str | None = None, timeout: float = TIMEOUT) -> Store:
    """Connect for requests.

    Args:
        writable: whether write and rm are needed; else the read-only socket is used where there is one.
        directory: where the sockets are; forces the direct client.
        timeout: seconds that connecting, and each request as a whole, may take.

    Raises:
        StoreError: QubesDB is not there, or does not answer.
    """
    directory = directory or os.environ.get(DIRECTORY_VARIABLE)
    if directory is None and (module := _binding()) is not None:
        # Needed only where the binding is installed.
        from .binding import BindingStore

        return BindingStore(module, DIRECTORY, timeout)
    return DirectStore(directory or DIRECTORY, timeout, writable=writable)


def connect_watches(paths: Iterable[str], *, directory: str | None = None, timeout: float = TIMEOUT) -> Watches:
    """Connect for watches; all of them are set on return.

    Args:
        paths: what to watch, see `Watches.watch`.
        directory: where the sockets are; forces the direct client.
        timeout: seconds that connecting, and setting the watches, may take each.

    Raises:
        StoreError: QubesDB is not there, or does not answer.
    """
    directory = directory or os.environ.get(DIRECTORY_VARIABLE)
    if directory is None and (module := _binding()) is not None:
        # Needed only where the binding is installed.
        from .binding import BindingWatches

        return BindingWatches(module, DIRECTORY, timeout, paths)
    return DirectWatches(directory or DIRECTORY, timeout, paths)


def read_all(store: Store, prefixes: Iterable[str]) -> dict[str, bytes]:
    """Return every entry whose path begins with one of the prefixes, in one round trip a prefix.

    Raises:
        StoreError: there is no proper answer in time.
    """
    entries: dict[str, bytes] = {}
    for prefix in prefixes:
        entries |= store.multiread(prefix)
    return entries


_binding_works = True
_OF_THE_BINDING = ("Error", "QubesDB")


def _binding() -> ModuleType | None:
    """Return the system's `qubesdb` module, where it is installed and can be used."""
    global _binding_works
    if not _binding_works:
        return None
    try:
        import qubesdb

        for name in _OF_THE_BINDING:
            getattr(qubesdb, name)
    except ModuleNotFoundError:
        return None
    except Exception as error:  # B149: as one that was built for another Python, or lacks its library
        from ..systemd import WARNING, log

        _binding_works = False
        log(WARNING, f"cannot use the qubesdb binding, using the built-in protocol: {error}")
        return None
    module: ModuleType = qubesdb
    return module
