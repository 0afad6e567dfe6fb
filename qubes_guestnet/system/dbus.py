# SPDX-License-Identifier: GPL-2.0-or-later
"""The system bus: a call with an answer in bounded time, and to be woken when a service comes or goes.

The messages are jeepney's (python3-jeepney in Debian and Fedora), of which only the module without any IO is loaded:
30 kB, and no loop that would have to be ours. It is optional: without it there is no bus, and who wants one says what
then. Nothing here ever starts a service: a call to one that is not running is an error.
"""

from __future__ import annotations

import os
import socket
import time

from ..errors import GuestnetError
from . import lean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ADDRESS = "/run/dbus/system_bus_socket"
SECONDS = 0.5  # a bus answers in 1 ms
_BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
_SIGNALS = ("NameOwnerChanged", "PropertiesChanged")
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION, _SENDER, _SIGNATURE = range(1, 9)


class BusError(GuestnetError):
    """The bus or a service on it did not do what it was asked. `absent` says that the service is not running."""

    retryable = True

    def __init__(self, problem: str, name: str = "") -> None:
        super().__init__(problem)
        self.name = name

    @property
    def absent(self) -> bool:
        """Whether the service asked for is not there: nothing is wrong then, and nothing to be done."""
        return self.name.rpartition(".")[2] in ("ServiceUnknown", "NameHasNoOwner", "NoSuchUnit", "UnitMasked")


class Bus:
    """One connection.

    Args:
        path: the bus's socket.

    Raises:
        BusError: nobody listens there, or it refuses us.
        ImportError: jeepney is not installed.
    """

    def __init__(self, path: str = ADDRESS) -> None:
        self._library: Any = lean.submodule("jeepney.low_level")
        self._parser: Any = self._library.Parser()
        self._serial = 0
        self._signalled = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(SECONDS)
            self._socket.connect(path)
            self._authenticate()
            self.call(*_BUS, "Hello")
        except (OSError, BusError) as error:
            self._socket.close()
            raise error if isinstance(error, BusError) else BusError(f"{path}: {error.strerror or error}") from None

    def _authenticate(self) -> None:
        """SASL EXTERNAL: the socket itself tells the bus who we are (D-Bus specification, authentication)."""
        self._socket.sendall(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
        answer = b""
        while not answer.endswith(b"\r\n"):
            piece = self._socket.recv(512)
            if not piece:
                raise BusError("the system bus closed the connection")
            answer += piece
        if not answer.startswith(b"OK "):
            raise BusError(f"the system bus refuses us: {answer[:60]!r}")
        self._socket.sendall(b"BEGIN\r\n")

    def fileno(self) -> int:
        """For poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def watch_owner(self, service: str) -> None:
        """Be woken when a service comes or goes."""
        rule = f"type='signal',sender='{_BUS[0]}',interface='{_BUS[2]}',member='NameOwnerChanged',arg0='{service}'"
        self.call(*_BUS, "AddMatch", "s", (rule,))

    def watch_properties(self, service: str) -> None:
        """Be woken when a service says that a property of one of its objects has changed."""
        changed = "interface='org.freedesktop.DBus.Properties',member='PropertiesChanged'"
        self.call(*_BUS, "AddMatch", "s", (f"type='signal',sender='{service}',{changed}",))

    def owner(self, service: str) -> str:
        """Unique name of the connection that owns a service's name, another after each restart; "" for none."""
        try:
            return str(self.call(*_BUS, "GetNameOwner", "s", (service,))[0])
        except BusError as error:
            if error.absent:
                return ""
            raise

    def drain(self) -> bool:
        """Eat what is there without waiting; True if a service came, went or changed since the last time.

        Raises:
            BusError: the bus went away.
        """
        try:
            while True:
                data = self._socket.recv(65536, socket.MSG_DONTWAIT)
                if not data:
                    raise BusError("the system bus went away")
                self._parser.add_data(data)
        except BlockingIOError:
            pass
        except OSError as error:
            raise BusError(f"system bus: {error.strerror}") from None
        while self._next() is not None:
            continue
        signalled, self._signalled = self._signalled, False
        return signalled

    def call(
        self, destination: str, path: str, interface: str, member: str, signature: str = "", body: tuple[Any, ...] = ()
    ) -> tuple[Any, ...]:
        """Call a method and wait for the answer.

        Raises:
            BusError: it is an error, or does not come within SECONDS.
        """
        self._serial += 1
        self._send(destination, path, interface, member, signature, body)
        deadline = time.monotonic() + SECONDS
        try:
            while True:
                message = self._next()
                if message is None:
                    self._receive(deadline, member)
                elif message.header.fields.get(_REPLY_SERIAL) == self._serial:
                    break
        except OSError as error:
            raise BusError(f"{destination} {member}: {error.strerror or error}") from None
        name = message.header.fields.get(_ERROR_NAME, "")
        if name:
            text = message.body[0] if message.body and isinstance(message.body[0], str) else name
            raise BusError(f"{destination} {member}: {text}", name)
        return tuple(message.body)

    def _send(
        self, destination: str, path: str, interface: str, member: str, signature: str, body: tuple[Any, ...]
    ) -> None:
        kind, fields = self._library.MessageType.method_call, self._library.HeaderFields
        texts = {_PATH: path, _DESTINATION: destination, _INTERFACE: interface, _MEMBER: member}
        if signature:
            texts[_SIGNATURE] = signature
        named = {fields(number): text for number, text in texts.items()}
        flags = self._library.MessageFlag.no_auto_start
        header = self._library.Header(self._library.Endianness.little, kind, flags, 1, 0, self._serial, named)
        data = self._library.Message(header, body).serialise(self._serial)
        self._socket.settimeout(SECONDS)
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise BusError(f"system bus: {error.strerror or error}") from None

    def _receive(self, deadline: float, member: str) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise BusError(f"{member}: no answer within {SECONDS:g} s")
        self._socket.settimeout(left)
        data = self._socket.recv(65536)
        if not data:
            raise BusError("the system bus went away")
        self._parser.add_data(data)

    def _next(self) -> Any:
        """The next whole message that came, or None. Signals are noted on the way."""
        message = self._parser.get_next_message()
        if message is not None and message.header.fields.get(_MEMBER) in _SIGNALS:
            self._signalled = True
        return message
