# SPDX-License-Identifier: GPL-2.0-or-later
"""The system bus: a call with an answer in bounded time, and to be woken when a service comes, goes or changes.

Any user of the qube may send us what it likes, as much and as often as it likes (B110, B111). So the socket never
blocks; a round of reading has a limit in bytes, and with it in messages and time; `core.bus_messages` judges by the
header alone what counts, and only then a body is read; nothing of the rest is kept. Nothing here ever starts a service:
a call to one that is not running is an error.

The messages we send, and the bodies of answers, are jeepney's (python3-jeepney in Debian and Fedora), of which only the
module without any IO is loaded: 30 kB, and no loop that would have to be ours. It is optional: without it there is no
bus, and the caller falls back to a program.
"""

from __future__ import annotations

import os
import select
import socket
import time

from ..core import bus_messages
from ..core.bus_messages import BUS, Exchange, Malformed, Message, Stream
from ..errors import GuestnetError
from . import lean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ADDRESS = "/run/dbus/system_bus_socket"
SECONDS = 0.5  # a bus answers in 1 ms
# After an answer that did not come in time, calls fail at once for so long, or until it comes late.
PATIENCE_SECONDS = 3.0
# One round of reading, some hundred messages at most, after which everything else that waits has its turn.
ROUND_BYTES = 1 << 15
CROWDED_READS = 8  # while an answer is waited for; what belongs there comes in two or three
_LONGEST_LINE = 512  # of the authentication
_BUS = (BUS, "/org/freedesktop/DBus", BUS)
_PATH, _INTERFACE, _MEMBER, _DESTINATION, _SIGNATURE = 1, 2, 3, 6, 8


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


class TooLong(BusError):
    """Some program sent a message that is too long to be read; the connection is of no use any more."""


class Crowded(BusError):
    """An answer did not come, and messages of other programs came instead; only a new connection helps.

    It waits behind them, or the bus has dropped it: dbus-broker keeps only so much of one user's for a connection.
    """


class Bus:
    """One connection.

    Args:
        path: the bus's socket.

    Raises:
        BusError: there is no bus, or it refuses us.
        ImportError: jeepney is not installed, or cannot be used.
    """

    def __init__(self, path: str = ADDRESS) -> None:
        self._library: Any = _library()
        self._stream, self._exchange = Stream(), Exchange()
        self._again = 0.0
        self._ended: BusError | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(path)
            self._authenticate(time.monotonic() + SECONDS)
            self.call(*_BUS, "Hello")
        except (OSError, BusError) as error:
            self._socket.close()
            raise error if isinstance(error, BusError) else BusError(f"{path}: {error.strerror or error}") from None

    def _authenticate(self, deadline: float) -> None:
        """SASL EXTERNAL: the socket itself tells the bus who we are (D-Bus specification, authentication)."""
        self._send(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n", deadline)
        answer = b""
        while not answer.endswith(b"\r\n") and len(answer) < _LONGEST_LINE:
            self._wait(select.POLLIN, deadline, "authentication")
            answer += self._read(_LONGEST_LINE - len(answer))
        if not answer.startswith(b"OK "):
            raise BusError(f"the system bus refuses the connection: {answer[:60]!r}")
        self._send(b"BEGIN\r\n", deadline)

    def fileno(self) -> int:
        """For poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    @property
    def ended(self) -> bool:
        """Whether the connection is of no use any more: `drain` then says why."""
        return self._ended is not None

    def watch_owner(self, service: str) -> None:
        """Be woken when a service comes or goes."""
        rule = f"type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',arg0='{service}'"
        self.call(*_BUS, "AddMatch", "s", (rule,))
        self._exchange.watch(service, self._asked_owner(service))

    def watch_properties(self, service: str) -> None:
        """Be woken when a service whose owner is watched says that a property of one of its objects has changed."""
        changed = f"interface='{bus_messages.PROPERTIES}',member='PropertiesChanged'"
        self.call(*_BUS, "AddMatch", "s", (f"type='signal',sender='{service}',{changed}",))

    def owner(self, service: str) -> str:
        """Unique name of the connection that owns a service's name, another after each restart; "" for none."""
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
        """Read one round of what is there without waiting; what is left over makes poll return again.

        Returns:
            Whether a service came, went or changed, or answered late, since the last time.

        Raises:
            TooLong: some program sent a message that is not read.
            BusError: the bus went away.
        """
        self._round()
        return self._exchange.take_signalled()

    def signalled(self) -> bool:
        """Whether such a thing came while something else was asked: poll says nothing of it any more."""
        return self._exchange.take_signalled()

    def call(
        self, destination: str, path: str, interface: str, member: str, signature: str = "", body: tuple[Any, ...] = ()
    ) -> tuple[Any, ...]:
        """Call a method and wait for the answer.

        Args:
            destination: name of a service, or of the bus. The call goes to the connection that owns the name now, and
                only that connection can answer it.
            path: the object.
            interface: of the method.
            member: the method.
            signature: types of its arguments.
            body: its arguments.

        Raises:
            BusError: it is an error, or does not come within SECONDS.
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
                    raise  # else it has restarted, and what tells so is in the socket still
        owner = self._asked_owner(destination)
        if not owner:
            raise BusError(f"{destination} is not running", f"{BUS}.Error.NameHasNoOwner")
        self._exchange.watch(destination, owner)
        return self._ask(owner, what, texts, body)

    def _ask(self, name: str, what: str, texts: dict[int, str], body: tuple[Any, ...]) -> tuple[Any, ...]:
        """Ask the connection of this name, and no other."""
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
        """The body of a message that counts, so of the bus or of the service asked."""
        try:
            return tuple(self._library.Message.from_buffer(message.data).body)
        except Exception as error:  # which errors a parser has for what it does not expect is not documented
            raise BusError(f"{what}: malformed answer: {error!r}") from None

    # --- the socket ----------------------------------------------------------------------------------------------

    def _answer(self, deadline: float, what: str) -> Message:
        reads = 0
        while time.monotonic() < deadline:  # looked at in each round: messages of others must not prolong it
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
        """Read and judge what is there, up to the bound.

        Returns:
            The answer to the question if it is among it.

        Raises:
            BusError: the connection is of no use any more, and stays so.
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
        """Whether the socket can be read or written before the deadline."""
        poll = select.poll()
        poll.register(self._socket, event)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


def _library() -> Any:
    """The module of messages of jeepney.

    Raises:
        ImportError: see Bus.
    """
    try:
        return lean.load("jeepney", ("low_level",), _right)[0]
    except ImportError:
        raise
    except Exception as error:  # a release that breaks, in a way that only its authors know
        raise ImportError(f"jeepney: {type(error).__name__}: {error}") from None


def _right(library: Any) -> bool:
    """Whether jeepney packs a message and reads it again."""
    named = {library.HeaderFields(_MEMBER): "Member", library.HeaderFields(_SIGNATURE): "ia(iay)"}
    flags, body = library.MessageFlag.no_auto_start, (5, [(2, bytes(4))])
    header = library.Header(library.Endianness.little, library.MessageType.method_call, flags, 1, 0, 7, named)
    data = bytes(library.Message(header, body).serialise(7))
    found = bus_messages.parse(data)
    return found.member == "Member" and tuple(library.Message.from_buffer(data).body) == body
