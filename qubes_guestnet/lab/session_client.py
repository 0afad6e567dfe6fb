# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands of an interactive lab do: bring one up in the background, ask it, run programs in its qubes."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FrameType
from typing import Any

from ..errors import UsageError
from . import interruption, session, terminal
from .ground import require
from .namespaces import LabError, isolate
from .place import Place
from .progress import Teller, events
from .qube import eventually
from .tree import Tree
from .wire import Channel, Message

_PATIENCE = 10.0
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_VARIABLES = ("TERM", "COLORTERM", "LANG", "NO_COLOR")
_TAIL = 2000
Step = Callable[[str], None]
Tick = Callable[[], None]


# --- up and down -----------------------------------------------------------------------------------------------------


def up(tree: Tree, place: Place, step: Step, tick: Tick) -> Callable[[], None]:
    """Start a lab in the background; return when its tree stands.

    Args:
        tree: to grow.
        place: where the lab is to be found.
        step: told what goes on.
        tick: called every 0.1 s.

    Returns:
        What SIGINT still does to it from now on, until `interruption.remove`: it ends it.

    Raises:
        LabError: it did not come up; nothing of it is left.
    """
    require()
    with interruption.held():
        lock = place.claim()
        log = os.open(place.log, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        answer, say = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _background(tree, place, log, say, keep=lock)
        clean_up = partial(interruption.end, child)
        interruption.add(clean_up)
    os.close(say)
    os.close(lock)
    try:
        _watch(answer, step, tick)
    except LabError as error:
        os.waitpid(child, 0)
        interruption.remove(clean_up)
        told = error.problem or f"the lab did not start: {_tail(log)}"
        raise LabError(told, error.remedy) from None
    except BaseException:
        clean_up()
        interruption.remove(clean_up)
        raise
    finally:
        os.close(answer)
        os.close(log)
    return clean_up


def _watch(answer: int, step: Step, tick: Tick) -> None:
    for event in events(answer):
        if event is None:
            tick()
        elif "step" in event:
            step(event["step"])
        elif "error" in event:
            raise LabError(event["error"], event["remedy"])
        elif "up" in event:
            return
    raise LabError("")


def _tail(log: int) -> str:
    size = os.fstat(log).st_size
    return os.pread(log, _TAIL, max(0, size - _TAIL)).decode(errors="replace").strip() or "it ended without a message"


def _background(tree: Tree, place: Place, log: int, say: int, keep: int) -> None:
    """The process in the background, from the fork to its end; the lock, kept open, is let go by that."""
    status = 1
    try:
        interruption.leave_it_to_the_parent()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _go_on)  # held so far; it ends the lab, and what comes after that ends nothing
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(descriptor, target)
        _close_all_but(say, keep)
        os.chdir("/")
        listener = place.listen()
        status = isolate(lambda: session.run(listener, tree, Teller(say)))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        place.remove()
        os._exit(status)


def _go_on(_number: int, _frame: FrameType | None) -> None:
    return


def _close_all_but(*kept: int) -> None:
    """Close inherited descriptors, which would keep a caller's pipe open while the lab is up."""
    for low, high in itertools.pairwise((2, *sorted(kept), os.sysconf("SC_OPEN_MAX"))):
        if low + 1 < high:  # closerange(n, n) of some Pythons closes all from n on
            os.closerange(low + 1, high)


def down(place: Place) -> bool:
    """End a lab; whether there was one. When it returns no process and no file of it is left."""
    try:
        connection = place.connect()
    except LabError:
        if not os.path.isdir(place.folder) or not place.clear():
            raise
        return False
    background = _process_of(connection)
    channel = Channel(connection)
    channel.limit(_PATIENCE)
    try:
        with contextlib.suppress(OSError):
            channel.send({"verb": "down"})
        eventually(f"lab {place.name} has ended", place.clear, _PATIENCE)
    except LabError:
        os.kill(background, signal.SIGKILL)  # all of it dies with this one, see namespaces
        eventually(f"lab {place.name} has ended after SIGKILL to process {background}", place.clear, _PATIENCE)
    finally:
        channel.close()
    return True


def _process_of(connection: socket.socket) -> int:
    """Return the listening process at the other end, from the kernel's record."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


# --- asking it -------------------------------------------------------------------------------------------------------


def ask(place: Place, verb: str, step: Step, **arguments: Any) -> Message:
    """Have a lab do something, and wait for its answer.

    Raises:
        LabError: no lab, or it could not do it.
        UsageError: it makes no sense there.
    """
    with contextlib.closing(Channel(place.connect())) as channel:
        channel.send({"verb": verb, **arguments})
        return _answer(channel, step)


def _answer(channel: Channel, step: Step) -> Message:
    while (messages := channel.receive()) is not None:
        for message in messages:
            if (done := _done(message, step)) is not None:
                return done
    raise LabError("the lab has ended")


def _done(message: Message, step: Step) -> Message | None:
    if "error" in message:
        kind = UsageError if message["usage"] else LabError
        raise kind(message["error"], message["remedy"])
    if "step" in message:
        step(message["step"])
    return message.get("done")


def execute(place: Place, qube: str, command: Sequence[str]) -> int:
    """Run a command in a qube with the input, output and error of this process; its exit status.

    A person at a terminal has the command at a terminal of its own; else signals are passed on to it.
    """
    request = {
        "verb": "exec", "qube": qube, "command": list(command), "terminal": os.isatty(0) and os.isatty(1),
        "env": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }  # fmt: skip
    with contextlib.closing(Channel(place.connect())) as channel:
        if request["terminal"]:
            return _at_terminal(channel, request)
        with _signals_passed_on(channel):
            channel.send(request, (0, 1, 2))
            return int(_answer(channel, _quiet)["status"])


def _quiet(_text: str) -> None:
    return


@contextlib.contextmanager
def _signals_passed_on(channel: Channel) -> Iterator[None]:
    def pass_on(number: int, _frame: FrameType | None) -> None:
        channel.send({"verb": "signal", "number": number})

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _at_terminal(channel: Channel, request: Message) -> int:
    master, inner = os.openpty()
    try:
        error = inner if os.isatty(2) else 2
        status: list[int] = []

        def ended() -> bool:
            messages = channel.receive()
            if messages is None:
                raise LabError("the lab has ended")
            status.extend(done["status"] for message in messages if (done := _done(message, _quiet)) is not None)
            return bool(status)

        with terminal.raw(0, master):
            channel.send(request, (inner, inner, error))
            os.close(inner)
            terminal.copy(0, master, channel.fileno(), ended)
    finally:
        os.close(master)
    return status[0]
