# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages of the system bus: split the stream, and select the relevant ones.

Any user of the qube can send messages to any connection of the system bus (behaviours B110, B111). So a message is
accepted or rejected by its `sender`, which only the bus can set. This module does not parse bodies; `Exchange` first
decides whether a message is accepted. Rejected messages are not stored.

Sources: the D-Bus specification, "Message Protocol", "Message Bus Names" and "org.freedesktop.DBus.NameOwnerChanged".
"""

from __future__ import annotations

import struct

from .namedtuple import NamedTuple

LONGEST = 1 << 16  # bytes of a message with its header; the longest expected answer has a few thousand
START = 16  # bytes at the start of a message that determine its length
RETURN, ERROR, SIGNAL = 2, 3, 4
BUS = "org.freedesktop.DBus"
PROPERTIES = "org.freedesktop.DBus.Properties"

_INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _SENDER = 2, 3, 4, 5, 7
# Types of the header's fields by their codes.
_TYPES = {1: b"o", 2: b"s", 3: b"s", 4: b"s", 5: b"u", 6: b"s", 7: b"s", 8: b"g", 9: b"u"}
_SENDER_FIELD = b"\x07\x01s\0"
_ORDERS = {ord("l"): "<", ord("B"): ">"}


class Malformed(ValueError):
    """The stream, or a message in it, violates the specification."""


class TooLong(Malformed):
    """A message is longer than LONGEST, so the stream cannot be read further."""


class Message(NamedTuple):
    """A complete message.

    Args:
        kind: RETURN, ERROR, SIGNAL, or another number of the specification.
        sender: name of the sending connection, as the bus wrote it; "" for none.
        reply_serial: serial of the answered call; 0 for none.
        interface: interface of a signal.
        member: name of a signal.
        error_name: name of an error.
        data: the whole message, including the header.
        body: offset of the body in `data`.
    """

    kind: int
    sender: str = ""
    reply_serial: int = 0
    interface: str = ""
    member: str = ""
    error_name: str = ""
    data: bytes = b""
    body: int = 0


def length(start: bytes) -> int:
    """Return the length of a message in bytes, from its first START bytes.

    Raises:
        Malformed: the bytes are not the start of a message.
        TooLong: the message is longer than LONGEST.
    """
    order = _ORDERS.get(start[0])
    if order is None or start[3] != 1:
        raise Malformed(f"invalid start of a D-Bus message: {start[:4]!r}")
    body, _, fields = struct.unpack_from(order + "3I", start, 4)
    whole = int(-(-(START + fields) // 8) * 8 + body)
    if whole > LONGEST:
        raise TooLong(f"a message of {whole} bytes, the limit is {LONGEST}")
    return whole


def parse(data: bytes) -> Message:
    """Parse a complete message, as long as `length` returned.

    An unknown header field is skipped if it has a basic type.

    Raises:
        Malformed: the header violates the specification, or has a field of a container type.
    """
    try:
        fields, body = _fields(data)
    except (struct.error, IndexError, UnicodeDecodeError):
        raise Malformed("a message header is truncated") from None
    sender, interface, member, error_name = (
        str(fields.get(code, "")) for code in (_SENDER, _INTERFACE, _MEMBER, _ERROR_NAME)
    )
    return Message(data[1], sender, int(fields.get(_REPLY_SERIAL, 0)), interface, member, error_name, data, body)


def _fields(data: bytes) -> tuple[dict[int, str | int], int]:
    order = _ORDERS[data[0]]
    end = START + struct.unpack_from(order + "I", data, 12)[0]
    fields: dict[int, str | int] = {}
    at = START
    while at < end:
        at = -(-at // 8) * 8
        code, kind = data[at], data[at + 2 : at + 3]
        if data[at + 1] != 1 or data[at + 3] or kind != _TYPES.get(code, kind) or code in fields:
            raise Malformed(f"header field {code} violates the specification")
        fields[code], at = _basic(data, at + 4, kind, order)
    if at > end:
        raise Malformed("the header fields exceed their declared length")
    return fields, -(-end // 8) * 8


def _basic(data: bytes, at: int, kind: bytes, order: str) -> tuple[str | int, int]:
    """Return the value of a basic type at offset `at`, a multiple of 4, and the offset of its end."""
    if kind in b"so":
        return _text(data, at + 4, struct.unpack_from(order + "I", data, at)[0])
    if kind == b"g":
        return _text(data, at + 1, data[at])
    if kind in b"ub":
        return struct.unpack_from(order + "I", data, at)[0], at + 4
    size = _UNKNOWN.get(kind)
    if size is None:
        raise Malformed(f"a header field has the type {kind!r}")
    return 0, -(-at // size) * size + size


# Sizes, in bytes, of the basic types that no known field has.
_UNKNOWN = {b"y": 1, b"n": 2, b"q": 2, b"i": 4, b"x": 8, b"t": 8, b"d": 8}


def _text(data: bytes, at: int, size: int) -> tuple[str, int]:
    end = at + size
    if data[end]:
        raise Malformed("a header string is not terminated")
    return data[at:end].decode(), end + 1


def texts(message: Message) -> tuple[str, ...]:
    """Return the body of a message that consists only of strings.

    Raises:
        Malformed: the body has another type.
    """
    found, at, order = [], message.body, _ORDERS[message.data[0]]
    try:
        while at < len(message.data):
            text, at = _basic(message.data, -(-at // 4) * 4, b"s", order)
            found.append(str(text))
    except (struct.error, IndexError, UnicodeDecodeError):
        raise Malformed("the message body does not consist of strings") from None
    return tuple(found)


class Stream:
    """Split a stream into messages. It stores at most the beginning of one message, shorter than LONGEST."""

    def __init__(self) -> None:
        self._rest = b""

    def receive(self, data: bytes) -> list[bytes]:
        """Take received data, and return the complete messages.

        Returns:
            The messages that are complete now.

        Raises:
            Malformed, TooLong: see `length`; the stream cannot be read any further.
        """
        data, found, at = self._rest + data, [], 0
        while len(data) - at >= START:
            end = at + length(data[at : at + START])
            if end > len(data):
                break
            found.append(data[at:end])
            at = end
        self._rest = data[at:]
        return found


class Exchange:
    """The calls on one connection, and the selection of relevant messages.

    An answer is a return or an error with the serial of the call, from the called connection, or an error of the bus
    itself, which reports that this connection has gone. NameOwnerChanged is accepted only from the bus, and
    PropertiesChanged only from the connection that owns a watched service.
    """

    def __init__(self) -> None:
        self._question: tuple[int, str] | None = None
        self._late: tuple[int, str] | None = None
        self._owners: dict[str, str] = {}
        self._signalled = False
        self._marks: dict[int, tuple[bytes, ...]] = {}
        self._mark()

    def ask(self, serial: int, name: str) -> None:
        """Register a call.

        Args:
            serial: its serial, random so that no other program can know it.
            name: the unique name of the called connection, or BUS.
        """
        self._question = (serial, name)
        self._mark()

    def give_up(self) -> None:
        """Stop waiting for the answer. A late answer wakes the agent."""
        self._late, self._question = self._question, None

    @property
    def late(self) -> bool:
        """Return whether the answer to an abandoned call is still missing."""
        return self._late is not None

    def watch(self, service: str, owner: str) -> None:
        """Follow a service's owner, "" for none, by NameOwnerChanged from now on."""
        self._owners[service] = owner
        self._mark()

    def owner(self, service: str) -> str:
        """Return the unique name of the connection that owns a watched service; "" if unknown."""
        return self._owners.get(service, "")

    def take_signalled(self) -> bool:
        """Return whether a watched service appeared, went, changed, or answered late since the last call."""
        signalled, self._signalled = self._signalled, False
        return signalled

    def _mark(self) -> None:
        """Return the header bytes of one of these senders."""
        asked = [question[1] for question in (self._question, self._late) if question is not None]
        names = {BUS, *self._owners.values(), *asked} - {""}
        self._marks = {
            first: tuple(_SENDER_FIELD + struct.pack(order + "I", len(name)) + name.encode() + b"\0" for name in names)
            for first, order in _ORDERS.items()
        }

    def hear(self, data: bytes) -> Message | None:
        """Accept or reject a message, and register relevant signals.

        A flood of foreign messages must cost almost nothing, so the bytes are first searched for the accepted senders.
        No other sender can forge these bytes, because a text cannot contain a zero byte.

        Returns:
            The message if it is the answer to the question, else None.
        """
        end = START + struct.unpack_from(_ORDERS[data[0]] + "I", data, 12)[0]
        if not any(data.find(mark, START, end) >= 0 for mark in self._marks[data[0]]):
            return None
        try:
            message = parse(data)
            return message if self._counts(message) else None
        except Malformed:
            return None

    def _counts(self, message: Message) -> bool:
        if message.kind in (RETURN, ERROR):
            if self._question is not None and _answers(message, *self._question):
                self._question = self._late = None
                return True
            if self._late is not None and _answers(message, *self._late):
                self._late, self._signalled = None, True
        elif message.kind == SIGNAL:
            self._note(message)
        return False

    def _note(self, message: Message) -> None:
        if (message.sender, message.interface, message.member) == (BUS, BUS, "NameOwnerChanged"):
            name, _, owner = texts(message)
            if name in self._owners:
                self._owners[name], self._signalled = owner, True
                self._mark()
        elif (message.interface, message.member) == (PROPERTIES, "PropertiesChanged"):
            self._signalled |= bool(message.sender) and message.sender in self._owners.values()


def _answers(message: Message, serial: int, name: str) -> bool:
    from_asked = message.sender == name or (message.sender == BUS and message.kind == ERROR)
    return message.reply_serial == serial and from_asked
