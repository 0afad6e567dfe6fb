# SPDX-License-Identifier: GPL-2.0-or-later
"""A flood of pings through a tree while something is done to it, and how many of them were lost."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import time
from typing import NamedTuple, NoReturn

from .frames import checksum
from .namespaces import LabError
from .qube import Qube

# As `ping -f`, one echo per answer, but at most this fast, because other processes need the processors.
_PAUSE = 0.002
_LAST_ANSWERS = 2.0
_ECHO, _ECHO_REPLY = 8, 0
_BUFFER = 65536
_HEADER = struct.Struct("!BBHHH")


class Flow(NamedTuple):
    """Numbers of sent and answered echoes, and the longest time without an answer, in seconds."""

    sent: int
    answered: int
    gap: float


class Flood:
    """ICMP echoes from a qube to an IPv4 address, about 400 a second, until `stop`.

    A separate process sends them, because the lab's process is busy.

    Args:
        qube: sender.
        address: target.
    """

    def __init__(self, qube: Qube, address: str) -> None:
        packets = qube.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        packets.connect((address, 0))
        self._answer, say = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _flow(packets, say)
            finally:
                os._exit(1)
        os.close(say)
        packets.close()

    def stop(self) -> Flow:
        """End it, and return its counts. LabError: it ended by itself."""
        os.kill(self._pid, signal.SIGTERM)
        with open(self._answer, encoding="ascii") as answer:
            text = answer.read()
        os.waitpid(self._pid, 0)
        if not text:
            raise LabError("the flood of pings ended unexpectedly")
        return Flow(*json.loads(text))


def _flow(packets: socket.socket, say: int) -> NoReturn:
    ended: list[int] = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _frame: ended.append(number))
    mark = os.urandom(8)
    open_ones: set[int] = set()
    sent, gap, last = 0, 0.0, time.monotonic()
    pause = time.monotonic()
    while not ended or (open_ones and time.monotonic() < pause + _LAST_ANSWERS):
        now = time.monotonic()
        if now >= pause and not ended:
            packets.send(_request(mark, sent))
            open_ones.add(sent)
            sent += 1
            pause = now + _PAUSE
        while select.select([packets], [], [], max(0.0, pause - time.monotonic()) if not ended else _PAUSE)[0]:
            packet = packets.recv(_BUFFER)
            payload = packet[(packet[0] & 15) * 4 :]
            if payload[0] == _ECHO_REPLY and payload[8:16] == mark:
                open_ones.discard(struct.unpack_from("!I", payload, 16)[0])
                gap, last = max(gap, time.monotonic() - last), time.monotonic()
    os.write(say, json.dumps([sent, sent - len(open_ones), max(gap, pause - last)]).encode())
    os._exit(0)


def _request(mark: bytes, number: int) -> bytes:
    payload = mark + struct.pack("!I", number)
    total = checksum(_HEADER.pack(_ECHO, 0, 0, 1, number & 0xFFFF) + payload)
    return _HEADER.pack(_ECHO, 0, total, 1, number & 0xFFFF) + payload
