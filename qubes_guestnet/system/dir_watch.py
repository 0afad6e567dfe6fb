# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes in folders as wake-ups: the kernel sends SIGIO (dnotify), which `signals` takes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable

from .systemd import WARNING, log

# fcntl(2), F_NOTIFY
_FOLDER_CHANGES = (
    fcntl.DN_MODIFY | fcntl.DN_CREATE | fcntl.DN_DELETE | fcntl.DN_RENAME | fcntl.DN_ATTRIB | fcntl.DN_MULTISHOT
)

_LINKS = 8  # in a row; people have one


def folders(path: str) -> tuple[str, ...]:
    """Return folders in which something changes when the content of `path` does: its own, and those that links lead to.

    Of one that is not there yet, the nearest one above it that is.
    """
    found, seen = dict[str, None](), set[str]()
    while path not in seen and len(seen) < _LINKS:
        seen.add(path)
        folder = os.path.dirname(path)
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        found[os.path.realpath(folder)] = None
        try:
            path = os.path.join(os.path.dirname(path), os.readlink(path))
        except OSError:
            break
    return tuple(found)


class Folders:
    """The folders that are watched now, which may be others after each pass."""

    def __init__(self) -> None:
        self._watched: dict[tuple[int, int], Folder] = {}
        self._problems: frozenset[str] = frozenset()

    def watch(self, paths: Iterable[str]) -> None:
        """Watch these folders and no others; one that is replaced by another of its name is watched anew.

        A folder that cannot be watched is logged once, and tried again by the next call.
        """
        wanted: dict[tuple[int, int], Folder] = {}
        problems = set()
        for path in paths:
            try:
                status = os.stat(path)
                key = (status.st_dev, status.st_ino)
                if key not in wanted:
                    wanted[key] = self._watched.pop(key) if key in self._watched else Folder(path)
            except (FileNotFoundError, NotADirectoryError):
                continue  # it went just now, which is a change in the one above it
            except PermissionError:
                continue  # systemd-resolved's own folder (0700), in the sandbox without CAP_DAC_READ_SEARCH
            except OSError as error:  # out of file descriptors; a kernel without dnotify
                problems.add(f"{path} is not watched, its changes are noticed late: {error.strerror or error}")
        for problem in sorted(problems - self._problems):
            log(WARNING, problem)
        self._problems = frozenset(problems)
        for gone in self._watched.values():
            gone.close()
        self._watched = wanted


class Folder:
    """Has the kernel send SIGIO when an entry of a folder is written, made, renamed or removed (dnotify).

    inotify would tell the name too, which we do not need, and Python reaches it only through ctypes: 0.3 MB of the
    agent's memory for a wake-up that carries no data (design, budgets).

    Args:
        path: the folder.

    Raises:
        OSError: it is not there, or the kernel has no dnotify.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.fcntl(self._fd, fcntl.F_NOTIFY, _FOLDER_CHANGES)
        except OSError:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """No more signals."""
        os.close(self._fd)
