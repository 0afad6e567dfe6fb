# SPDX-License-Identifier: GPL-2.0-or-later
"""The system bus: calls with bounded time, and wake-ups when a service appears, disappears or changes.

Any user of the qube may send any number of arbitrary messages (B110, B111). So the socket never blocks; each round of
reading is limited in bytes, and so in messages and time; `core.bus_messages` decides by the header alone which messages
are accepted, and only their bodies are parsed. This module never starts a service: a call to one that is not running is
an error.

jeepney (python3-jeepney in Debian and Fedora) packs the requests and parses the bodies; only its module without IO is
loaded (30 kB). It is optional: without it there is no bus, and the caller falls back to a program.
"""

from __future__ import annotations

import os
import select
import time

from ...core import bus_messages
from ...core.bus_messages import BUS, Exchange, Malformed, Message, Stream
from ...errors import GuestnetError
from .. import deferred_imports
from .. import plain_socket as socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ADDRESS = "/run/dbus/system_bus_socket"
SECONDS = 0.5  # a bus answers in 1 ms
# After a timeout, calls fail at once for this long, or until the late answer arrives.
PATIENCE_SECONDS = 3.0
# One round of reading, at most some hundred messages; then the rest of the loop runs.
ROUND_BYTES = 1 << 15
CROWDED_READS = 8  # while an answer is waited for; what belongs there comes in two or three
_LONGEST_LINE = 512  # of the authentication
_BUS = (BUS, "/org/freedesktop/DBus", BUS)
_PATH, _INTERFACE, _MEMBER, _DESTINATION, _SIGNATURE = 1, 2, 3, 6, 8


class BusError(GuestnetError):
    """A call failed. `absent`: the service is not running."""

    retryable = True

    def __init__(self, problem: str, name: str = "") -> None:
        super().__init__(problem)
        self.name = name

    @property
    def absent(self) -> bool:
        """Return whether the service is not running, which is not a fault."""
        return self.name.rpartition(".")[2] in ("ServiceUnknown", "NameHasNoOwner", "NoSuchUnit", "UnitMasked")


class TooLong(BusError):
    """Another program sent an overlong message; the connection is unusable."""


class Crowded(BusError):
    """Messages of other programs crowd out an answer; only a new connection helps.

    The answer is queued behind them, or the bus dropped it: dbus-broker limits the data queued by one user.
    """


class Bus:
    """One connection.

    Args:
        path: the bus's socket.

    Raises:
        BusError: there is no bus, or it refuses the connection.
        ImportError: jeepney is not installed, or cannot be used.
    """

    def __init__(self, path: str = ADDRESS) -> None:
        self._library: Any = _library()
        self._stream, self._exchange = Stream(), Exchange()
        self._again = 0.0
        self._ended: BusError | None = None
        kind = socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            self._socket = socket.socket(socket.AF_UNIX, kind)
        except OSError as error:  # out of file descriptors
            raise BusError(f"{path}: {error.strerror or error}") from None
        try:
            self._socket.connect(path)
            self._authenticate(time.monotonic() + SECONDS)
            self.call(*_BUS, "Hello")
        except (OSError, BusError) as error:
            self._socket.close()
            raise error if isinstance(error, BusError) else BusError(f"{path}: {error.strerror or error}") from None

    def _authenticate(self, deadline: float) -> None:
        """Authenticate by SASL EXTERNAL, the credentials of the socket (D-Bus specification, authentication)."""
        self._send(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n", deadline)
        answer = b""
        while not answer.endswith(b"\r\n") and len(answer) < _LONGEST_LINE:
            self._wait(select.POLLIN, deadline, "authentication")
            answer += self._read(_LONGEST_LINE - len(answer))
        if not answer.startswith(b"OK "):
            raise BusError(f"the system bus refuses the connection: {answer[:60]!r}")
        self._send(b"BEGIN\r\n", deadline)

    def fileno(self) -> int:
        """Return the descriptor for poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    @property
    def ended(self) -> bool:
        """Return whether the connection is unusable; `drain` then raises the reason."""
        return self._ended is not None

    def watch_owner(self, service: str) -> None:
        """Subscribe to the start and end of a service."""
        rule = f"type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',arg0='{service}'"
        self.call(*_BUS, "AddMatch", "s", (rule,))
        self._exchange.watch(service, self._asked_owner(service))

    def watch_properties(self, service: str) -> None:
        """Subscribe to property changes of a service whose owner is watched."""
        changed = f"interface='{bus_messages.PROPERTIES}',member='PropertiesChanged'"
        self.call(*_BUS, "AddMatch", "s", (f"type='signal',sender='{service}',{changed}",))

    def owner(self, service: str) -> str:
        """Return the unique name of a service's owner, which changes with each restart; "" for none."""
        return self._exchange.owner(service) or self._asked_owner(service)

    def _asked_owner(self, service: str) -> str:
        try:
            owner = str(self.call(*_BUS, "GetNameOwner", "s", (service,))[0])
        except BusError as error:
            if not error.absent:
                raise
            owner = ""
        return owner

    def drain(self) -> bool:
        """Read one round of pending messages without waiting; the rest makes poll return again.

        Returns:
            Whether a service started, ended or changed, or answered late, since the last call.

        Raises:
            TooLong: another program sent an overlong message.
            BusError: the bus closed the connection.
        """
        self._round()
        return self._exchange.take_signalled()

    def signalled(self) -> bool:
        """Return whether such an event arrived during a call, after which poll does not report it."""
        return self._exchange.take_signalled()

    def call(
        self, destination: str, path: str, interface: str, member: str, signature: str = "", body: tuple[Any, ...] = ()
    ) -> tuple[Any, ...]:
        """Call a method and wait for the answer.

        Args:
            destination: name of a service, or of the bus. The call goes to the present owner of the name, and only this
                connection can answer it.
            path: the object.
            interface: of the method.
            member: the method.
            signature: types of its arguments.
            body: its arguments.

        Raises:
            BusError: the answer is an error, or does not arrive within SECONDS.
        """
        what = f"{destination} {member}"
        texts = {_PATH: path, _INTERFACE: interface, _MEMBER: member}
        if signature:
            texts[_SIGNATURE] = signature
        if destination == BUS:
            return self._ask(BUS, what, texts, body)
        owner = self._exchange.owner(destination)
        if owner:
            try:
                return self._ask(owner, what, texts, body)
            except BusError as error:
                if not error.absent:
                    raise  # otherwise the service has restarted, and the signal is still in the socket
        owner = self._asked_owner(destination)
        if not owner:
            raise BusError(f"{destination} is not running", f"{BUS}.Error.NameHasNoOwner")
        self._exchange.watch(destination, owner)
        return self._ask(owner, what, texts, body)

    def _ask(self, name: str, what: str, texts: dict[int, str], body: tuple[Any, ...]) -> tuple[Any, ...]:
        """Call the connection with this unique name."""
        if self._exchange.late and time.monotonic() < self._again:
            raise BusError(f"{what}: an earlier call is still unanswered")
        serial = int.from_bytes(os.urandom(4), "little") or 1
        deadline = time.monotonic() + SECONDS
        self._send(self._packed(serial, {**texts, _DESTINATION: name}, body), deadline)
        self._exchange.ask(serial, name)
        try:
            message = self._answer(deadline, what)
        except BusError:
            self._exchange.give_up()
            self._again = time.monotonic() + PATIENCE_SECONDS
            raise
        answer = self._body(message, what)
        if message.kind == bus_messages.ERROR:
            text = answer[0] if answer and isinstance(answer[0], str) else message.error_name
            raise BusError(f"{what}: {text}", message.error_name)
        return answer

    def _packed(self, serial: int, texts: dict[int, str], body: tuple[Any, ...]) -> bytes:
        library = self._library
        named = {library.HeaderFields(number): text for number, text in texts.items()}
        kind, flags = library.MessageType.method_call, library.MessageFlag.no_auto_start
        header = library.Header(library.Endianness.little, kind, flags, 1, 0, serial, named)
        return bytes(library.Message(header, body).serialise(serial))

    def _body(self, message: Message, what: str) -> tuple[Any, ...]:
        """Return the body of a message that counts, so of the bus or of the service asked."""
        try:
            return tuple(self._library.Message.from_buffer(message.data).body)
        except Exception as error:  # the parser's exceptions for malformed input are undocumented
            raise BusError(f"{what}: malformed answer: {error!r}") from None

    # --- the socket ----------------------------------------------------------------------------------------------

    def _answer(self, deadline: float, what: str) -> Message:
        reads = 0
        while time.monotonic() < deadline:  # checked in each round: messages of other programs must not prolong it
            answer = self._round()
            if answer is not None:
                return answer
            if not self._comes(select.POLLIN, deadline):
                break
            reads += 1
        error = BusError(f"{what}: no answer within {SECONDS:g} s")
        if reads > CROWDED_READS:
            self._ended = error = Crowded(f"{error}; other programs flood the system bus")
        raise error

    def _round(self) -> Message | None:
        """Read and classify pending messages, up to the limit.

        Returns:
            The awaited answer, if it is among them.

        Raises:
            BusError: the connection is unusable from now on.
        """
        if self._ended is not None:
            raise self._ended
        answer = None
        try:
            for data in self._stream.receive(self._read(ROUND_BYTES)):
                answer = self._exchange.hear(data) or answer
        except BlockingIOError:
            return None
        except bus_messages.TooLong as error:
            self._ended = TooLong(f"received from the system bus: {error}")
            raise self._ended from None
        except Malformed as error:
            self._ended = BusError(f"the system bus: {error}")
            raise self._ended from None
        except BusError as error:
            self._ended = error
            raise
        return answer

    def _read(self, size: int) -> bytes:
        try:
            data = self._socket.recv(size)
        except BlockingIOError:
            raise
        except OSError as error:
            raise BusError(f"system bus: {error.strerror}") from None
        if not data:
            raise BusError("the system bus closed the connection")
        return data

    def _send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline, "system bus")
            except OSError as error:
                raise BusError(f"system bus: {error.strerror or error}") from None

    def _wait(self, event: int, deadline: float, what: str) -> None:
        """Wait until the socket can be read or written.

        Raises:
            BusError: it cannot before the deadline.
        """
        if not self._comes(event, deadline):
            raise BusError(f"{what}: no answer within {SECONDS:g} s")

    def _comes(self, event: int, deadline: float) -> bool:
        """Return whether the socket can be read or written before the deadline."""
        poll = select.poll()
        poll.register(self._socket, event)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


def _library() -> Any:
    """Return the module of messages of jeepney.

    Raises:
        ImportError: see Bus.
    """
    try:
        return deferred_imports.load("jeepney", ("low_level",), _right)[0]
    except ImportError:
        raise
    except Exception as error:  # a release that breaks, in a way that only its authors know
        raise ImportError(f"jeepney: {type(error).__name__}: {error}") from None


def _right(library: Any) -> bool:
    """Return whether jeepney packs a message and reads it again."""
    named = {library.HeaderFields(_MEMBER): "Member", library.HeaderFields(_SIGNATURE): "ia(iay)"}
    flags, body = library.MessageFlag.no_auto_start, (5, [(2, bytes(4))])
    header = library.Header(library.Endianness.little, library.MessageType.method_call, flags, 1, 0, 7, named)
    data = bytes(library.Message(header, body).serialise(7))
    found = bus_messages.parse(data)
    return found.member == "Member" and tuple(library.Message.from_buffer(data).body) == body
