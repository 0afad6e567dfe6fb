# SPDX-License-Identifier: GPL-2.0-or-later
"""Which messages of the bus count, and that the rest, whatever it is, is only passed over."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_guestnet.core import bus_messages
from qubes_guestnet.core.bus_messages import BUS, Exchange, Malformed, Stream, TooLong, length, parse, texts
from tests.support.programs import bus_frames as frames

RESOLVED, NM = "org.freedesktop.resolve1", "org.freedesktop.NetworkManager"
OWNER, ATTACKER, SERIAL = ":1.5", ":1.66", 0x5EED0001


def exchange(asked: str = OWNER) -> Exchange:
    made = Exchange()
    made.watch(RESOLVED, OWNER)
    made.watch(NM, "")
    made.ask(SERIAL, asked)
    return made


def hear(made: Exchange, *data: bytes) -> list[bool]:
    return [made.hear(one) is not None for one in data]


# --- which sender may say what ---------------------------------------------------------------------------------------


@pytest.mark.behaviour("B110")
@pytest.mark.parametrize("kind", [frames.RETURN, frames.ERROR])
def test_an_answer_is_one_of_the_connection_that_was_asked(kind: int) -> None:
    assert hear(exchange(), frames.answer(SERIAL, OWNER, kind=kind)) == [True]
    for sender in (ATTACKER, "", ":1.50", RESOLVED):
        assert hear(exchange(), frames.answer(SERIAL, sender, kind=kind)) == [False]
    assert hear(exchange(), frames.answer(SERIAL + 1, OWNER, kind=kind)) == [False]
    assert hear(Exchange(), frames.answer(SERIAL, OWNER, kind=kind)) == [False]


@pytest.mark.behaviour("B110")
def test_the_bus_may_answer_for_a_connection_only_that_there_is_none() -> None:
    assert hear(exchange(), frames.answer(SERIAL, BUS, kind=frames.ERROR)) == [True]
    assert hear(exchange(), frames.answer(SERIAL, BUS, kind=frames.RETURN)) == [False]
    assert hear(exchange(BUS), frames.answer(SERIAL, BUS, kind=frames.RETURN)) == [True]
    assert hear(exchange(BUS), frames.answer(SERIAL, OWNER, kind=frames.RETURN)) == [False]


@pytest.mark.behaviour("B110")
@pytest.mark.parametrize("kind", [0, frames.CALL, frames.SIGNAL, 5, 255])
def test_no_other_type_is_an_answer(kind: int) -> None:
    """With dbus-broker a signal may carry the serial of a call."""
    made = exchange()
    assert hear(made, frames.answer(SERIAL, OWNER, kind=kind)) == [False]
    assert hear(made, frames.answer(SERIAL, OWNER)) == [True]


def test_a_question_is_answered_once() -> None:
    assert hear(exchange(), *[frames.answer(SERIAL, OWNER)] * 2) == [True, False]


@pytest.mark.behaviour("B110")
@pytest.mark.behaviour("B111")
def test_owners_change_by_the_words_of_the_bus_alone() -> None:
    made = exchange()
    hear(made, *(frames.owner_changed(RESOLVED, ATTACKER, sender=sender) for sender in (ATTACKER, OWNER, "")))
    assert made.owner(RESOLVED) == OWNER
    assert not made.take_signalled()
    hear(made, frames.owner_changed(RESOLVED, ":1.9", old=OWNER))
    assert made.owner(RESOLVED) == ":1.9"
    assert made.take_signalled()
    assert not made.take_signalled()
    hear(made, frames.owner_changed("org.example.Other", ":1.9"))
    assert (made.owner("org.example.Other"), made.take_signalled()) == ("", False)


@pytest.mark.behaviour("B110")
@pytest.mark.behaviour("B111")
def test_changes_are_told_by_the_owner_alone() -> None:
    made = exchange()
    hear(made, *map(frames.properties_changed, (ATTACKER, BUS, "")))
    assert not made.take_signalled()
    hear(made, frames.properties_changed(OWNER))
    assert made.take_signalled()
    hear(made, frames.owner_changed(RESOLVED, "", old=OWNER))
    assert made.take_signalled()
    hear(made, frames.properties_changed(OWNER), frames.properties_changed(""))
    assert not made.take_signalled(), "it owns nothing any more"


def test_another_signal_of_the_owner_is_none_of_ours() -> None:
    made = exchange()
    fields = {frames.INTERFACE: bus_messages.PROPERTIES, frames.MEMBER: "Other", frames.SENDER: OWNER}
    hear(made, frames.message(frames.SIGNAL, fields))
    assert not made.take_signalled()


@pytest.mark.behaviour("B111")
def test_a_late_answer_wakes_and_is_not_taken_for_another_one() -> None:
    made = exchange()
    made.give_up()
    assert made.late
    made.ask(SERIAL + 1, OWNER)
    assert hear(made, frames.answer(SERIAL, ATTACKER)) == [False]
    assert made.late
    assert hear(made, frames.answer(SERIAL, OWNER)) == [False]
    assert not made.late
    assert made.take_signalled()
    assert hear(made, frames.answer(SERIAL + 1, OWNER)) == [True]


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([ATTACKER, ":1.7", "", RESOLVED, NM]), st.booleans())))
def test_whatever_others_say_changes_nothing(said: list[tuple[int, str, bool]]) -> None:
    made = exchange()
    for kind, sender, signal in said:
        one = frames.owner_changed(RESOLVED, sender, sender=sender) if signal else frames.properties_changed(sender)
        reply = frames.answer(SERIAL, sender, kind=kind)
        assert hear(made, one, reply) == [False, False]
    assert (made.owner(RESOLVED), made.owner(NM), made.take_signalled(), made.late) == (OWNER, "", False, False)
    assert hear(made, frames.answer(SERIAL, OWNER)) == [True]


# --- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders(order: str) -> None:
    fields: dict[int, str | int] = {
        frames.PATH: "/org/freedesktop/DBus", frames.INTERFACE: BUS, frames.MEMBER: "NameOwnerChanged",
        frames.REPLY_SERIAL: 0x01020304, frames.SENDER: BUS, frames.SIGNATURE: "sss", frames.FDS: 1,
        frames.ERROR_NAME: "a.b",
    }  # fmt: skip
    data = frames.message(4, fields, frames.strings("a", "", "ccc", order=order), order=order)
    assert length(data[:16]) == len(data)
    found = parse(data)
    assert found[:6] == (4, BUS, 0x01020304, BUS, "NameOwnerChanged", "a.b")
    assert texts(found) == ("a", "", "ccc")


def test_fields_of_later_specifications_are_skipped() -> None:
    extra = tuple(
        (20 + number, kind, bytes(4 if kind in "xtd" else 0) + frames.basic(kind, "/x" if kind in "sog" else 1))
        for number, kind in enumerate("ybnqiuxtdsog")
    )
    found = parse(frames.message(2, {frames.SENDER: OWNER}, extra=(*extra, (5, "u", b"\x07\0\0\0"))))
    assert (found.sender, found.reply_serial) == (OWNER, 7)


GOOD = frames.answer(SERIAL, OWNER)
BAD = {
    "a container": frames.message(2, extra=((30, "a", bytes(4)),)),
    "two types": frames.message(2, extra=((30, "ss", bytes(8)),)),
    "a type that there is not": frames.message(2, extra=((30, "Z", bytes(8)),)),
    "twice": frames.message(2, {frames.SENDER: OWNER}, extra=((7, "s", frames.basic("s", ATTACKER)),)),
    "another type": frames.message(2, extra=((7, "u", bytes(4)),)),
    "no end of a type": frames.message(2)[:12] + b"\x08\0\0\0" + b"\x07\x01s\x01" + bytes(4),
    "no end of a text": frames.message(2, extra=((7, "s", b"\x01\0\0\0aa"),)),
    "not UTF-8": frames.message(2, extra=((7, "s", b"\x01\0\0\0\xff\0"),)),
    "longer than the message": frames.message(2, extra=((7, "s", b"\xff\xff\xff\xffa\0"),)),
    "longer than its header": frames.message(2, extra=((7, "s", b"\x10\0\0\0a\0"),), body=bytes(64)),
    "cut within a number": frames.message(2)[:12] + b"\x06\0\0\0" + b"\x05\x01u\0\0\0",
    "cut within a field": frames.message(2)[:12] + b"\x08\0\0\0" + b"\x05\x01",
}


@pytest.mark.behaviour("B111")
@pytest.mark.parametrize("bad", BAD)
def test_a_header_that_is_not_as_specified_is_an_error_and_no_crash(bad: str) -> None:
    with pytest.raises(Malformed):
        parse(BAD[bad])


@pytest.mark.parametrize("body", [b"\xff\xff\xff\xff", b"\1\0\0\0a", b"\1\0\0", b"\1\0\0\0aa", b"\1\0\0\0\xff\0"])
def test_a_body_that_is_not_strings(body: bytes) -> None:
    with pytest.raises(Malformed):
        texts(parse(frames.message(4, body=body)))
    signal = frames.owner_changed(RESOLVED, ":1.9")
    made = exchange()
    assert hear(made, signal[:4] + struct.pack("<I", len(body)) + signal[8 : parse(signal).body] + body) == [False]
    assert made.owner(RESOLVED) == OWNER


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    made, known = exchange(), frames.basic("s", OWNER)
    for middle in (b"", b"\x07\x01s\0" + known):
        one = b"l\x04\0\x01" + data[:8] + struct.pack("<I", 200) + middle + data
        if len(one) >= 16:
            assert made.hear(one) is None
            assert (made.owner(RESOLVED), made.take_signalled()) == (OWNER, False)


# --- the stream ------------------------------------------------------------------------------------------------------


def cut(data: bytes, pieces: list[int]) -> list[bytes]:
    """What a stream makes of data that comes in pieces of these sizes."""
    stream, found, sizes = Stream(), list[bytes](), list(pieces)
    while data:
        size = sizes.pop() if sizes else len(data)
        found += stream.receive(data[:size])
        data = data[size:]
    return found


@given(st.lists(st.integers(0, 60), max_size=8), st.lists(st.integers(1, 40), max_size=300))
def test_messages_come_out_as_they_went_in_however_they_are_cut(bodies: list[int], pieces: list[int]) -> None:
    sent = [frames.message(4, {frames.MEMBER: "M"}, bytes(size)) for size in bodies]
    assert cut(b"".join(sent), pieces) == sent


def test_a_message_of_nothing_but_its_start() -> None:
    assert cut(frames.message(2) * 2, []) == [frames.message(2)] * 2


@pytest.mark.behaviour("B111")
def test_one_that_is_too_long_is_refused_before_it_is_read() -> None:
    longest = frames.message(4, body=bytes(bus_messages.LONGEST - 16))
    assert cut(longest, []) == [longest]
    for body, fields in ((bus_messages.LONGEST - 15, 0), (0xFFFFFFFF, 0), (0, bus_messages.LONGEST), (0, 0xFFFFFFFF)):
        with pytest.raises(TooLong, match="65536"):
            Stream().receive(b"l\x04\0\x01" + struct.pack("<III", body, 1, fields))


@pytest.mark.parametrize("start", [b"\0\x04\0\x01", b"l\x04\0\x02", b"HTTP"])
def test_what_is_no_message_is_refused(start: bytes) -> None:
    with pytest.raises(Malformed, match="invalid start"):
        Stream().receive(start + bytes(12))
