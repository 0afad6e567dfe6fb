# SPDX-License-Identifier: GPL-2.0-or-later
"""Kill a program with all its descendants, also those in other sessions or process groups.

A daemon calls setsid, so a signal to the process group misses it (behaviour B119). A control group would contain all of
them, but a command called by Xen's hotplug has none. So the descendants are found in /proc: by their parents, and
orphans by an environment variable. All are stopped first, until no further one is found, so that none can start
another. Orphans of another user, or with a changed environment, are not found.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal

from ..errors import KernelError

_PROC = "/proc"
# From SIGKILL to the end. Longer only for a process that waits inside the kernel.
_ENDING_SECONDS = 1.0
_ROUNDS = 64  # each finds what was started before the round before it stopped those that start others


def kill(pid: int, pidfd: int, mark: str) -> None:
    """Kill a child of ours that has not been reaped, and its descendants, and wait a moment for its end.

    Args:
        pid: of the program.
        pidfd: the same.
        mark: NAME=VALUE in the environment of all of them.

    Raises:
        KernelError: /proc cannot be read. The program is killed all the same, and those that were found.
    """
    members = {pid: pidfd}
    try:
        _send(pidfd, signal.SIGSTOP)
        for _ in range(_ROUNDS):
            found = _found(frozenset(members), f"\0{mark}\0".encode())
            if not found:
                break
            for each, fd in found.items():
                _send(fd, signal.SIGSTOP)
                members[each] = fd
    except OSError as error:
        raise KernelError(f"find what process {pid} has started, in {_PROC}", error.errno or errno.EIO) from None
    finally:  # also where /proc cannot be read: what is stopped must not stay
        for each, fd in members.items():
            _send(fd, signal.SIGKILL)
            if each != pid:
                os.close(fd)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(_ENDING_SECONDS * 1000)


def _found(members: frozenset[int], mark: bytes) -> dict[int, int]:
    """Return the descendants of these processes that are not among them: number and pidfd of each."""
    found = dict[int, int]()
    for name in os.listdir(_PROC):
        if not name.isdigit() or int(name) in members or not _belongs(name, members, mark):
            continue
        with contextlib.suppress(OSError):  # it ended just now
            fd = os.pidfd_open(int(name))
            # Another process may have got the number before the pidfd was opened.
            if _belongs(name, members, mark):
                found[int(name)] = fd
            else:
                os.close(fd)
    return found


def _belongs(name: str, members: frozenset[int], mark: bytes) -> bool:
    state, parent = _status(name)
    return state not in ("", "Z", "X") and (parent in members or mark in b"\0" + _read(name, "environ"))


def _status(name: str) -> tuple[str, int]:
    """Return the state and parent of a process; "" for one that is gone."""
    # The name of the program stands in parentheses, and may hold any of what comes before and behind it.
    words = _read(name, "stat").rpartition(b")")[2].split()
    return (words[0].decode(), int(words[1])) if len(words) > 1 else ("", 0)


def _read(name: str, file: str) -> bytes:
    try:
        with open(f"{_PROC}/{name}/{file}", "rb") as opened:
            return opened.read()
    except OSError:
        return b""  # gone, or another user's


def _send(pidfd: int, number: signal.Signals) -> None:
    with contextlib.suppress(OSError):  # it has ended
        signal.pidfd_send_signal(pidfd, number)
