# SPDX-License-Identifier: GPL-2.0-or-later
"""Another program on a message bus: a service, or one that means no good.

    python -m tests.support.programs.bus_peer serve NAME SECONDS     answer each call with GOOD, after a pause
    python -m tests.support.programs.bus_peer forge TARGET COUNT SERIAL    forged messages of every type
    python -m tests.support.programs.bus_peer flood TARGET           small ones without a pause, until it is ended
    python -m tests.support.programs.bus_peer trickle TARGET         three small ones a second
    python -m tests.support.programs.bus_peer long TARGET BYTES      a long message to each new connection

TARGET is a name on the bus, or "agent": the connections of a process whose command line ends so.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator

from qubes_guestnet.core.bus_messages import BUS, RETURN, Message, Stream, parse, texts
from qubes_guestnet.system.dbus.bus import ADDRESS
from tests.support.programs import bus_frames as frames

SERVICE = "org.freedesktop.resolve1"
PROPERTIES = "org.freedesktop.DBus.Properties"
GOOD, EVIL = "the answer of the service", "the answer of another program"
_METHOD = {frames.PATH: "/org/freedesktop/DBus", frames.INTERFACE: BUS, frames.DESTINATION: BUS}


class Peer:
    """A connection that waits as long as it takes."""

    def __init__(self) -> None:
        self._stream, self._waiting, self._serial = Stream(), list[Message](), 0
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(ADDRESS)
        self.socket.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
        assert self.socket.recv(512).startswith(b"OK")
        self.socket.sendall(b"BEGIN\r\n")
        self.name = texts(self.ask("Hello"))[0]

    def ask(self, member: str, *arguments: str, extra: bytes = b"", signature: str = "") -> Message:
        """Call a method of the bus, with strings and what is packed already."""
        self._serial += 1
        fields: dict[int, str | int] = {**_METHOD, frames.MEMBER: member}
        if arguments or extra:
            fields[frames.SIGNATURE] = "s" * len(arguments) + signature
        body = frames.strings(*arguments)
        if extra:
            body = frames.aligned(body, 4) + extra
        self.socket.sendall(frames.message(frames.CALL, fields, body, serial=self._serial, flags=0))
        while True:
            found = self.receive()
            if found.reply_serial == self._serial:
                return found

    def receive(self) -> Message:
        """The next message."""
        while not self._waiting:
            data = self.socket.recv(4096)
            assert data, "the bus closed the connection"
            self._waiting += map(parse, self._stream.receive(data))
        return self._waiting.pop(0)


def serve(name: str, seconds: str) -> None:
    """Own a name, and answer."""
    peer = Peer()
    peer.ask("RequestName", name, extra=bytes(4), signature="u")
    print("ready", flush=True)
    while True:
        call = peer.receive()
        if call.kind != frames.CALL:
            continue
        time.sleep(float(seconds))
        serial = int.from_bytes(call.data[8:12], "little")
        fields: dict[int, str | int] = {frames.REPLY_SERIAL: serial, frames.DESTINATION: call.sender}
        peer.socket.sendall(
            frames.message(frames.RETURN, {**fields, frames.SIGNATURE: "s"}, frames.strings(GOOD), serial=serial)
        )


def forgeries(target: str, serial: int) -> tuple[bytes, ...]:
    """One of each type that a bus may let through, as evil as it gets."""
    to: dict[int, str | int] = {frames.DESTINATION: target, frames.PATH: "/org/freedesktop/DBus"}
    reply: dict[int, str | int] = {**to, frames.REPLY_SERIAL: serial, frames.SIGNATURE: "s"}
    changed = {frames.INTERFACE: PROPERTIES, frames.MEMBER: "PropertiesChanged"}
    owner = {frames.INTERFACE: BUS, frames.MEMBER: "NameOwnerChanged"}
    body = frames.strings(EVIL)
    error = {frames.ERROR_NAME: "org.freedesktop.DBus.Error.ServiceUnknown"}
    owners = frames.strings(SERVICE, ":1.0", ":1.66")
    make = frames.message
    return (
        make(frames.SIGNAL, {**reply, **changed}, body),
        make(frames.SIGNAL, {**to, **changed}),
        make(frames.SIGNAL, {**to, **owner, frames.SIGNATURE: "sss"}, owners),
        make(frames.SIGNAL, {**reply, **owner, frames.SIGNATURE: "sss"}, owners),
        make(frames.RETURN, reply, body),
        make(frames.ERROR, {**reply, **error}, body),
        make(frames.CALL, {**to, **changed, frames.SIGNATURE: "s"}, body),
        make(frames.CALL, {**reply, frames.INTERFACE: PROPERTIES, frames.MEMBER: "GetAll"}, body),
    )


def big(target: str) -> bytes:
    """A message near the limit."""
    fields: dict[int, str | int] = {frames.DESTINATION: target, frames.PATH: "/x", frames.SIGNATURE: "ay"}
    return frames.message(
        frames.SIGNAL,
        {**fields, frames.INTERFACE: PROPERTIES, frames.MEMBER: "PropertiesChanged"},
        (60000).to_bytes(4, "little") + bytes(60000),
    )


def send(peer: Peer, data: bytes) -> Peer:
    """Send as they are; a bus that ends the connection for it gets a new one."""
    try:
        peer.socket.sendall(data)
        return peer
    except OSError as error:
        print("the bus:", error, flush=True)
        return Peer()


def forge(target: str, count: str, serial: str) -> None:
    """As many as asked for, of each type in turn."""
    peer, kinds = Peer(), forgeries(target, int(serial))
    print("from", peer.name, flush=True)
    for number in range(0, int(count), len(kinds)):
        peer = send(peer, b"".join(kinds) + (big(target) if number % 1000 == 0 else b""))
    peer.ask("GetId")  # the bus has read all before
    print("sent", count, flush=True)


def targets(peer: Peer, name: str) -> Iterator[str]:
    """See the top."""
    if name != "agent":
        yield name
        return
    names = peer.ask("ListNames")
    for unique in texts(names._replace(body=names.body + 4)):  # behind the length of the array
        if unique.startswith(":"):
            answer = peer.ask("GetConnectionUnixProcessID", unique)
            if answer.kind != RETURN:
                continue  # it went just now
            pid = int.from_bytes(answer.data[answer.body :], "little")
            with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", encoding="utf-8") as words:
                if words.read().split("\0")[-2:-1] == ["agent"]:
                    yield unique


def many(name: str, pause: float, size: int) -> None:
    """The same messages again and again, as the whole of `forgeries` or each for itself."""
    peer = Peer()
    found = list(targets(peer, name))
    print("to", *found, flush=True)
    data = [one for target in found for one in forgeries(target, 1)]
    while True:
        for start in range(0, len(data), size):
            peer = send(peer, b"".join(data[start : start + size]))
            time.sleep(pause)


def long(name: str, size: str) -> None:
    """To each new connection as soon as it is there."""
    peer, hit = Peer(), set[str]()
    while True:
        for target in set(targets(peer, name)) - hit:
            hit.add(target)
            fields: dict[int, str | int] = {frames.DESTINATION: target, frames.PATH: "/x", frames.SIGNATURE: "ay"}
            fields |= {frames.INTERFACE: PROPERTIES, frames.MEMBER: "PropertiesChanged"}
            body = int(size).to_bytes(4, "little") + bytes(int(size))
            peer = send(peer, frames.message(frames.SIGNAL, fields, body))
            print("hit", target, flush=True)
        time.sleep(0.02)


MODES: dict[str, Callable[..., None]] = {
    "serve": serve,
    "forge": forge,
    "flood": lambda name: many(name, 0.0, 100),
    "trickle": lambda name: many(name, 0.3, 1),
    "long": long,
}

if __name__ == "__main__":
    MODES[sys.argv[1]](*sys.argv[2:])
