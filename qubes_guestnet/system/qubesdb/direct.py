# SPDX-License-Identifier: GPL-2.0-or-later
"""The client of the store that speaks the protocol itself: non-blocking sockets, one deadline a request."""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Iterable

from ...errors import StoreError, StoreRefused
from .. import plain_socket as socket
from . import wire

READ_WRITE = "qubesdb.sock"
READ_ONLY = "qubesdb.ro.sock"
_CHUNK = 65536
_REMEDY = "is qubes-db.service running?"


def checked_path(path: str, *, entry: bool = False) -> bytes:
    """Return a path as it goes over the wire.

    Checked before it is sent because a refused WRITE costs the connection, and because the C library aborts the whole
    process when MULTIREAD is answered with ERROR.

    Args:
        path: what the caller asked for.
        entry: it must name one entry, so no trailing slash.

    Raises:
        StoreRefused: QubesDB would not take it.
    """
    raw = path.encode("ascii", "replace")  # "?" is not allowed in a path either
    if not raw.startswith(b"/") or not wire.valid_path(raw) or (entry and raw.endswith(b"/")):
        raise StoreRefused(
            f"{path[:80]!r} is not a QubesDB {'entry' if entry else 'path'}",
            "it must begin with a slash, be shorter than 64 bytes and consist of A-Z a-z 0-9 _ . : / @ -",
        )
    return raw


def checked_value(path: str, value: bytes) -> bytes:
    """Return a value as it goes over the wire.

    Raises:
        StoreRefused: QubesDB would not take it.
    """
    if len(value) >= wire.DATA_LIMIT or b"\0" in value:
        raise StoreRefused(f"{path}: the value cannot be stored", "it must be shorter than 3072 bytes, without NUL")
    return value


class _Link:
    """One connection of the direct client: requests out, headers and data in, with one deadline a request."""

    def __init__(self, path: str, timeout: float) -> None:
        self.path = path
        self.timeout = timeout
        self.deadline = 0.0
        self.events: list[bytes] = []
        self._buffer = bytearray()
        self._problem = ""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # A hung daemon accepts no more, and connect() then waits for a place in its queue; this bounds it. A
            # non-blocking connect would not wait at all and fail in the rush at boot.
            seconds = max(timeout, 0.001)
            timeval = struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
            self.sock.connect(path)
            self.sock.setblocking(False)
        except OSError:
            self.sock.close()
            raise

    def broken(self, problem: str) -> StoreError:
        """Give the connection up: what is on it is no longer known."""
        self._problem = problem
        return StoreError(f"QubesDB at {self.path} {problem}", _REMEDY)

    def start(self, message: bytes) -> None:
        """Begin a request: send it, the clock runs from here to the last byte of the answer."""
        if self._problem:
            raise self.broken(self._problem)
        # Given up unless the whole answer was read, whatever interrupts us: an exception out of a signal handler too.
        self._problem = "was interrupted during a request"
        self.deadline = time.monotonic() + self.timeout
        view = memoryview(message)
        while view:
            try:
                view = view[self.sock.send(view, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                self._wait(select.POLLOUT)
            except OSError as error:
                raise self.broken(f"went away: {error.strerror}") from error

    def done(self) -> None:
        """Note that the whole answer was read."""
        self._problem = ""

    def header(self) -> wire.Header:
        """Return the next header that is not a watch event; those are kept in `events`."""
        while True:
            header = wire.unpack(self._take(wire.HEADER_SIZE))
            if header.length >= wire.DATA_LIMIT:
                raise self.broken("sent a malformed answer")
            if header.kind != wire.RESP_WATCH:
                return header
            self.events.append(header.path)

    def data(self, header: wire.Header) -> bytes:
        """Return the data that follows this header."""
        return self._take(header.length)

    def pending(self) -> list[bytes]:
        """Return the paths of the events that are there now, without waiting."""
        if self._problem:
            raise self.broken(self._problem)
        received = _CHUNK
        while received == _CHUNK:  # a short read emptied the socket
            received = self._receive()
        while len(self._buffer) >= wire.HEADER_SIZE:
            header = wire.unpack(self._buffer)
            if header.kind != wire.RESP_WATCH or header.length:
                raise self.broken("sent an answer without a request")
            self.events.append(header.path)
            del self._buffer[: wire.HEADER_SIZE]
        events, self.events = self.events, []
        return events

    def close(self) -> None:
        """Close the socket."""
        self._problem = "connection is closed"
        self.sock.close()

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            if self._receive() < 0:
                self._wait(select.POLLIN)
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _receive(self) -> int:
        """Read what is there; -1 when nothing is."""
        try:
            chunk = self.sock.recv(_CHUNK)
        except BlockingIOError:
            return -1
        except OSError as error:
            raise self.broken(f"went away: {error.strerror}") from error
        if not chunk:
            raise self.broken("closed the connection")
        self._buffer += chunk
        return len(chunk)

    def _wait(self, event: int) -> None:
        poll = select.poll()
        poll.register(self.sock, event)
        left = self.deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise self.broken(f"did not answer within {self.timeout:g} s")


def _open(directory: str, timeout: float, names: tuple[str, ...]) -> _Link:
    """Connect to the first of these sockets that exists."""
    for name in names:
        path = os.path.join(directory, name)
        try:
            return _Link(path, timeout)
        except FileNotFoundError:
            continue
        except BlockingIOError as error:
            raise StoreError(f"QubesDB at {path} did not accept within {timeout:g} s", "does it hang?") from error
        except OSError as error:
            raise StoreError(f"QubesDB at {path}: {error.strerror or error}", _REMEDY) from error
    raise StoreError(f"no QubesDB in {directory}", _REMEDY)


class DirectStore:
    """`Store` that speaks the protocol itself.

    Args:
        directory: where the sockets are.
        timeout: seconds that connecting, and each request as a whole, may take.
        writable: use the read-write socket. Else the read-only one; before Qubes 4.3 there is only the other.
    """

    def __init__(self, directory: str, timeout: float, *, writable: bool = False) -> None:
        self._link = _open(directory, timeout, (READ_WRITE,) if writable else (READ_ONLY, READ_WRITE))

    def read(self, path: str) -> bytes | None:
        """See `Store.read`."""
        header = self._ask(wire.CMD_READ, checked_path(path), wire.RESP_READ, wire.RESP_NOENT)
        value = None if header.kind == wire.RESP_NOENT else self._link.data(header)
        self._link.done()
        return value

    def multiread(self, prefix: str) -> dict[str, bytes]:
        """See `Store.multiread`."""
        header = self._ask(wire.CMD_MULTIREAD, checked_path(prefix), wire.RESP_MULTIREAD)
        entries = {}
        while header.path:
            entries[header.path.decode("latin-1")] = self._link.data(header)
            header = self._next(wire.RESP_MULTIREAD)
        self._link.done()
        return entries

    def list(self, prefix: str) -> list[str]:
        """See `Store.list`."""
        header = self._ask(wire.CMD_LIST, checked_path(prefix), wire.RESP_LIST)
        paths = []
        while header.path:
            paths.append(header.path.decode("latin-1"))
            header = self._next(wire.RESP_LIST)
        self._link.done()
        return paths

    def write(self, path: str, value: bytes) -> None:
        """See `Store.write`."""
        self._ask(wire.CMD_WRITE, checked_path(path, entry=True), wire.RESP_OK, data=checked_value(path, value))
        self._link.done()

    def rm(self, path: str) -> None:
        """See `Store.rm`."""
        self._ask(wire.CMD_RM, checked_path(path), wire.RESP_OK, wire.RESP_NOENT)
        self._link.done()

    def close(self) -> None:
        """See `Store.close`."""
        self._link.close()

    def _ask(self, command: int, path: bytes, *expected: int, data: bytes = b"") -> wire.Header:
        self._link.start(wire.pack(command, path, data))
        header = self._next(*expected, wire.RESP_ERROR)
        if header.kind == wire.RESP_ERROR:
            self._link.done()
            raise StoreRefused(f"QubesDB at {self._link.path} refused {path.decode()}", "is it the read-only socket?")
        return header

    def _next(self, *expected: int) -> wire.Header:
        header = self._link.header()
        if header.kind not in expected:
            raise self._link.broken("sent an answer without a request")
        return header


class DirectWatches:
    """`Watches` that speaks the protocol itself.

    Args:
        directory: where the sockets are.
        timeout: seconds that connecting, and setting the watches, may take each.
        paths: what to watch; set in one round trip.
    """

    def __init__(self, directory: str, timeout: float, paths: Iterable[str]) -> None:
        self._link = _open(directory, timeout, (READ_ONLY, READ_WRITE))
        self.paths: tuple[str, ...] = ()
        try:
            self._set(wire.CMD_WATCH, [checked_path(path) for path in paths])
        except StoreError:
            self.close()
            raise

    def fileno(self) -> int:
        """See `Watches.fileno`."""
        return self._link.sock.fileno()

    def watch(self, path: str) -> None:
        """See `Watches.watch`."""
        self._set(wire.CMD_WATCH, [checked_path(path)])

    def unwatch(self, path: str) -> None:
        """See `Watches.unwatch`."""
        self._set(wire.CMD_UNWATCH, [checked_path(path)])

    def drain(self) -> bool:
        """See `Watches.drain`."""
        pending = self._link.pending()
        self.paths = wire.in_order(path.decode("latin-1") for path in pending)
        return bool(pending)

    def events(self) -> list[str]:
        """Return the paths of the pending events, for `lab store watch`; the agent does not need them."""
        return [path.decode("latin-1") for path in self._link.pending()]

    def close(self) -> None:
        """See `Watches.close`."""
        self._link.close()

    def _set(self, command: int, paths: list[bytes]) -> None:
        self._link.start(b"".join([wire.pack(command, path) for path in paths]))
        for path in paths:
            header = self._link.header()
            if header.kind not in (wire.RESP_OK, wire.RESP_NOENT):
                raise self._link.broken(f"does not watch {path.decode()}")
        self._link.done()
