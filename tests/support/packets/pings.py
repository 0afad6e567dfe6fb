# SPDX-License-Identifier: GPL-2.0-or-later
"""Pings of many destinations, each once."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address

from qubes_guestnet.lab.patience import patient
from qubes_guestnet.lab.qube import Qube
from tests.support.packets.ports import ICMP
from tests.support.packets.wire import sum_of

_ASKS, _ANSWERS, _MARK = 8, 0, 0x4711
_AT_ONCE = 64
# What was answered counts for the limits of a qube (core/nft/limits) until the kernel clears their sets, once a second.
_A_SECOND = 1000


@contextlib.contextmanager
def pings(qube: Qube) -> Iterator[Pinger]:
    """A pinger in a qube."""
    with qube.socket(socket.AF_INET, socket.SOCK_RAW, ICMP) as its_socket:
        its_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        its_socket.setblocking(False)
        yield Pinger(its_socket)


class Pinger:
    """Pings by a socket, which is a raw one."""

    def __init__(self, its_socket: socket.socket) -> None:
        self._socket = its_socket

    def unanswered(self, targets: Iterable[str], within_s: float = 5.0) -> list[str]:
        """Ping each, some at a time; those that did not answer.

        Args:
            targets: addresses.
            within_s: for each, on real hardware.
        """
        waiting, lost, left = dict[str, float](), list[str](), iter(targets)
        limit, more, due = patient(within_s), True, time.monotonic()
        while more or waiting:
            while more and len(waiting) < _AT_ONCE and time.monotonic() >= due:
                due = max(due, time.monotonic() - 0.01) + 1 / _A_SECOND
                target = next(left, "")
                more = bool(target)
                if more:
                    waiting[target] = time.monotonic() + limit
                    self.send(target)
            select.select([self._socket], [], [], 0.05 if waiting else 1 / _A_SECOND)
            for source in self._answers():
                waiting.pop(source, None)
            now = time.monotonic()
            while waiting and next(iter(waiting.values())) < now:
                late = next(iter(waiting))
                del waiting[late]
                lost.append(late)
        return lost

    def send(self, target: str) -> None:
        """One ping; one that cannot be sent is lost."""
        body = struct.pack("!BBHHHQ", _ASKS, 0, 0, _MARK, 0, 0)
        body = body[:2] + struct.pack("!H", sum_of(body)) + body[4:]
        with contextlib.suppress(OSError):
            self._socket.sendto(body, (target, 0))

    def _answers(self) -> Iterator[str]:
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = self._socket.recv(2000)
                kind, mark = packet[20], struct.unpack_from("!H", packet, 24)[0]
                if (kind, mark) == (_ANSWERS, _MARK):
                    yield socket.inet_ntoa(packet[12:16])


def addresses(first: str, count: int) -> list[str]:
    """So many, in a row."""
    begin = int(IPv4Address(first))
    return [str(IPv4Address(begin + number)) for number in range(count)]
