# SPDX-License-Identifier: GPL-2.0-or-later
"""The store through the system's `qubesdb` binding, made to behave as the direct client does.

What the C library below it does, and what is done about it here:

- It waits without limit. Its socket is given the kernel's send and receive timeouts, so every single read or write of
  it is bounded by `timeout` (not the request as a whole: a daemon that sends an entry now and then may take longer).
  Its connect() cannot be bounded from outside: the direct client asks something first, and the binding connects only
  after an answer. A daemon that stops in the microseconds between, with its queue full, would still hold us.
- After the daemon went away it connects anew by itself, without the watches. Seen by the inode of its socket, after
  every call, and by looking for the end of the stream before.
- A signal in the middle of a request leaves the answer on the stream. All signals are held during a call.
- An error can be told only by what happens to be in errno: a broken answer to READ may look like "no such entry",
  a refused RM like success. So `read` goes by MULTIREAD, whose result is unmistakable, and `rm` looks again, by a
  connection of its own: the rest of a broken answer may follow on the first one, and would end the process (below).
- It ends the process by assert() on an answer it does not expect. Paths are checked before, and an event is looked
  at before it is read.
- It keeps events that came in the middle of a request in a list that poll() does not show, newest first.
- It always uses the read-write socket.
"""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Iterable
from types import ModuleType

from ...errors import StoreError, StoreRefused
from .. import plain_signal as signal
from .. import plain_socket as socket
from . import wire
from .direct import READ_WRITE, DirectStore, checked_path, checked_value

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from typing import Any

_REFUSABLE = ("write", "rm")
_HANG_UP_SECONDS = 0.2
_EVENTS_A_DRAIN = 1000  # a writer that is faster than this reader must not block the loop


class _Handle:
    """One connection of the library; `watches`: events come on it, so something may wait before a request."""

    def __init__(self, module: ModuleType, directory: str, timeout: float, *, watches: bool = False) -> None:
        self._watches = watches
        self._path = os.path.join(directory, READ_WRITE)
        self._timeout = timeout
        self._errors = (module.Error, OSError)
        self._problem = ""
        self._all_signals = signal.valid_signals()
        probe = DirectStore(directory, timeout, writable=True)
        try:
            probe.read("/")
        finally:
            probe.close()
        try:
            self._db = module.QubesDB()  # signals are not held: nothing can get mixed up yet, and this may wait
            self._fd: int = self._db.watch_fd()
        except self._errors as error:
            raise self.broken(f"cannot be reached: {error}") from error
        # A duplicate: the library may close its own at any time, and the number may then be another file.
        self.sock = socket.socket(fileno=os.dup(self._fd))
        self._inode = os.fstat(self._fd).st_ino
        seconds = max(timeout, 0.001)
        timeval = struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self.sock.setsockopt(socket.SOL_SOCKET, option, timeval)

    def broken(self, problem: str) -> StoreError:
        """Give the connection up."""
        self._problem = problem
        return StoreError(f"QubesDB at {self._path} {problem}", "is qubes-db.service running?")

    def waiting(self, size: int) -> bytes:
        """Up to `size` bytes that the library has not read yet; they stay there."""
        try:
            found = self.sock.recv(size, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise self.broken(f"went away: {error.strerror}") from error
        if not found:
            raise self.broken("closed the connection")
        return found

    def nothing_waits(self) -> None:
        """Give the connection up if there is an answer that no request asked for: the library would mix it up."""
        if self.waiting(1):
            raise self.broken("sent an answer without a request")

    def whole(self, size: int) -> bytes:
        """Return what is waiting, once it is nothing or `size` bytes; less only after the timeout.

        MSG_WAITALL is of no use here: an AF_UNIX socket does not wait for the rest when it is asked to peek.
        """
        deadline = time.monotonic() + self._timeout
        found = self.waiting(size)
        while 0 < len(found) < size and time.monotonic() < deadline:
            time.sleep(0.001)
            found = self.waiting(size)
        return found

    def call(self, method: str, *args: Any) -> Any:
        """Call the library, and find out whether it still has the same connection.

        Raises:
            StoreError: it failed, or connected anew.
            StoreRefused: it failed although nothing is wrong with the connection.
        """
        if self._problem:
            raise self.broken(self._problem)
        if self._watches:
            self.waiting(1)
        else:
            self.nothing_waits()
        # Given up unless we get to the end, also when an exception comes from somewhere else.
        self._problem = "was interrupted during a request"
        started = time.monotonic()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._all_signals)
        try:
            result = getattr(self._db, method)(*args)
        except self._errors as error:
            if time.monotonic() - started >= self._timeout:
                raise self.broken(f"did not answer within {self._timeout:g} s") from error
            self._same()
            # Half an answer fails like a refusal, and only the hang-up behind it tells the two apart.
            select.select([self.sock], [], [], _HANG_UP_SECONDS)
            if method not in _REFUSABLE or self.waiting(1):
                raise self.broken(f"failed to {method}: {error}") from error
            self._problem = ""
            raise StoreRefused(f"QubesDB at {self._path} refused {args[0] if args else method}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._same()
        self._problem = ""
        return result

    def close(self) -> None:
        """Close both."""
        if self.sock.fileno() >= 0:
            self._problem = "connection is closed"
            self.sock.close()
            self._db.close()

    def _same(self) -> None:
        try:
            inode = os.fstat(self._fd).st_ino
        except OSError:
            inode = -1
        if inode != self._inode:
            raise self.broken("closed the connection, and dropped the watches")


class BindingStore:
    """`Store` through the binding.

    Args:
        module: the `qubesdb` module.
        directory: where the library's socket is.
        timeout: seconds, see the top of this file.
    """

    def __init__(self, module: ModuleType, directory: str, timeout: float) -> None:
        self._handle = _Handle(module, directory, timeout)
        self._anew = (module, directory, timeout)

    def read(self, path: str) -> bytes | None:
        """See `Store.read`."""
        return self.multiread(path).get(path)

    def multiread(self, prefix: str) -> dict[str, bytes]:
        """See `Store.multiread`."""
        result = self._call("multiread", prefix)
        if not isinstance(result, dict):
            raise self._handle.broken("did not answer")
        return result

    def list(self, prefix: str) -> list[str]:
        """See `Store.list`."""
        result = self._call("list", prefix)
        if not isinstance(result, list):
            raise self._handle.broken("did not answer")
        return result

    def write(self, path: str, value: bytes) -> None:
        """See `Store.write`."""
        checked_path(path, entry=True)
        self._call("write", path, checked_value(path, value))

    def rm(self, path: str) -> None:
        """See `Store.rm`."""
        self._call("rm", path)
        second_look = BindingStore(*self._anew)
        try:
            if any(found == path or path.endswith("/") for found in second_look.list(path)):
                raise StoreRefused(f"QubesDB refused to remove {path}")
        finally:
            second_look.close()
        self._handle.nothing_waits()  # the daemon has had the time to send the rest of its answer, or to hang up

    def close(self) -> None:
        """See `Store.close`."""
        self._handle.close()

    def _call(self, method: str, path: str, *args: bytes) -> Any:
        checked_path(path)
        result = self._handle.call(method, path, *args)
        self._handle.nothing_waits()
        return result


class BindingWatches:
    """`Watches` through the binding.

    Args:
        module: the `qubesdb` module.
        directory: where the library's socket is.
        timeout: seconds, see the top of this file.
        paths: what to watch.
    """

    def __init__(self, module: ModuleType, directory: str, timeout: float, paths: Iterable[str]) -> None:
        self._handle = _Handle(module, directory, timeout, watches=True)
        self.paths: tuple[str, ...] = ()
        try:
            for path in paths:
                self.watch(path)
        except StoreError:
            self.close()
            raise
        self._woken = False  # the caller reads everything after this anyway

    def fileno(self) -> int:
        """See `Watches.fileno`."""
        return self._handle.sock.fileno()

    def watch(self, path: str) -> None:
        """See `Watches.watch`."""
        self._ask("watch", path)

    def unwatch(self, path: str) -> None:
        """See `Watches.unwatch`."""
        self._ask("unwatch", path)

    def drain(self) -> bool:
        """See `Watches.drain`.

        Waits up to the timeout if only a part of an event is there, which no known daemon sends.
        """
        woken, self._woken = self._woken, False
        told = list[str]()
        for _ in range(_EVENTS_A_DRAIN):
            event = self._handle.whole(wire.HEADER_SIZE)
            if not event:
                break
            if len(event) < wire.HEADER_SIZE or event[0] != wire.RESP_WATCH:
                raise self._handle.broken("sent an answer without a request")
            path = self._handle.call("read_watch")
            told.append(path.decode("latin-1") if isinstance(path, bytes) else path)
            woken = True
        self.paths = wire.in_order(told)
        return woken

    def close(self) -> None:
        """See `Watches.close`."""
        self._handle.close()

    def _ask(self, method: str, path: str) -> None:
        checked_path(path)
        # The library may have put an event aside meanwhile; there is no way to ask it.
        self._woken = True
        self._handle.call(method, path)
