# SPDX-License-Identifier: GPL-2.0-or-later
"""Serve the agent: take a request from systemd's socket, send each answer as soon as it is there, end when idle.

Whether systemd has a socket to hand over is all that this knows of its environment; it opens no file.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ..core.endpoint import Endpoint
from ..core.firewall import name_messages
from ..core.firewall.name_messages import Answer, Question
from ..errors import GuestnetError, printable

LookUp = Callable[[Question, Sequence[Endpoint]], Coroutine[Any, Any, Answer]]

FIRST_SOCKET = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
IDLE_SECONDS = 30.0
IN_FLIGHT = 16
MOST_CLIENTS = 4  # more of them wait in the socket's queue
CLIENT_SECONDS = 5.0  # for a client that neither sends nor reads
_CREDENTIALS = struct.Struct("3i")  # struct ucred: process, user, group
_WARNING, _ERROR = 4, 3  # syslog(3)


def inherited() -> socket.socket:
    """Return the listening socket that systemd handed over.

    Raises:
        GuestnetError: there is none.
    """
    handed = (os.environ.get("LISTEN_PID", ""), os.environ.get("LISTEN_FDS", ""))
    if handed != (str(os.getpid()), "1"):
        raise GuestnetError("no socket from systemd", "systemctl start qubes-guestnet-names.socket starts this program")
    try:
        listening = socket.socket(fileno=FIRST_SOCKET)
    except OSError as error:
        raise GuestnetError(f"the descriptor from systemd is not a socket: {error.strerror}") from None
    if (listening.family, listening.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        listening.close()
        raise GuestnetError("the socket from systemd is not of the kind SOCK_SEQPACKET")
    listening.setblocking(False)
    os.set_inheritable(FIRST_SOCKET, False)
    return listening


class Service:
    """One life of the program.

    Args:
        listening: where clients come.
        look_up: answers a question.
        idle: how long to stay without a client, in seconds.
    """

    def __init__(self, listening: socket.socket, look_up: LookUp, idle: float = IDLE_SECONDS) -> None:
        self._listening = listening
        self._look_up = look_up
        self._idle = idle
        self._flight = asyncio.Semaphore(IN_FLIGHT)
        self._clients: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until no client has come for the idle time. systemd keeps the socket, and those in its queue."""
        while True:
            if len(self._clients) >= MOST_CLIENTS:
                await asyncio.wait(self._clients, return_when=asyncio.FIRST_COMPLETED)
                continue
            try:
                async with asyncio.timeout(self._idle):
                    await _readable(self._listening)
                client, _ = self._listening.accept()
            except TimeoutError:
                if not self._clients:
                    return
                continue
            except OSError:
                continue  # the client left the queue
            task = asyncio.create_task(self._serve(client))
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)

    async def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                request = await _request(client)
            except (OSError, ValueError) as error:
                log(_WARNING, f"malformed request on names.sock: {error}")
                return
            answering = asyncio.create_task(self._answer_all(client, request))
            leaving = asyncio.create_task(_gone(client))
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            # What a client that is gone has asked is given up at once: its successor's questions need the place.
            for task in (answering, leaving):
                task.cancel()
            for problem in await asyncio.gather(answering, leaving, return_exceptions=True):
                if isinstance(problem, ExceptionGroup):
                    problem = problem.subgroup(lambda each: not isinstance(each, OSError))
                if isinstance(problem, Exception) and not isinstance(problem, OSError):
                    log(_ERROR, f"unexpected error, please report it: {problem!r}")

    async def _answer_all(self, client: socket.socket, request: name_messages.Request) -> None:
        sending = asyncio.Lock()  # of two that wait to write to one socket, the event loop forgets the first
        async with asyncio.TaskGroup() as group:
            for question in request.questions:
                answer = self._answer(request.servers, question)
                group.create_task(_send(client, sending, answer))

    async def _answer(self, servers: Sequence[Endpoint], question: Question) -> Answer:
        async with self._flight:
            try:
                return await self._look_up(question, servers)
            except Exception as error:
                # One name must not take the others along.
                log(_ERROR, f"{question.name}: unexpected error, please report it: {error!r}")
                return Answer(question, name_messages.FAILED, reason=name_messages.PROGRAM)


async def _send(client: socket.socket, sending: asyncio.Lock, answer: Coroutine[Any, Any, Answer]) -> None:
    data = name_messages.render_answer(await answer)
    async with sending, asyncio.timeout(CLIENT_SECONDS):
        await asyncio.get_running_loop().sock_sendall(client, data)


async def _readable(listening: socket.socket) -> None:
    """Return when a client waits. To be cancelled in `sock_accept` could lose one that it has accepted."""
    loop = asyncio.get_running_loop()
    waiting = asyncio.Event()
    loop.add_reader(listening, waiting.set)
    try:
        await waiting.wait()
    finally:
        loop.remove_reader(listening)


async def _request(client: socket.socket) -> name_messages.Request:
    """Return a client's request. Raises OSError, ValueError: not from root, late, or none."""
    client.setblocking(False)
    _, user, _ = _CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if user != 0:
        raise PermissionError(f"user {user} is not root")
    async with asyncio.timeout(CLIENT_SECONDS):
        data = await asyncio.get_running_loop().sock_recv(client, name_messages.LONGEST_REQUEST + 1)
    return name_messages.parse_request(data)


async def _gone(client: socket.socket) -> None:
    """Return when the client has closed its end, or says more than its one request."""
    await asyncio.get_running_loop().sock_recv(client, 1)


async def without_library(question: Question, _: Sequence[Endpoint]) -> Answer:
    """Answer where dnspython is missing: to end would have systemd start this program over and over."""
    return Answer(question, name_messages.FAILED, reason=name_messages.PROGRAM)


def log(level: int, text: str) -> None:
    """Write one line to standard error, with its level for the journal (sd-daemon(3))."""
    prefix = f"<{level}>" if os.environ.get("JOURNAL_STREAM") else ""
    print(f"{prefix}{printable(text)}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run the program.

    Args:
        arguments: `--idle SECONDS`, or none.

    Returns:
        0 when it was idle, 1 without a socket, 2 for wrong arguments.
    """
    idle = IDLE_SECONDS
    if arguments:
        try:
            option, seconds = arguments
            idle = float(seconds)
        except ValueError:
            option = ""
        if option != "--idle" or not 0 < idle <= 3600:
            print("usage: python3 -m qubes_guestnet.names [--idle SECONDS]", file=sys.stderr)
            return 2
    look_up: LookUp
    try:
        from .lookup import look_up
    except ImportError as error:
        look_up = without_library
        log(_ERROR, f"cannot look up names: {error}; install python3-dnspython (Fedora: python3-dns)")
    try:
        listening = inherited()
    except GuestnetError as error:
        log(_ERROR, str(error))
        return 1
    with listening:
        asyncio.run(_life(listening, look_up, idle))
    return 0


async def _life(listening: socket.socket, look_up: LookUp, idle: float) -> None:
    await Service(listening, look_up, idle).run()
