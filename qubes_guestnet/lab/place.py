# SPDX-License-Identifier: GPL-2.0-or-later
"""The folder of an interactive lab, with a lock, a socket and a log.

The lab holds the lock while any of its processes exists; the kernel releases it with the last one. So the leftovers of
a killed lab are recognised as stale without a process id, which another process could have by now.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import UsageError
from .namespaces import LabError

DEFAULT = "lab"
UP_REMEDY = "qubes-guestnet lab up TREE"
_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_LONGEST = 31
_PRIVATE = 0o700
_BACKLOG = 16
_ATTEMPTS = 100


def base() -> Path:
    """Return the folder of all labs of this user."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and os.access(runtime, os.W_OK | os.X_OK):
        return Path(runtime) / "qubes-guestnet-lab"
    return Path(f"/tmp/qubes-guestnet-lab-{os.geteuid()}")


class Place:
    """The place of one lab.

    Args:
        name: of the lab.

    Raises:
        UsageError: no name for a lab.
    """

    def __init__(self, name: str = DEFAULT) -> None:
        if not _CHARACTERS.issuperset(name) or not 0 < len(name) <= _LONGEST:
            raise UsageError(f"{name!r} is not a valid name of a lab", f"letters, digits, - and _, at most {_LONGEST}")
        self.name = name
        self.folder = base() / name
        self.log = self.folder / "log"
        self._lock = self.folder / "lock"

    def claim(self) -> int:
        """Claim the folder for a new lab and remove leftovers; return a descriptor that holds it while open.

        Raises:
            LabError: a lab of that name is up, or the folder cannot be used.
        """
        with _refusals(self.folder):
            return self._claimed()

    def _claimed(self) -> int:
        lock = self._locked()
        if lock is None:
            other = f"end it by `qubes-guestnet lab down --name {self.name}`, or give another --name"
            raise LabError(f"a lab named {self.name} is up already", other)
        for file in self.folder.iterdir():
            if file != self._lock:
                file.unlink()
        return lock

    def clear(self) -> bool:
        """Remove the leftovers of an ended lab; return False while it runs. LabError: the folder cannot be used."""
        with _refusals(self.folder):
            if not self.folder.is_dir():
                return True
            lock = self._locked()
        if lock is None:
            return False
        self.remove()
        os.close(lock)
        return True

    def remove(self) -> None:
        """Remove all files of the place. Only its holder may call this."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # other labs are in there
            self.folder.parent.rmdir()

    def _locked(self) -> int | None:
        for _ in range(_ATTEMPTS):
            try:
                _private(self.folder.parent)
                _private(self.folder)
                lock = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                return None
            except FileNotFoundError:
                continue  # the former holder has just removed the folder
            # Its former holder may have removed it between these two steps: then no other process would find this lock.
            if self._lock.exists() and os.path.samestat(os.fstat(lock), self._lock.stat()):
                return lock
            os.close(lock)
        raise LabError(f"another program keeps removing {self.folder}", "set XDG_RUNTIME_DIR to a folder of your own")

    # --- its socket --------------------------------------------------------------------------------------------

    def listen(self) -> socket.socket:
        """Return the socket the lab answers at."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        _with_path(self.folder, listener.bind)
        listener.listen(_BACKLOG)
        return listener

    def connect(self) -> socket.socket:
        """Return a connection to the lab; LabError if it is not up, or its folder cannot be used.

        If another user owned the folder, that user's program could answer and get the descriptors of `lab exec`.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _refusals(self.folder):
                for folder in (self.folder.parent, self.folder):
                    _check_private(folder)
                _with_path(self.folder, connection.connect)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            raise self._not_up() from None
        except LabError:
            connection.close()
            raise
        return connection

    def _not_up(self) -> LabError:
        others = names() if self.name == DEFAULT else ()
        if others:
            return LabError(f"no lab named {DEFAULT} is up, but {', '.join(others)}", f"give --name {others[0]}")
        which = "no lab is up" if self.name == DEFAULT else f"no lab named {self.name} is up"
        return LabError(which, f"{UP_REMEDY}{named(self.name)}")


@contextlib.contextmanager
def _refusals(folder: Path) -> Iterator[None]:
    """Turn errors of system calls into LabError, except missing files, which the caller handles."""
    try:
        yield
    except (FileNotFoundError, ConnectionRefusedError):
        raise
    except OSError as error:
        raise LabError(f"{folder}: {error.strerror}", "set XDG_RUNTIME_DIR to a folder of your own") from error


def named(name: str) -> str:
    """Return the option that a command needs to mean the lab of this name; "" for the default one."""
    return "" if name == DEFAULT else f" --name {name}"


def names() -> tuple[str, ...]:
    """Return the labs that are up. LabError: their folder cannot be read."""
    with _refusals(base()):
        folders = list(base().iterdir()) if base().is_dir() else []
    found = []
    for folder in folders:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
            _with_path(folder, probe.connect)
            found.append(folder.name)
    return tuple(sorted(found))


def _with_path(folder: Path, call: Callable[[str], None]) -> None:
    """Call with a short path of the socket: the real one may be longer than the 107 bytes that unix(7) has for it."""
    descriptor = os.open(folder, os.O_PATH)
    try:
        call(f"/proc/self/fd/{descriptor}/socket")
    finally:
        os.close(descriptor)


def _private(folder: Path) -> None:
    """Make a folder that no other user may look into; LabError when one is there that is not so."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(_PRIVATE)
    _check_private(folder)


def _check_private(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise LabError(f"{folder} is not owned by you with mode 700", "remove it, or set XDG_RUNTIME_DIR")
