# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a user's hooks: outside the agent's sandbox, in a clean environment, for a bounded time, without waiting."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Iterable

from ..core.hooks import HOOKS, HookFacts
from . import programs
from .systemd import WARNING, log

_SYSTEMD = "/run/systemd/system"
_START_SECONDS = 5.0


def facts(paths: Iterable[str] = HOOKS) -> tuple[HookFacts, ...]:
    """The hooks as they are on disk; those that are not there are left out."""
    found = []
    for path in paths:
        try:
            mode = os.stat(path).st_mode
        except OSError:
            continue
        executable = stat.S_ISREG(mode) and bool(mode & 0o111)
        found.append(HookFacts(path, executable, os.path.realpath(path)))
    return tuple(found)


def start(paths: Iterable[str], seconds: float) -> None:
    """Start the hooks one after the other and return at once. A failure is logged and harms nothing.

    Args:
        paths: the hooks.
        seconds: time limit of each.
    """
    systemd_run = programs.find("systemd-run") if os.path.isdir(_SYSTEMD) else ""
    if systemd_run:
        for path in paths:
            _transient(systemd_run, path, seconds)
    else:
        _supervised(tuple(paths), seconds)


def _transient(systemd_run: str, path: str, seconds: float) -> None:
    # A unit of its own: not in our sandbox, and its end, its output and its time limit are systemd's to log.
    name = f"qubes-guestnet-hook-{os.path.basename(path)}-{time.monotonic_ns()}"
    limits = (f"--property=RuntimeMaxSec={seconds:g}", "--property=KillMode=mixed", "--property=TimeoutStopSec=5")
    command = (systemd_run, "--quiet", "--collect", "--no-block", f"--unit={name}", *limits, "--", path)
    try:
        done = programs.run(command, _START_SECONDS)
    except programs.ProgramError as error:
        log(WARNING, f"hook {path} not started: {error}")
        return
    if done.status:
        log(WARNING, f"hook {path} not started: {done.output}")


def _supervised(paths: tuple[str, ...], seconds: float) -> None:
    """Without systemd as process 1: a process of ours waits for them, and process 1 for that one."""
    between = os.fork()
    if between:
        os.waitpid(between, 0)
        return
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        _be_alone()
        for path in paths:
            try:
                done = programs.run((path,), seconds)
                if done.status:
                    log(WARNING, f"hook {path} failed with {done.status}: {done.output[-200:]}")
            except programs.ProgramError as error:
                log(WARNING, f"hook {error}")
    finally:
        os._exit(0)


def _be_alone() -> None:
    """Let go of what is the agent's: its signals, its lock and its sockets."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGIO):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
