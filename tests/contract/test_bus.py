# SPDX-License-Identifier: GPL-2.0-or-later
"""The client of the system bus, beside a bus that says exactly what a test wants it to say."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qubes_guestnet.core import bus_messages
from qubes_guestnet.core.bus_messages import BUS, Message
from qubes_guestnet.system import programs
from qubes_guestnet.system.dbus import bus as dbus
from qubes_guestnet.system.dbus import resolved
from qubes_guestnet.uplink.system_bus import BusHolder
from tests.support.eventually import eventually
from tests.support.programs import bus_frames as frames
from tests.support.programs.scripted_bus import OWNER, OddBus, text

SERVICE, ATTACKER = "org.freedesktop.resolve1", ":1.66"


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[OddBus]:
    made = OddBus(tmp_path / "bus")
    yield made
    made.close()


@pytest.fixture
def client(bus: OddBus, tmp_path: Path) -> Iterator[dbus.Bus]:
    made = dbus.Bus(str(tmp_path / "bus"))
    made.watch_owner(SERVICE)
    made.watch_properties(SERVICE)
    yield made
    made.close()


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the messages that the client has read."""
    sizes: list[int] = []
    real = bus_messages.Exchange.hear

    def counted(self: bus_messages.Exchange, data: bytes) -> Message | None:
        sizes.append(len(data))
        return real(self, data)

    monkeypatch.setattr(bus_messages.Exchange, "hear", counted)
    return sizes


def ask(client: dbus.Bus) -> tuple[object, ...]:
    return client.call(SERVICE, "/", "a.b", "Ask")


def readable(client: dbus.Bus) -> bool:
    poll = select.poll()
    poll.register(client, select.POLLIN)
    return bool(poll.poll(0))


@pytest.mark.behaviour("B110")
def test_the_connection_that_owns_the_service_is_asked_and_no_name(bus: OddBus, client: dbus.Bus) -> None:
    assert ask(client) == ("good",)
    assert bus.calls[-2:] == [(BUS, "AddMatch"), (OWNER, "Ask")]


@pytest.mark.behaviour("B110")
def test_serials_are_different_and_have_no_order(bus: OddBus, client: dbus.Bus) -> None:
    serials: list[int] = []

    def noted(serial: int) -> bytes:
        serials.append(serial)
        return text(serial, "good")

    bus.answers = noted
    for _ in range(64):
        ask(client)
    steps = {later - former for former, later in itertools.pairwise(serials)}
    assert len(set(serials)) == 64
    assert len(steps) == 63
    assert max(serials) > 1 << 28


@pytest.mark.behaviour("B110")
def test_answers_of_others_are_passed_over(bus: OddBus, client: dbus.Bus) -> None:
    def between(serial: int) -> bytes:
        forged = [text(serial, "evil", sender) for sender in (ATTACKER, BUS, SERVICE, "")]
        forged += [frames.answer(serial, ATTACKER, kind=frames.ERROR), frames.message(9), b"l\x04\0\x01" + bytes(12)]
        forged.append(frames.message(frames.SIGNAL, {frames.REPLY_SERIAL: serial, frames.SENDER: OWNER}))
        return b"".join(forged) + text(serial, "good")

    bus.answers = between
    assert ask(client) == ("good",)
    assert not client.drain()


def test_a_service_that_has_another_owner_now_is_found(bus: OddBus, client: dbus.Bus) -> None:
    bus.owner = ":1.8"
    bus.answers = lambda serial: text(serial, "good", bus.owner)
    assert ask(client) == ("good",)
    bus.send(frames.owner_changed(SERVICE, "", old=":1.8"))
    eventually(client.drain)
    bus.owner = ""
    with pytest.raises(dbus.BusError) as error:
        ask(client)
    assert error.value.absent


@pytest.mark.behaviour("B111")
def test_a_round_has_an_end_and_the_next_one_goes_on(bus: OddBus, client: dbus.Bus, judged: list[int]) -> None:
    small, rounds = frames.properties_changed(ATTACKER), 0
    bus.send(*[small] * 1000)
    while readable(client):
        before = len(judged)
        assert not client.drain()
        assert sum(judged[before:]) <= dbus.ROUND_BYTES + len(small)
        rounds += 1
    assert len(judged) == 1000
    assert rounds >= 1000 * len(small) / dbus.ROUND_BYTES


@pytest.mark.behaviour("B111")
def test_a_round_of_long_ones_has_an_end_too(bus: OddBus, client: dbus.Bus, judged: list[int]) -> None:
    threading.Thread(target=bus.send, args=[frames.message(4, body=bytes(60000))] * 20, daemon=True).start()
    sums: list[int] = []
    while len(judged) < 20:
        before = len(judged)
        client.drain()
        sums.append(sum(judged[before:]))
    assert max(sums) <= dbus.ROUND_BYTES + bus_messages.LONGEST


def test_a_change_that_is_told_while_something_is_asked_is_not_lost(bus: OddBus, client: dbus.Bus) -> None:
    """It may be one that the answer does not have yet, and poll tells of it no more."""
    bus.answers = lambda serial: text(serial, "good") + frames.properties_changed(OWNER)
    assert ask(client) == ("good",)
    holder = BusHolder(resident=True)
    holder._bus = client
    due = holder.due()
    assert due is not None
    assert due <= time.monotonic()
    assert holder.due() is None
    assert not client.drain()


@pytest.mark.behaviour("B111")
def test_a_connection_that_ends_in_the_middle_of_a_pass_has_resolvectl_asked_in_the_same(
    bus: OddBus, client: dbus.Bus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(programs, "find", lambda name: f"/usr/bin/{name}")
    holder = BusHolder(resident=True)
    holder._bus = client
    assert isinstance(holder.resolved(), resolved.ByBus)
    assert holder.instead() is None, "it is of use"
    bus.answers = lambda _serial: b"l\x04\0\x01" + (70000).to_bytes(4, "little") + bytes(8)
    with pytest.raises(dbus.TooLong):
        holder.resolved().everything()  # type: ignore[union-attr]
    assert isinstance(holder.instead(), resolved.ByCommand)
    assert isinstance(holder.resolved(), resolved.ByCommand)
    assert holder.due() is not None, "the bus is opened again"
    assert holder.instead() is None
    assert capsys.readouterr().err.count("70016") == 1


@pytest.mark.behaviour("B111")
def test_where_messages_of_others_come_and_no_answer_resolvectl_is_asked_in_the_same_pass(
    bus: OddBus, client: dbus.Bus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """dbus-broker drops the answer when it has too much for a connection already."""
    monkeypatch.setattr(programs, "find", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(dbus, "SECONDS", 0.3)
    holder = BusHolder(resident=True)
    holder._bus = client
    bus.answers = lambda _: b""
    with pytest.raises(dbus.BusError, match="no answer within"):
        ask(client)
    assert holder.instead() is None, "the service alone is silent, and would be for resolvectl"
    over = threading.Event()

    def go_on() -> None:
        with contextlib.suppress(OSError):  # the client has closed the bus
            while not over.wait(0.005):
                bus.send(frames.properties_changed(ATTACKER))

    others = threading.Thread(target=go_on)
    others.start()
    try:
        client._exchange.give_up()
        client._again = 0.0
        with pytest.raises(dbus.Crowded, match="other programs flood"):
            ask(client)
        assert isinstance(holder.instead(), resolved.ByCommand)
    finally:
        over.set()
        others.join()
    assert isinstance(holder.resolved(), resolved.ByCommand)
    assert holder.due() is not None, "the bus is opened again"
    assert capsys.readouterr().err.count("other programs flood the system bus") == 1


@pytest.mark.behaviour("B111")
def test_half_a_message_is_not_waited_for(
    bus: OddBus, client: dbus.Bus, monkeypatch: pytest.MonkeyPatch, judged: list[int]
) -> None:
    monkeypatch.setattr(dbus.Bus, "_wait", lambda *_: pytest.fail("it waits"))
    whole = frames.properties_changed(OWNER)
    for cut in (1, 15, 16, 17, len(whole) - 1):
        bus.send(whole[:cut])
        eventually(lambda: readable(client))
        assert not client.drain()
        assert not client.drain()
        bus.send(whole[cut:])
        eventually(client.drain)
    assert len(judged) == 5


@pytest.mark.behaviour("B111")
def test_a_message_that_is_too_long_ends_the_connection(bus: OddBus, client: dbus.Bus) -> None:
    bus.send(frames.properties_changed(OWNER), b"l\x04\0\x01" + (70000).to_bytes(4, "little") + bytes(8))

    def ended() -> bool:
        try:
            client.drain()
        except dbus.TooLong as error:
            return "70016" in str(error)
        return False

    eventually(ended)
    with pytest.raises(dbus.TooLong):
        client.drain()
    with pytest.raises(dbus.BusError):
        ask(client)


@pytest.mark.behaviour("B111")
def test_what_others_send_does_not_prolong_a_call(
    bus: OddBus, client: dbus.Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go on as long as it waits."""
    monkeypatch.setattr(dbus, "SECONDS", 0.1)
    bus.answers = lambda _: b""
    waiting = threading.Event()

    def go_on() -> None:
        with contextlib.suppress(OSError):  # the client is closed
            while not waiting.is_set():
                bus.send(frames.properties_changed(ATTACKER))

    others = threading.Thread(target=go_on)
    others.start()
    try:
        start = time.monotonic()
        with pytest.raises(dbus.BusError, match="no answer within"):
            ask(client)
        assert time.monotonic() - start < 5
    finally:
        waiting.set()
        client.close()
        others.join()


@pytest.mark.behaviour("B111")
def test_after_one_call_without_an_answer_the_next_ones_do_not_wait(
    bus: OddBus, client: dbus.Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dbus, "SECONDS", 0.05)
    serials: list[int] = []

    def late(serial: int) -> bytes:
        serials.append(serial)
        return b""

    bus.answers = late
    with pytest.raises(dbus.BusError, match="no answer within"):
        ask(client)
    for _ in range(20):
        with pytest.raises(dbus.BusError, match="an earlier call"):
            ask(client)
    assert len(serials) == 1
    bus.answers = lambda serial: text(serial, "good")
    bus.send(text(serials[0], "late"))
    eventually(client.drain, what="woken by the late answer")
    monkeypatch.setattr(dbus, "SECONDS", 5)
    assert ask(client) == ("good",)


@pytest.mark.parametrize(
    "answer",
    [
        lambda serial: frames.answer(serial, OWNER, b"\xff\xff\xff\xff", "s"),
        lambda serial: frames.answer(serial, OWNER, b"", "s"),
        lambda serial: frames.answer(serial, OWNER, b"\x01Z\0\0", "v"),
        lambda serial: frames.answer(serial, OWNER, b"\x01v\0" * 5000, "v"),
        lambda serial: frames.message(
            2, {frames.REPLY_SERIAL: serial, frames.SENDER: OWNER, frames.FDS: 1, frames.SIGNATURE: "h"}, bytes(4)
        ),
    ],
)
def test_an_answer_that_cannot_be_read_is_an_error(
    answer: Callable[[int], bytes], bus: OddBus, client: dbus.Bus
) -> None:
    bus.answers = answer
    with pytest.raises(dbus.BusError, match="malformed answer"):
        ask(client)
    bus.answers = lambda serial: text(serial, "good")
    assert ask(client) == ("good",)


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 OK\r\n"])
def test_a_bus_that_ends_or_speaks_something_else(data: bytes, bus: OddBus, client: dbus.Bus) -> None:
    bus.send(data)
    bus.close()

    def ended() -> bool:
        try:
            return client.drain()
        except dbus.BusError:
            return True

    eventually(ended)
    with pytest.raises(dbus.BusError):
        ask(client)


@pytest.mark.parametrize("greeting", [b"REJECTED EXTERNAL\r\n", b"x" * 5000, b"OK"])
def test_a_bus_that_refuses_or_never_ends_its_line(
    greeting: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dbus, "SECONDS", 0.1)
    odd = OddBus(tmp_path / "odd", greeting)
    with pytest.raises(dbus.BusError):
        dbus.Bus(str(tmp_path / "odd"))
    odd.close()


def test_a_bus_that_takes_nobody_in_is_not_waited_for(tmp_path: Path) -> None:
    """Its queue of new connections is full: any user can do that."""
    path = str(tmp_path / "full")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(0)
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
        waiting.connect(path)
        with pytest.raises(dbus.BusError, match="unavailable"):
            dbus.Bus(path)


@pytest.mark.behaviour("B111")
def test_the_pauses_grow_for_as_long_as_a_bus_takes_nobody_in(
    bus: OddBus, client: dbus.Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt waits for it; a connection that lasted long has them begin anew, a long outage does not."""
    stalled = tmp_path / "stalled"
    stalled.touch()
    monkeypatch.setattr(dbus, "ADDRESS", str(stalled))
    monkeypatch.setattr(dbus.Bus.__init__, "__defaults__", (str(stalled),))
    holder = BusHolder(resident=True)

    def pause() -> float:
        holder._again = 0.0  # it is over
        holder.open()
        due = holder.due()
        assert due is not None
        return due - time.monotonic()

    pauses = [pause() for _ in range(8)]
    assert pauses[0] < 0.15
    assert pauses[3] > 0.5
    assert pauses[-1] > 4
    holder._bus, holder._opened = client, time.monotonic() - 2 * holder.LASTING_SECONDS
    bus.send(b"no message of D-Bus")
    eventually(lambda: holder.drain() or None)
    assert pause() < 0.3
