# SPDX-License-Identifier: GPL-2.0-or-later
"""Start commands outside the agent's sandbox, in a clean environment, for a bounded time, without waiting."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterable, Mapping

from ..core.namedtuple import NamedTuple
from . import plain_signal as signal
from . import programs
from .systemd import WARNING, log

_SYSTEMD = "/run/systemd/system"
_START_SECONDS = 5.0
_FORK_SECONDS = 1.0  # from a fork to the end of a process that only forks once more


class Command(NamedTuple):
    """One command.

    Args:
        title: for the journal and the name of its unit.
        words: path of the program, and its arguments.
        environment: variables in addition to the clean environment.
        ended: a file that is created when the command has ended, in any way; "" for none. Its background processes may
        still run.
    """

    title: str
    words: tuple[str, ...]
    environment: Mapping[str, str] = {}
    ended: str = ""


def start(commands: Iterable[Command], seconds: float) -> None:
    """Start commands one after the other and return at once. A failure of one is only logged.

    Args:
        commands: in order.
        seconds: time limit of each.

    Raises:
        ProgramError: none of them was started; if only some failed, that is logged.
    """
    systemd_run = programs.find("systemd-run") if os.path.isdir(_SYSTEMD) else ""
    if not systemd_run:
        _supervised(tuple(commands), seconds)
        return
    started, failures = 0, list[programs.ProgramError]()
    for command in commands:
        try:
            _transient(systemd_run, command, seconds)
            started += 1
        except programs.ProgramError as error:
            failures.append(error)
    if failures and not started:
        raise failures[0]
    for failure in failures:
        log(WARNING, str(failure))


def _transient(systemd_run: str, command: Command, seconds: float) -> None:
    """Start one command by systemd. Raises ProgramError."""
    # In a separate unit outside our sandbox; systemd logs its end, output and time limit.
    name = f"qubes-guestnet-{os.path.basename(command.title)}-{time.monotonic_ns()}"
    # "forking": the limit is on the command itself, and a daemon that it leaves behind lives on in the unit (B119).
    values = ("Type=forking", "GuessMainPID=no", f"TimeoutStartSec={seconds:g}", "KillMode=mixed", "TimeoutStopSec=5")
    limits = tuple(f"--property={value}" for value in values)
    limits += _marks(command.ended)
    settings = tuple(f"--setenv={key}={value}" for key, value in command.environment.items())
    words = (systemd_run, "--quiet", "--collect", "--no-block", f"--unit={name}", *limits, *settings, "--")
    try:
        # systemd itself has no such fall-back.
        shell = ("/bin/sh",) if programs.is_script(command.words[0]) else ()
        done = programs.run((*words, *shell, *command.words), _START_SECONDS)
    except programs.ProgramError as error:
        raise programs.ProgramError(f"{command.title} not started: {error}", "trying again") from None
    if done.status:
        raise programs.ProgramError(f"{command.title} not started: {done.output[-200:]}", "trying again")


def _marks(path: str) -> tuple[str, ...]:
    """Return the unit properties that create a file when the command has ended, successfully or not."""
    touch = programs.find("touch") if path else ""
    # The file is created once: ExecStopPost also runs at the end of a daemon that was left behind.
    shell = f"-/bin/sh -c '[ -e {path} ] || exec {touch} {path}'"
    return tuple(f"--property={when}={shell}" for when in ("ExecStartPost", "ExecStopPost")) if touch else ()


def _supervised(commands: tuple[Command, ...], seconds: float) -> None:
    """Start them without systemd: a child of process 1 waits for them."""
    if not commands:
        return
    try:
        between = os.fork()
        if between:
            _wait_for(between)
            return
    except OSError as error:
        raise programs.ProgramError(f"{commands[0].title} not started: {error.strerror}", "trying again") from None
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        _be_alone()
        for command in commands:
            try:
                done = programs.run(command.words, seconds, environment=command.environment, daemons=True)
                if done.status:
                    log(WARNING, f"{command.title} failed with {done.status}: {done.output[-200:]}")
            except programs.ProgramError as error:
                log(WARNING, f"{command.title}: {error}")
            if command.ended:
                try:
                    os.close(os.open(command.ended, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
                except OSError as error:
                    log(WARNING, f"{command.ended}: {error.strerror}; assuming that {command.title} is still running")
    finally:
        os._exit(0)


def _wait_for(between: int) -> None:
    poll = select.poll()
    pidfd = os.pidfd_open(between)
    try:
        poll.register(pidfd, select.POLLIN)
        poll.poll(_FORK_SECONDS * 1000)
    finally:
        os.close(pidfd)
    os.waitpid(between, os.WNOHANG)


def _be_alone() -> None:
    """Release the agent's signals, lock and sockets."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGIO):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
