# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets sent all the time, by a process of their own, while a test does something: what passes in a gap is seen."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator

from qubes_guestnet.lab.namespaces import die_with_parent
from tests.support.packets.ports import MARK, UDP, Port, packet_of, udp

PAUSE_S = 0.001
LIMIT_S = 30.0

Shot = tuple[Port, bytes]


def shot(port: Port, source: str, target: str, word: str, *, sport: int = 1024, dport: int = 9) -> Shot:
    """One packet that a storm sends over and over: a datagram that says `word`."""
    return port, port.frame(packet_of(source, target, udp(source, target, sport, dport, MARK + word.encode()), UDP))


@contextlib.contextmanager
def storm(shots: Iterable[Shot]) -> Iterator[Callable[[int], None]]:
    """While it lasts, send all of these some 1000 times a second, 30 s at most.

    Gives a function that waits until so many more rounds were sent.
    """
    shots = tuple(shots)
    tell, say = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            die_with_parent()
            os.close(tell)
            _send(shots, say)
        finally:
            os._exit(0)
    os.close(say)

    def rounds(wanted: int) -> None:
        # What is in the pipe was sent before.
        while select.select([tell], [], [], 0)[0]:
            assert os.read(tell, 65536), "the storm has ended"
        came = 0
        while came < wanted:
            assert select.select([tell], [], [], 5.0)[0], "the storm does not blow"
            sent = len(os.read(tell, 65536))
            assert sent, "the storm has ended"
            came += sent

    try:
        rounds(10)
        yield rounds
        rounds(50)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(tell)


def _send(shots: tuple[Shot, ...], say: int) -> None:
    os.set_blocking(say, False)
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        for port, frame in shots:
            port.shoot(frame)
        with contextlib.suppress(BlockingIOError):  # no reader at present
            os.write(say, b".")
        time.sleep(PAUSE_S)
