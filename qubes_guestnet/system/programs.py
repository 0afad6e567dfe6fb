# SPDX-License-Identifier: GPL-2.0-or-later
"""Run other programs for a bounded time. By posix_spawn: `subprocess` costs 8 ms and 1 MB that stays."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable, Mapping

from ..core.namedtuple import NamedTuple
from ..errors import GuestnetError

SEARCHED = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
# A clean environment: what a user exported where the agent was started must not change what a program does.
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "HOME": "/root"}
LONGEST_OUTPUT = 65536  # of what is longer the beginning tells enough
_PIECE = 65536


class ProgramError(GuestnetError):
    """A program could not be started, was too slow, or failed. Trying again can help."""

    retryable = True


class Done(NamedTuple):
    """A program that has ended.

    Args:
        status: its exit status; negative for a signal.
        output: standard output and standard error, in the order written.
    """

    status: int
    output: str


class Started(NamedTuple):
    """A program that runs; to be handed to `finish` or `abandon`.

    Args:
        command: path of the program, and its arguments.
        pid: its process, and the number of its process group.
        reader: where its output comes from.
        writer: where its input goes to; -1 when it has none.
        input: what is to be written there.
    """

    command: tuple[str, ...]
    pid: int
    reader: int
    writer: int
    input: bytes


def folders() -> tuple[str, ...]:
    """Where programs are looked for: the PATH we were started with, then the usual folders (behaviour B102).

    Xen's tools may be below /usr/local or /usr/lib/xen; who starts us says so in PATH.
    """
    own = os.environ.get("PATH", "").split(":")
    # An empty or relative word would mean the folder we happen to be in.
    return tuple(dict.fromkeys((*(folder for folder in own if folder.startswith("/")), *SEARCHED)))


def find(name: str) -> str:
    """Path of an installed program, "" when it is not there."""
    for folder in folders():
        path = os.path.join(folder, name)
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return ""


def run(
    command: tuple[str, ...],
    seconds: float,
    *,
    input: bytes = b"",  # noqa: A002 - what subprocess calls it
    environment: Mapping[str, str] | None = None,
) -> Done:
    """Run a command to its end.

    Args:
        command: path of the program, and its arguments.
        seconds: after which it and its children are killed.
        input: its standard input; without any that is /dev/null.
        environment: what it finds in its environment besides the clean one.

    Raises:
        ProgramError: it cannot be started, or was too slow.
    """
    return finish(start(command, input=input, environment=environment), seconds)


def run_together(
    commands: Iterable[tuple[str, ...]], seconds: float, *, longest: int = LONGEST_OUTPUT
) -> tuple[Done, ...]:
    """Run commands at the same time, to the end of each.

    Args:
        commands: as for `run`.
        seconds: after which each is killed.
        longest: bytes of output that are kept of each.

    Raises:
        ProgramError: the first one that cannot be started, or was too slow; none is left running.
    """
    started, done, errors = list[Started](), list[Done](), list[ProgramError]()
    for command in commands:
        try:
            started.append(start(command))
        except ProgramError as error:
            errors.append(error)
    for each in started:
        try:
            done.append(finish(each, seconds, longest=longest))
        except ProgramError as error:
            errors.append(error)
    for first in errors:
        raise first
    return tuple(done)


def start(
    command: tuple[str, ...],
    *,
    input: bytes = b"",  # noqa: A002
    waits: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Started:
    """Start a command, so that several run at once; see `run`. Each must be handed to `finish` or `abandon`.

    Args:
        command: as for `run`, and so are `input` and `environment`.
        waits: its input comes later, by `feed`.

    Raises:
        ProgramError: it cannot be started.
    """
    reader, output = os.pipe2(os.O_CLOEXEC)
    piped = input or waits
    source, writer = os.pipe2(os.O_CLOEXEC) if piped else (os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), -1)
    actions = [(os.POSIX_SPAWN_DUP2, source, 0), (os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
    clean = {"PATH": ":".join(folders()), **ENVIRONMENT, **(environment or {})}
    try:
        pid = os.posix_spawn(
            command[0], command, clean, file_actions=actions, setpgroup=0, setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGIO),
        )  # fmt: skip
    except OSError as error:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
        raise ProgramError(f"{command[0]}: {error.strerror}") from None
    finally:
        os.close(output)
        os.close(source)
    started = Started(command, pid, reader, writer, b"")
    return feed(started, input) if input else started


def feed(started: Started, input: bytes) -> Started:  # noqa: A002
    """Give a command that waits all its input, once; what is returned is to be handed to `finish`."""
    if len(input) > select.PIPE_BUF:
        return started._replace(input=input)
    # An empty pipe takes it in one piece, so that the program works while its caller does something else.
    _give(started.writer, input)
    os.close(started.writer)
    return started._replace(writer=-1)


def abandon(started: Started) -> None:
    """Kill a started command that is not needed after all, and its children."""
    for fd in (started.reader, started.writer):
        if fd >= 0:
            os.close(fd)
    os.killpg(started.pid, signal.SIGKILL)
    os.waitpid(started.pid, 0)


def finish(started: Started, seconds: float, *, longest: int = LONGEST_OUTPUT) -> Done:
    """Wait for the end of a started command.

    Args:
        started: by `start`.
        seconds: from now on, after which it and its children are killed.
        longest: bytes of output that are kept.

    Raises:
        ProgramError: it was too slow.
    """
    ended = False
    try:
        output, ended = _talk(started, time.monotonic() + seconds, longest)
    finally:
        os.close(started.reader)
        if not ended:
            os.killpg(started.pid, signal.SIGKILL)
        _, status = os.waitpid(started.pid, 0)
    if not ended:
        raise ProgramError(f"{' '.join(started.command)}: no end within {seconds:g} s")
    return Done(os.waitstatus_to_exitcode(status), output.decode("utf-8", "replace").strip())


def _talk(started: Started, deadline: float, longest: int) -> tuple[bytes, bool]:
    """Give a program its input and take all that it says until the end; and whether the end came in time.

    In turn, as either is ready: one that answers before it has read everything would wait for us, and we for it.
    """
    reader, writer, data, rest = started.reader, started.writer, b"", started.input
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    if writer >= 0:
        os.set_blocking(writer, False)
        poll.register(writer, select.POLLOUT)
    try:
        while (left := deadline - time.monotonic()) > 0:
            ready = {fd for fd, _ in poll.poll(left * 1000)}
            if writer in ready:
                rest = _give(writer, rest)
                if not rest:
                    poll.unregister(writer)
                    os.close(writer)
                    writer = -1
            if reader in ready:
                piece = os.read(reader, _PIECE)
                if not piece:
                    return data, True
                data = (data + piece)[:longest]
        return data, False
    finally:
        if writer >= 0:
            os.close(writer)


def _give(writer: int, data: bytes) -> bytes:
    """Write what goes, and give the rest."""
    try:
        return data[os.write(writer, data[:_PIECE]) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return b""  # it ended, or reads no more; what it says about that is its answer
