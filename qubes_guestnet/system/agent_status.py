# SPDX-License-Identifier: GPL-2.0-or-later
"""The state that the resident agent publishes in /run for `status` and `check`: running, since when, last error."""

from __future__ import annotations

import os
import time

from ..core.report import Standing
from ..errors import FileError, GuestnetError
from . import files, locks
from .systemd import WARNING, log

_NAME, _LOCK = "status", "agent.lock"
# One that was told to end may be at its last steps.
_ENDING_SECONDS = 1.0


def claim(folder: str) -> None:
    """Be the agent of this folder for the rest of this process's life (behaviour B144).

    Where no lock can be had, as on a full or read-only file system, the qube has its network all the same.

    Args:
        folder: /run/qubes-guestnet.

    Raises:
        GuestnetError: another process is.
    """
    try:
        locks.take(os.path.join(folder, _LOCK), _ENDING_SECONDS)
    except locks.Held as held:
        which = f"process {held.pid}" if held.pid > 0 else "in another PID namespace"
        problem = f"an agent is already running: {which}"
        raise GuestnetError(problem, "systemctl restart qubes-guestnet replaces it") from None
    except FileError as error:
        log(WARNING, f"cannot exclude a second agent: {error}")


def publish(folder: str, error: str) -> None:
    """Note this process as the agent, now as the time of the last change, and its last error.

    Args:
        folder: /run/qubes-guestnet.
        error: one line, "" for none.

    Raises:
        FileError: the folder cannot be written.
    """
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    text = f"agent {os.getpid()} {_start(os.getpid())}\nsince {now}\nerror {error}\n"
    try:
        os.makedirs(folder, mode=0o755, exist_ok=True)
    except OSError as failure:
        raise FileError(folder, failure, "run as root") from None
    files.publish(os.path.join(folder, _NAME), text.encode("utf-8", "replace"), sync=False)


def read(folder: str) -> Standing:
    """Return what the agent left; `running` only if that very process is there still."""
    data = files.read(os.path.join(folder, _NAME))
    facts = dict(line.partition(" ")[::2] for line in (data or b"").decode("utf-8", "replace").splitlines())
    pid, _, start = facts.get("agent", "").partition(" ")
    running = pid.isdecimal() and start != "" and _start(int(pid)) == start
    return Standing(running, facts.get("since", ""), facts.get("error", "") if running else "")


def _start(pid: int) -> str:
    """Start time of a process in clock ticks since boot, field 22 of proc(5) stat: a number that is not used again."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[19].decode()
    except OSError:
        return ""
