# SPDX-License-Identifier: GPL-2.0-or-later
"""A stand-in for the system's `qubesdb` binding, with the C library's traps, for machines that do not have it.

It goes by plain read() and write() of libc, because Python's own would hide an interrupted call. Kept as there:

- a header is taken in one read(), and a shorter one is given up on, leaving the stream where it is;
- errno is whatever the last failing call left, so an error may look like ENOENT and be reported as "no such entry";
- EPIPE on a request makes it connect anew without a word and without the watches;
- events that come before a reply go into a list, newest first, that poll() does not see;
- read_watch() blocks; an answer it did not expect ends the process (here: `Aborted`).
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import os
import signal
import socket
import struct

SOCKET = "/var/run/qubes/qubesdb.sock"  # compiled in over there; tests set it

READ, WRITE, MULTIREAD, LIST, RM, WATCH, UNWATCH, OK, NOENT, ERROR, R_READ, R_MULTIREAD, R_LIST, R_WATCH = range(14)
_HEADER = struct.Struct("=B64s3xI")
_libc = ctypes.CDLL(None, use_errno=True)


class Aborted(BaseException):
    """The process would be gone: assert() in the C library."""


class Error(RuntimeError):
    """Raised on errors."""


class DisconnectedError(Error):
    """Raised when the connection to the daemon was broken."""


class _Failed(Exception):
    """A C function returned NULL, 0 or -1; why is in errno, or not."""


def _read(fd: int, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    count = _libc.read(fd, buffer, size)
    if count < 0:
        raise _Failed
    return buffer.raw[:count]


def _write(fd: int, data: bytes) -> bool:
    # A Python process ignores SIGPIPE, so this is EPIPE and no death.
    return bool(_libc.write(fd, data, len(data)) == len(data))


class QubesDB:
    """A connection. Methods raise Error, DisconnectedError, or OSError when a signal interrupted them."""

    def __init__(self) -> None:
        assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
        self._fd = -1
        self._open = True
        self._pending: list[str] = []
        self._connected = self._connect()
        if not self._connected:
            raise Error(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def read(self, path: str) -> bytes | None:
        try:
            self._send(READ, path)
            kind, _, length = self._response()
            if kind == NOENT:
                ctypes.set_errno(errno.ENOENT)
                raise _Failed
            if kind == ERROR:
                raise _Failed
            _expect(kind == R_READ)
            return self._data(length)
        except _Failed:
            _none(ctypes.get_errno() == errno.ENOENT)
            return None

    def multiread(self, path: str) -> dict[str, bytes] | None:
        try:
            self._send(MULTIREAD, path)
            found: dict[str, bytes] = {}
            while True:
                kind, name, length = self._response()
                _expect(kind == R_MULTIREAD)
                if not name:
                    return found
                found[name] = self._data(length)
        except _Failed:
            _none(ctypes.get_errno() == errno.ENOENT)
            return None

    def list(self, path: str) -> builtins.list[str] | None:
        try:
            self._send(LIST, path)
            found: builtins.list[str] = []
            while True:
                kind, name, _ = self._response()
                if kind == ERROR:
                    raise _Failed
                _expect(kind == R_LIST)
                if not name:
                    return found
                found.append(name)
        except _Failed:
            _none(ctypes.get_errno() == errno.ENOENT)
            return None

    def write(self, path: str, data: str | bytes) -> None:
        value = data.encode() if isinstance(data, str) else data
        try:
            if len(value) > 3072:
                raise _Failed
            self._send(WRITE, path, value)
            kind, _, _ = self._response()
            if kind == ERROR:
                raise _Failed
            _expect(kind == OK)
        except _Failed:
            _none(False)

    def rm(self, path: str) -> None:
        try:
            self._simple(RM, path)
        except _Failed:
            _none(ctypes.get_errno() == errno.ENOENT)

    def watch(self, path: str) -> None:
        try:
            self._simple(WATCH, path)
        except _Failed:
            _none(False)

    def unwatch(self, path: str) -> None:
        try:
            self._simple(UNWATCH, path)
        except _Failed:
            _none(False)

    def read_watch(self) -> str:
        if self._pending:
            return self._pending.pop()
        try:
            raw = _read(self._fd, _HEADER.size)
            if len(raw) < _HEADER.size:
                if not raw:
                    ctypes.set_errno(errno.EPIPE)
                raise _Failed
        except _Failed:
            _none(False)
        kind, path, _ = _HEADER.unpack(raw)
        _expect(kind == R_WATCH)
        return str(path.partition(b"\0")[0], "ascii")

    def watch_fd(self) -> int:
        if not self._open:
            raise Error(errno.EINVAL, os.strerror(errno.EINVAL))
        if not self._connected and not self._connect():
            ctypes.set_errno(errno.EPIPE)
            _none(False)
        return self._fd

    def close(self) -> None:
        if self._open and self._connected:
            _libc.shutdown(self._fd, socket.SHUT_RDWR)
            os.close(self._fd)
        self._open = False

    def __del__(self) -> None:
        self.close()

    def _connect(self) -> bool:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        address = struct.pack("=H108s", socket.AF_UNIX, os.fsencode(SOCKET))
        if _libc.connect(sock.fileno(), address, len(address)) < 0:
            sock.close()
            self._fd = -1
            return False
        self._fd = sock.detach()
        return True

    def _send(self, kind: int, path: str, data: bytes | None = None) -> None:
        if not self._open:
            raise Error(errno.EINVAL, os.strerror(errno.EINVAL))
        raw = path.encode()
        if b"\0" in raw:
            raise TypeError("null byte in path")
        if not raw.startswith(b"/") or len(raw) >= 64:
            raise _Failed
        header = _HEADER.pack(kind, raw, len(data or b""))
        if not self._connected and not self._connect():  # nor is it ever set again over there
            ctypes.set_errno(errno.EPIPE)
            raise _Failed
        if not _write(self._fd, header):
            if ctypes.get_errno() != errno.EPIPE:
                raise _Failed
            os.close(self._fd)
            if not self._connect():
                self._connected = False
                ctypes.set_errno(errno.EPIPE)
                raise _Failed
            if not _write(self._fd, header):
                raise _Failed
            return  # the data is forgotten
        if data is not None and not _write(self._fd, data):
            raise _Failed

    def _response(self) -> tuple[int, str, int]:
        while True:
            raw = _read(self._fd, _HEADER.size)
            if not raw:
                self._connected = False
                os.close(self._fd)
                ctypes.set_errno(errno.EPIPE)
                raise _Failed
            if len(raw) < _HEADER.size:
                raise _Failed
            kind, path, length = _HEADER.unpack(raw)
            name = str(path.partition(b"\0")[0], "ascii")
            if kind != R_WATCH:
                return kind, name, length
            _expect(length == 0)
            self._pending.append(name)

    def _data(self, length: int) -> bytes:
        value = b""
        while len(value) < length:
            piece = _read(self._fd, length - len(value))
            if not piece:
                raise _Failed
            value += piece
        return value

    def _simple(self, kind: int, path: str) -> None:
        self._send(kind, path)
        kind, _, _ = self._response()
        if kind == ERROR:
            raise _Failed
        _expect(kind in (OK, NOENT))


def _expect(condition: bool) -> None:
    if not condition:
        raise Aborted("assertion failed in libqubesdb")


def _none(result: bool) -> None:
    """What the binding does with a failure; the errno it looks at may be an old one."""
    if result:
        return
    number = ctypes.get_errno()
    if number == errno.EPIPE:
        raise DisconnectedError("QubesDB disconnected")
    if number == errno.EINTR:
        raise OSError(number, os.strerror(number))
    raise Error(number, os.strerror(number))
