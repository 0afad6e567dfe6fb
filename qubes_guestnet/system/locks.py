# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel locks on bytes of a file (fcntl), which end with their process and are not inherited by its children.

So a leftover file locks nothing, and a daemon left behind by a user's hook holds no lock. The kernel reports the
holding process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time

from ..errors import FileError, GuestnetError

_POLL_SECONDS = 0.02
_FLOCK = struct.Struct("hhqqi")  # struct flock: type, whence, start, length, process
_HELD = (errno.EAGAIN, errno.EACCES)


class Held(GuestnetError):
    """Another process has the lock.

    Args:
        path: of its file.
        pid: of the process; 0 if it is in another PID namespace.
    """

    def __init__(self, path: str, pid: int) -> None:
        holder = f"process {pid}" if pid > 0 else "a process in another PID namespace"
        super().__init__(f"{path} is locked by {holder}")
        self.pid = pid


def take(path: str, seconds: float, place: int = 0) -> int:
    """Lock one byte of a file until this process closes the descriptor, or any other descriptor of that file.

    Args:
        path: of the file; it and its folder (0755) are created if missing.
        seconds: how long to wait for another process.
        place: which byte; each is a lock of its own.

    Returns:
        The file descriptor.

    Raises:
        Held: another process holds it for longer than that.
        FileError: the file cannot be created or locked.
    """
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise FileError(path, error, "run as root") from None
    deadline = time.monotonic() + seconds
    try:
        while not _locked(fd, path, place):
            if time.monotonic() >= deadline:
                pid = _holder(fd, place)
                if pid is not None:
                    raise Held(path, pid)
            time.sleep(_POLL_SECONDS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _locked(fd: int, path: str, place: int) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
    except OSError as error:
        if error.errno not in _HELD:
            raise FileError(path, error) from None
        return False
    return True


def _holder(fd: int, place: int) -> int | None:
    """Return the process id of the holder; None if the lock has been released."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else int(pid)
