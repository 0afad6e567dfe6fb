# SPDX-License-Identifier: GPL-2.0-or-later
"""A bus that says exactly what a test wants it to say."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from qubes_guestnet.core.bus_messages import BUS, Stream, parse
from tests.support.programs import bus_frames as frames

OWNER = ":1.5"
SERVICE_UNKNOWN = "org.freedesktop.DBus.Error.ServiceUnknown"


class OddBus:
    """One connection's worth of a bus.

    Args:
        path: of its socket.
        greeting: what it says to the authentication.
    """

    def __init__(self, path: Path, greeting: bytes = b"OK 1234\r\n") -> None:
        self.calls: list[tuple[str, str]] = []
        self.owner = OWNER
        # What it sends when the service is asked; by default its answer.
        self.answers: Callable[[int], bytes] = lambda serial: text(serial, "good")
        self._greeting = greeting
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._peer: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            self._peer, _ = self._listener.accept()
            data = b""
            while b"\r\n" not in data:
                data += self._peer.recv(512)
            self._peer.sendall(self._greeting)
            while b"BEGIN\r\n" not in data:
                piece = self._peer.recv(1)
                if not piece:
                    return
                data += piece
            self._follow(self._peer)

    def _follow(self, peer: socket.socket) -> None:
        stream = Stream()
        while data := peer.recv(4096):
            peer.sendall(b"".join(map(self._answer, stream.receive(data))))

    def _answer(self, data: bytes) -> bytes:
        serial = int.from_bytes(data[8:12], "little")
        call, target = parse(data), destination(data)
        self.calls.append((target, call.member))
        if target == BUS and call.member == "GetNameOwner":
            return frames.answer(serial, BUS, frames.strings(self.owner), "s")
        if target == BUS:
            return frames.answer(serial, BUS)
        if target != self.owner:
            gone: dict[int, str | int] = {
                frames.REPLY_SERIAL: serial,
                frames.SENDER: BUS,
                frames.ERROR_NAME: SERVICE_UNKNOWN,
            }
            return frames.message(frames.ERROR, gone)
        return self.answers(serial)

    def send(self, *data: bytes) -> None:
        """Bring something to the client."""
        assert self._peer is not None
        self._peer.sendall(b"".join(data))

    def close(self) -> None:
        """The bus ends."""
        for sock in (self._listener, self._peer):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()
        self._thread.join()


def destination(data: bytes) -> str:
    """Of a message."""
    at = data.index(b"\x06\x01s\x00") + 4
    return data[at + 4 : at + 4 + data[at]].decode()


def text(serial: int, words: str, sender: str = OWNER) -> bytes:
    """An answer that is a string."""
    return frames.answer(serial, sender, frames.strings(words), "s")
