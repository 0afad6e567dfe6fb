# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages of D-Bus, packed here by hand: right ones, and such as no library would make."""

from __future__ import annotations

import struct
from collections.abc import Mapping

CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4
PATH, INTERFACE, MEMBER, ERROR_NAME, REPLY_SERIAL, DESTINATION, SENDER, SIGNATURE, FDS = range(1, 10)
_TYPES = {PATH: "o", REPLY_SERIAL: "u", SIGNATURE: "g", FDS: "u"}


def aligned(data: bytes, step: int) -> bytes:
    """With zeros up to a multiple of step."""
    return data + bytes(-len(data) % step)


def basic(kind: str, value: str | int, order: str = "<") -> bytes:
    """A value of a basic type, as it is at a place that is a multiple of 8."""
    if kind in "so":
        text = str(value).encode()
        return struct.pack(order + "I", len(text)) + text + b"\0"
    if kind == "g":
        return bytes([len(str(value))]) + str(value).encode() + b"\0"
    code = {"u": "I", "b": "I", "y": "B", "n": "h", "q": "H", "i": "i", "x": "q", "t": "Q", "d": "d"}[kind]
    return struct.pack(order + code, value)


def message(
    kind: int,
    fields: Mapping[int, str | int] | None = None,
    body: bytes = b"",
    *,
    serial: int = 77,
    order: str = "<",
    extra: tuple[tuple[int, str, bytes], ...] = (),
    flags: int = 1,
) -> bytes:
    """A message.

    Args:
        kind: CALL, RETURN, ERROR, SIGNAL or any number.
        fields: of the header, by number.
        body: of it.
        serial: its own.
        order: "<" or ">".
        extra: more fields: number, type, packed value (as at a place that is a multiple of 8, minus 4).
        flags: of the header; 1 says that no answer is expected.
    """
    packed = b""
    for number, value in (fields or {}).items():
        what = _TYPES.get(number, "s")
        packed = aligned(packed, 8) + bytes([number, 1]) + what.encode() + b"\0" + basic(what, value, order)
    for number, what, more in extra:
        packed = aligned(packed, 8) + bytes([number, len(what)]) + what.encode() + b"\0" + more
    start = bytes([ord("l" if order == "<" else "B"), kind, flags, 1])
    head = start + struct.pack(order + "III", len(body), serial, len(packed)) + packed
    return aligned(head, 8) + body


def strings(*values: str, order: str = "<") -> bytes:
    """A body of strings."""
    body = b""
    for value in values:
        body = aligned(body, 4) + basic("s", value, order)
    return body


def owner_changed(service: str, new: str, *, sender: str = "org.freedesktop.DBus", old: str = "") -> bytes:
    """What the bus says when a name gets another owner; or what another sender says so."""
    bus = "org.freedesktop.DBus"
    fields = {PATH: "/org/freedesktop/DBus", INTERFACE: bus, MEMBER: "NameOwnerChanged", SENDER: sender}
    return message(SIGNAL, {**fields, SIGNATURE: "sss"}, strings(service, old, new))


def properties_changed(sender: str) -> bytes:
    """What a service says when a property has changed."""
    interface = "org.freedesktop.DBus.Properties"
    fields = {PATH: "/x", INTERFACE: interface, MEMBER: "PropertiesChanged", SENDER: sender}
    return message(SIGNAL, fields)


def answer(serial: int, sender: str, body: bytes = b"", signature: str = "", kind: int = RETURN) -> bytes:
    """An answer to a call."""
    fields: dict[int, str | int] = {REPLY_SERIAL: serial, SENDER: sender}
    if kind == ERROR:
        fields[ERROR_NAME] = "org.freedesktop.DBus.Error.NoReply"
    if signature:
        fields[SIGNATURE] = signature
    return message(kind, fields, body)
