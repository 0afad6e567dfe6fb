# SPDX-License-Identifier: GPL-2.0-or-later
"""Ask name servers for the addresses of a name: over UDP, and over TCP what is too long for it."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Sequence

from ..core import checks
from ..core.endpoint import Endpoint
from ..core.firewall import name_messages
from ..core.firewall.name_messages import Answer, Question
from . import replies
from .replies import Query, Stranger, Truncated, Useless

TRY_SECONDS = 2.0
ROUNDS = 2  # a datagram may get lost
NAME_SECONDS = 10.0
_DATAGRAM = 4096  # what is longer is cut, and then no reply: without EDNS 512 bytes are the most (RFC 1035, 2.3.4)
# A message in the server's name can come from any host that guesses the port; so many are read and left.
_MOST_STRANGERS = 2000
_PREFIX = struct.Struct("!H")


async def look_up(question: Question, servers: Sequence[Endpoint]) -> Answer:
    """Return the answer of the first server that has one.

    Args:
        question: a name, not one of those that are never asked for.
        servers: in the order of use; each is asked at most twice, for two seconds over UDP and two over TCP, and all of
            them for at most ten.
    """
    if name_messages.problem_of(question.name):
        return Answer(question, name_messages.REFUSED)
    try:
        async with asyncio.timeout(NAME_SECONDS):
            return await _in_turn(question, servers)
    except TimeoutError:
        return Answer(question, name_messages.FAILED, reason=name_messages.TIMEOUT)


async def _in_turn(question: Question, servers: Sequence[Endpoint]) -> Answer:
    # Client qubes cannot be led to services of this qube itself, so none of them is asked here. Where the kernel has a
    # filter for that (BPF in control groups) the unit sets it too.
    servers = [server for server in servers if checks.is_host(server.address)]
    reason = name_messages.TIMEOUT if servers else name_messages.UNREACHABLE
    for _ in range(ROUNDS):
        for server in servers:
            try:
                return await _ask(server, replies.query(question))
            except TimeoutError:
                reason = name_messages.TIMEOUT
            except OSError:
                reason = name_messages.UNREACHABLE
            except Useless as useless:
                reason = useless.reason
    return Answer(question, name_messages.FAILED, reason=reason)


async def _ask(server: Endpoint, query: Query) -> Answer:
    """Return one server's answer. Raises TimeoutError, OSError, Useless."""
    try:
        async with asyncio.timeout(TRY_SECONDS):
            return await _by_udp(server, query)
    except Truncated:
        async with asyncio.timeout(TRY_SECONDS):
            return await _by_tcp(server, query)


async def _by_udp(server: Endpoint, query: Query) -> Answer:
    loop = asyncio.get_running_loop()
    with _socket(server, socket.SOCK_DGRAM) as asking:
        # The kernel chooses a port at random. With a peer it hands on what that one sends, and its ICMP errors.
        asking.connect((str(server.address), server.port))
        await loop.sock_sendall(asking, query.wire)
        for _ in range(_MOST_STRANGERS):
            try:
                return replies.read(query, await loop.sock_recv(asking, _DATAGRAM), datagram=True)
            except Stranger:
                # What is in the buffer comes without a wait: a flood would keep the other names from their turn.
                await asyncio.sleep(0)
    raise Useless(name_messages.GARBAGE)


async def _by_tcp(server: Endpoint, query: Query) -> Answer:
    loop = asyncio.get_running_loop()
    with _socket(server, socket.SOCK_STREAM) as asking:
        await loop.sock_connect(asking, (str(server.address), server.port))
        await loop.sock_sendall(asking, _PREFIX.pack(len(query.wire)) + query.wire)
        (size,) = _PREFIX.unpack(await _exactly(asking, _PREFIX.size))
        try:
            return replies.read(query, await _exactly(asking, size), datagram=False)
        except Stranger:
            raise Useless(name_messages.GARBAGE) from None


async def _exactly(asking: socket.socket, size: int) -> bytes:
    """Return so many bytes, at most 64 KiB. Raises Useless: the server ended before."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < size:
        piece = await loop.sock_recv(asking, size - len(data))
        if not piece:
            raise Useless(name_messages.GARBAGE)
        data += piece
    return bytes(data)


def _socket(server: Endpoint, kind: int) -> socket.socket:
    family = socket.AF_INET6 if server.address.version == 6 else socket.AF_INET
    return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
