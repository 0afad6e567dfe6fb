# SPDX-License-Identifier: GPL-2.0-or-later
"""Run other programs for a bounded time, by posix_spawn: `subprocess` costs 8 ms and 1 MB of memory.

The limit applies to the process, by its pidfd, and not to its output (behaviour B119): a program that closes its output
has not ended, and an ended one may have left a child that holds the output. Processes that a program leaves behind in
time keep running; after a timeout it is killed with its descendants (`program_tree`). `limit` keeps a pass in time.
"""

from __future__ import annotations

import errno
import itertools
import os
import select
import time
from collections.abc import Callable, Iterable, Mapping

from ..core.namedtuple import NamedTuple
from ..errors import GuestnetError
from . import plain_signal as signal

SEARCHED = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
# A clean environment: what a user exported where the agent was started must not change what a program does.
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "HOME": "/root"}
LONGEST_OUTPUT = 65536  # of longer output the beginning is enough
_PIECE = 65536
_PIECES_LEFT = 16  # a pipe holds at most 1 MiB (pipe(7), pipe-max-size) when its writer has ended
_SHELL = "/bin/sh"
_HEAD_BYTES = 128
_MARK = "QUBES_GUESTNET_RUN"  # in the environment of a program, and so of all that it starts
_NOT_REAPED: set[int] = set()
_COUNT = itertools.count()
DEFAULTED = tuple(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})  # for posix_spawn: no signal ignored


class ProgramError(GuestnetError):
    """A program could not be started, was too slow, or failed. A retry may succeed."""

    retryable = True


class Done(NamedTuple):
    """A program that has ended.

    Args:
        status: its exit status; negative for a signal.
        output: standard output and standard error, in the order written.
    """

    status: int
    output: str


class _Limit:
    until: float | None = None  # when all that is run in this round has to have ended, by `time.monotonic`


def limit(seconds: float | None) -> None:
    """Limit the total time of all programs until the next call; None for no limit."""
    _Limit.until = None if seconds is None else time.monotonic() + seconds


def _left(seconds: float) -> float:
    return seconds if _Limit.until is None else min(seconds, _Limit.until - time.monotonic())


class Started(NamedTuple):
    """A program that runs; to be handed to `finish`.

    Args:
        command: path of the program, and its arguments.
        mark: what its environment says, and that of all that it starts.
        pid: its process, and the number of its process group.
        pidfd: becomes readable when the process ends.
        reader: where its output comes from.
        writer: where its input goes to; -1 when it has none.
        input: what is to be written there.
    """

    command: tuple[str, ...]
    mark: str
    pid: int
    pidfd: int
    reader: int
    writer: int
    input: bytes


def folders() -> tuple[str, ...]:
    """Return where programs are looked for: the PATH we were started with, then the usual folders (behaviour B102).

    Xen's tools may be below /usr/local or /usr/lib/xen; the caller's PATH has them.
    """
    own = os.environ.get("PATH", "").split(":")
    # An empty or relative entry would mean the current folder.
    return tuple(dict.fromkeys((*(folder for folder in own if folder.startswith("/")), *SEARCHED)))


def find(name: str) -> str:
    """Return the path of an installed program, "" when it is not there."""
    for folder in folders():
        path = os.path.join(folder, name)
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return ""


def is_script(path: str) -> bool:
    """Return whether a file is text without a `#!` line, which execve refuses (ENOEXEC) and a shell runs by itself."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            head = os.read(fd, _HEAD_BYTES)
        finally:
            os.close(fd)
    except OSError:
        return False
    return not head.startswith(b"#!") and b"\0" not in head


def run(
    command: tuple[str, ...],
    seconds: float,
    *,
    input: bytes = b"",  # noqa: A002 - what subprocess calls it
    environment: Mapping[str, str] | None = None,
    daemons: bool = False,
) -> Done:
    """Run a command to its end.

    Args:
        command: path of the program, and its arguments.
        seconds: after which it and all that it started are killed.
        input: its standard input; without any that is /dev/null.
        environment: what it finds in its environment besides the clean one.
        daemons: as for `finish`.

    Raises:
        ProgramError: it cannot be started, or was too slow.
    """
    return finish(start(command, input=input, environment=environment), seconds, daemons=daemons)


def run_together(
    commands: Iterable[tuple[str, ...]], seconds: float, *, longest: int = LONGEST_OUTPUT
) -> tuple[Done, ...]:
    """Run commands at the same time, to the end of each.

    Args:
        commands: as for `run`.
        seconds: after which those are killed that have not ended.
        longest: bytes of output that are kept of each.

    Raises:
        ProgramError: the first one that cannot be started, or was too slow; none is left running.
    """
    started, done, errors = list[Started](), list[Done](), list[ProgramError]()
    deadline = time.monotonic() + seconds
    for command in commands:
        try:
            started.append(start(command))
        except ProgramError as error:
            errors.append(error)
    for each in started:
        try:
            done.append(finish(each, deadline - time.monotonic(), longest=longest))
        except ProgramError as error:
            errors.append(error)
    for first in errors:
        raise first
    return tuple(done)


def start(
    command: tuple[str, ...],
    *,
    input: bytes = b"",  # noqa: A002
    environment: Mapping[str, str] | None = None,
) -> Started:
    """Start a command, so that several run at once; see `run`. Each must be handed to `finish`.

    Args:
        command: as for `run`, and so are `input` and `environment`.

    Raises:
        ProgramError: it cannot be started, or there is no time left for it in this round.
    """
    if _left(1.0) <= 0:
        raise ProgramError(f"{command[0]}: not started, because other programs used up the time of this pass")
    _reap()
    opened, mark = list[int](), f"{os.getpid()}-{next(_COUNT)}"
    try:
        reader, output = _kept(opened, os.pipe2(os.O_CLOEXEC))
        if input:
            source, writer = _kept(opened, os.pipe2(os.O_CLOEXEC))
        else:
            (source,), writer = _kept(opened, (os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC),)), -1
        given = {"PATH": ":".join(folders()), **ENVIRONMENT, **(environment or {}), _MARK: mark}
        pid = _spawn(command, given, (source, output))
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)  # it is our child and not reaped: the number is its own
            _wait(pid)
            raise
    except OSError as error:
        for fd in opened:
            os.close(fd)
        raise ProgramError(f"{command[0]}: {error.strerror}") from None
    for fd in (output, source):
        os.close(fd)
    started = Started(command, mark, pid, pidfd, reader, writer, b"")
    return _fed(started, input) if input else started


def _kept(opened: list[int], fds: tuple[int, ...]) -> tuple[int, ...]:
    opened += fds
    return fds


def _spawn(command: tuple[str, ...], environment: Mapping[str, str], fds: tuple[int, int]) -> int:
    """Start a process in its own group, with no signal ignored or blocked."""
    source, output = fds
    actions = [(os.POSIX_SPAWN_DUP2, source, 0), (os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]

    def spawn(words: tuple[str, ...]) -> int:
        return os.posix_spawn(
            words[0], words, environment, file_actions=actions, setpgroup=0, setsigmask=(), setsigdef=DEFAULTED
        )

    return spawned(command, spawn)


def spawned(command: tuple[str, ...], spawn: Callable[[tuple[str, ...]], int]) -> int:
    """Start a process whose end can be waited for; a script without a `#!` line by a shell.

    Args:
        command: path of the program, and its arguments.
        spawn: starts a command, and returns its process.

    Raises:
        OSError: it cannot be started.
    """
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        # Inherited; the kernel then keeps no exit status of a child.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        return spawn(command)
    except OSError as error:
        if error.errno != errno.ENOEXEC or not is_script(command[0]):
            raise
        return spawn((_SHELL, *command))  # as execvp(3) and every shell do it


def _fed(started: Started, input: bytes) -> Started:  # noqa: A002
    """Write the whole input of a command, or leave it to `finish`."""
    if len(input) > select.PIPE_BUF:
        return started._replace(input=input)
    # An empty pipe accepts it in one piece, so that the program and its caller run in parallel.
    _give(started.writer, input)
    os.close(started.writer)
    return started._replace(writer=-1)


def finish(started: Started, seconds: float, *, longest: int = LONGEST_OUTPUT, daemons: bool = False) -> Done:
    """Wait for the end of a started command.

    Args:
        started: by `start`.
        seconds: from now on, after which it and its children are killed.
        longest: bytes of output that are kept.
        daemons: what it leaves behind may go on writing to its output; else that ends with the command.

    Raises:
        ProgramError: it was too slow.
    """
    ended, seconds = False, _left(seconds)
    try:
        output, ended = _talk(started, time.monotonic() + seconds, longest)
        if ended and daemons:
            _read_on(started.reader)
    finally:
        status = _end(started, kill=not ended)
    if not ended:
        raise ProgramError(f"{' '.join(started.command)}: still running after {round(max(seconds, 0), 1):g} s")
    return Done(os.waitstatus_to_exitcode(status), output.decode("utf-8", "replace").strip())


def _talk(started: Started, deadline: float, longest: int) -> tuple[bytes, bool]:
    """Write a program's input and read its output until it ends; return whether it ended in time.

    Both alternate, as either is ready: otherwise a program that writes before it has read everything would deadlock.
    """
    pidfd, reader, writer, data, rest = started.pidfd, started.reader, started.writer, b"", started.input
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(reader, select.POLLIN)
    if writer >= 0:
        os.set_blocking(writer, False)
        poll.register(writer, select.POLLOUT)
    try:
        while True:
            left = deadline - time.monotonic()
            ready = {fd for fd, _ in poll.poll(max(left, 0) * 1000)}
            if pidfd in ready:
                return (data + _rest(reader, longest - len(data)))[:longest], True
            if left <= 0:
                return data, False
            if writer in ready:
                rest = _give(writer, rest)
                if not rest:
                    poll.unregister(writer)
                    os.close(writer)
                    writer = -1
            if reader in ready:
                piece = os.read(reader, _PIECE)
                if not piece:
                    poll.unregister(reader)  # it closed its output; that is not its end
                data = (data + piece)[:longest]
    finally:
        if writer >= 0:
            os.close(writer)


def _rest(reader: int, longest: int) -> bytes:
    """Return the pending output of an ended program. Do not read up to the end of file: a child may hold the pipe
    open.
    """
    os.set_blocking(reader, False)
    data = b""
    for _ in range(_PIECES_LEFT):
        try:
            piece = os.read(reader, _PIECE)
        except BlockingIOError:
            break
        if not piece:
            break
        data = (data + piece)[: max(longest, 0)]
    return data


def _read_on(reader: int) -> None:
    """Let a process read a daemon's further output: without a reader, SIGPIPE would end the daemon."""
    try:
        if os.read(reader, 1) == b"":
            return
    except BlockingIOError:
        pass
    os.set_blocking(reader, True)  # else cat ends as soon as it has read everything, and the daemon with it
    if not (cat := find("cat")):
        return
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        _spawn((cat,), ENVIRONMENT, (reader, null))
    finally:
        os.close(null)


def _end(started: Started, *, kill: bool) -> int:
    """Clean up an ended command, or kill it; return its wait status."""
    os.close(started.reader)
    try:
        if kill:
            _kill(started)
    finally:
        status = _wait(started.pid)
        os.close(started.pidfd)
    return status


def _kill(started: Started) -> None:
    from . import program_tree  # few programs have to be killed

    program_tree.kill(started.pid, started.pidfd, f"{_MARK}={started.mark}")


def _wait(pid: int) -> int:
    """Wait status of a process that has ended; 0 for one that has not yet, which `_reap` takes up."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        _NOT_REAPED.add(pid)
    return status


def _reap() -> None:
    for pid in tuple(_NOT_REAPED):
        _NOT_REAPED.discard(pid)
        try:
            _wait(pid)
        except ChildProcessError:
            continue  # of the process that we were forked from


def _give(writer: int, data: bytes) -> bytes:
    try:  # what goes, and give the rest
        return data[os.write(writer, data[:_PIECE]) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return b""  # it ended, or reads no more; what it says about that is its answer
