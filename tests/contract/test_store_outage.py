# SPDX-License-Identifier: GPL-2.0-or-later
"""What the clients of the store do when QubesDB is away, hangs, hangs up, or a signal comes at the wrong time.

The rule under all of it: an answer is right, or it is a StoreError within bounded time; never a wrong answer, and never
a wait. Timeouts in here are either far longer than any noise, or far shorter than the fault.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet.errors import StoreError, StoreRefused
from qubes_guestnet.system import retry_pause
from qubes_guestnet.system.qubesdb import store as qubesdb
from qubes_guestnet.system.qubesdb.direct import READ_ONLY, READ_WRITE, DirectStore, DirectWatches
from tests.support.eventually import eventually
from tests.support.programs import qubesdb_standin
from tests.support.programs.qubesdb_clients import ENTRIES, Kind, folder
from tests.support.programs.qubesdb_faulty import Running

SHORT = 0.1
BOUNDED_S = 20.0  # what "did not wait" means on a busy machine


def fault(daemon: Running, order: str) -> None:
    name, _, number = order.partition(" ")
    daemon.hub.fault = (name, float(number or 0))


@pytest.mark.behaviour("B106")
def test_no_daemon(kind: Kind) -> None:
    for connect in (kind.connect, lambda: kind.connect(writable=True), lambda: kind.watches("/")):
        with pytest.raises(StoreError, match=r"no QubesDB in .*; is qubes-db.service running\?") as error:
            connect()
        assert error.value.retryable


@pytest.mark.behaviour("B106")
def test_sockets_that_a_killed_daemon_left_behind(kind: Kind) -> None:
    for name in (READ_WRITE, READ_ONLY):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(os.path.join(kind.directory, name))
    with pytest.raises(StoreError, match="refused"):
        kind.connect()
    with kind.serve():
        assert kind.connect().read("/qubes-ip") == b"10.137.0.7"


@pytest.mark.behaviour("B106")
@pytest.mark.scenario("S-401")
def test_the_daemon_goes_away(kind: Kind) -> None:
    with kind.serve() as daemon:
        store, watches = kind.connect(writable=True), kind.watches("/qubes-ip")
        assert store.read("/qubes-ip") == b"10.137.0.7"
        daemon.stop()
        assert select.select([watches], [], [], BOUNDED_S)[0], "the loop is woken"
        with pytest.raises(StoreError):
            watches.drain()
        for call in (store.read, store.multiread, store.list, store.rm, lambda p: store.write(p, b"")):
            with pytest.raises(StoreError) as error:
                call("/qubes-ip")
            assert not isinstance(error.value, StoreRefused)
        with pytest.raises(StoreError):
            watches.watch("/a")


@pytest.mark.behaviour("B106")
@pytest.mark.scenario("S-401")
def test_a_restart_is_an_error_and_no_silent_loss_of_watches(kind: Kind) -> None:
    """The C library connects anew by itself, without the watches: nothing would ever wake the agent again."""
    with kind.serve():
        stores = [kind.connect(writable=True) for _ in range(5)]
        watches = [kind.watches("/qubes-ip") for _ in range(3)]
    with kind.serve() as second:
        calls = (
            stores[0].read, stores[1].multiread, stores[2].list, stores[3].rm,
            lambda path: stores[4].write(path, b""), watches[0].watch, watches[1].unwatch,
        )  # fmt: skip
        for call in calls:
            with pytest.raises(StoreError):
                call("/qubes-ip")
        for lost in watches:
            with pytest.raises(StoreError):
                lost.drain()
        assert second.hub.clients == set()
        # what the caller does then
        fresh, store = kind.watches("/qubes-ip"), kind.connect(writable=True)
        store.write("/qubes-ip", b"10.137.0.9")
        assert store.read("/qubes-ip") == b"10.137.0.9"
        assert fresh.drain()


@pytest.mark.behaviour("B106")
@pytest.mark.scenario("S-401")
def test_a_hanging_daemon_costs_the_timeout_and_no_more(kind: Kind, daemon: Running) -> None:
    store = kind.connect(timeout=SHORT)
    watches = kind.watches("/qubes-ip", timeout=SHORT)
    fault(daemon, "hang")
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"did not answer within 0.1 s"):
        store.read("/qubes-ip")
    with pytest.raises(StoreError):  # and not the late answer to the one before
        store.read("/qubes-mac")
    assert watches.drain() is False
    with pytest.raises(StoreError):
        watches.watch("/qubes-mac")
    assert time.monotonic() - started < BOUNDED_S


@pytest.mark.behaviour("B106")
@pytest.mark.scenario("S-401")
def test_reconnecting_to_a_hanging_daemon_for_ever_never_waits_longer(kind: Kind) -> None:
    """Its queue of connections fills up, and from then on a plain connect() would wait without end."""
    listeners = []
    for name in (READ_WRITE, READ_ONLY):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.path.join(kind.directory, name))
        listener.listen(5)  # as the real one
        listeners.append(listener)
    filler = socket.socket(socket.AF_UNIX)  # an odd number in the queue: the last place is not left to a second step
    filler.connect(os.path.join(kind.directory, READ_WRITE))
    started = time.monotonic()
    problems = set()
    for _ in range(12):
        for connect in (lambda: kind.watches("/qubes-ip", timeout=0.02), lambda: kind.connect(timeout=0.02).read("/a")):
            with pytest.raises(StoreError) as error:
                connect()
            problems.add(error.value.problem.partition("did not ")[2].partition(" ")[0])
    assert problems == {"answer", "accept"}
    assert time.monotonic() - started < BOUNDED_S
    for opened in (*listeners, filler):
        opened.close()


@pytest.mark.behaviour("B106")
@pytest.mark.scenario("S-401")
def test_a_restart_in_the_middle_of_a_request_is_noticed(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looking whether the daemon is there and asking it: then the library finds a new one, and says nothing."""
    if kind.name != "binding":
        return  # the direct client has no such step, and the real library no such hook
    watch = qubesdb_standin.QubesDB.watch
    with ExitStack() as second:
        with kind.serve() as first:
            watches = kind.watches("/qubes-ip")

            def restart_then_watch(library: qubesdb_standin.QubesDB, path: str) -> None:
                first.stop()
                second.enter_context(kind.serve())
                watch(library, path)

            monkeypatch.setattr(qubesdb_standin.QubesDB, "watch", restart_then_watch)
            with pytest.raises(StoreError, match="closed the connection"):
                watches.watch("/qubes-mac")
        with pytest.raises(StoreError):
            watches.drain()


def requests() -> list[tuple[str, Callable[[qubesdb.Store], object], object]]:
    every = {path.decode(): value for path, value in ENTRIES.items()}
    return [
        ("read", lambda store: store.read("/qubes-ip"), b"10.137.0.7"),
        ("multiread", lambda store: store.multiread("/"), every),
        ("list", lambda store: store.list("/"), sorted(every)),
        ("write", lambda store: store.write("/new", b"1"), None),
        ("rm", lambda store: store.rm("/new"), None),
    ]


@pytest.mark.behaviour("B12")
@pytest.mark.behaviour("B106")
@pytest.mark.scenario("S-401")
@pytest.mark.parametrize("name", ["read", "multiread", "list", "write", "rm"])
@pytest.mark.parametrize("length", [0, 1, 71, 72, 73, 75, 143, 144, 145, 200, 3000])
def test_an_answer_cut_short_is_an_error_and_no_missing_entry(
    kind: Kind, daemon: Running, name: str, length: int
) -> None:
    request, expected = next((call, right) for known, call, right in requests() if known == name)
    store = kind.connect(writable=True)
    assert store.read("/missing") is None
    ctypes.set_errno(errno.ENOENT)  # what such a read leaves behind in a C library
    fault(daemon, f"cut {length}")
    try:
        got = request(store)
    except StoreRefused:
        pytest.fail("it was not refused")
    except StoreError:
        with pytest.raises(StoreError):
            store.read("/qubes-ip")
    else:
        assert got == expected, "the answer was shorter than the cut"
        whole = {"read": 82, "list": 72 * (len(ENTRIES) + 1), "write": 72, "rm": 72}
        assert length >= whole[name], "only a whole answer may be taken"
    assert kind.connect().read("/qubes-ip") == b"10.137.0.7"


@pytest.mark.behaviour("B12")
@pytest.mark.parametrize("size", [1, 7, 71, 73])
def test_an_answer_in_small_pieces_is_read_or_an_error(kind: Kind, daemon: Running, size: int) -> None:
    """The direct client puts them together; the library gives up on half a header, and that must not look like None."""
    fault(daemon, "none")
    for _name, request, expected in requests():
        store = kind.connect(writable=True)
        store.read("/missing")
        fault(daemon, f"drip {size}")
        try:
            assert request(store) == expected
        except StoreError:
            assert kind.name != "direct"
        fault(daemon, "none")


def test_an_event_in_small_pieces(kind: Kind, daemon: Running) -> None:
    watches, store = kind.watches("/qubes-ip"), kind.connect(writable=True)
    fault(daemon, "drip 5")
    daemon_write(daemon, "/qubes-ip")
    assert store is not None
    assert eventually(watches.drain, what="the event")
    assert not watches.drain()


def daemon_write(daemon: Running, path: str) -> None:
    """Write by a client of its own, whose answer is dripped too."""
    writer = DirectStore(daemon.path, 10.0, writable=True)
    writer.write(path, b"new")
    writer.close()


class Script:
    """A daemon that sends what it is told, whatever it was asked.

    Args:
        directory: where its sockets are made.
        answers: for one connection each, its answers in order; after the last one it stays connected and silent.
    """

    def __init__(self, directory: str, *answers: list[bytes]) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.path.join(directory, READ_WRITE))
        self._listener.listen()
        self._answers = answers
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for answers in self._answers:
            connection, _ = self._listener.accept()
            self._connections.append(connection)
            with contextlib.suppress(BrokenPipeError):  # a client that has had enough is gone
                for answer in answers:
                    if connection.recv(65536):
                        connection.sendall(answer)

    def close(self) -> None:
        """End it."""
        self._thread.join(10)
        for opened in (*self._connections, self._listener):
            opened.close()


def message(kind: int, path: bytes = b"", data: bytes = b"", length: int | None = None) -> bytes:
    size = len(data) if length is None else length
    return bytes([kind]) + path.ljust(64, b"\0") + b"\0\0\0" + size.to_bytes(4, sys.byteorder) + data


def test_an_event_between_a_request_and_its_reply(kind: Kind) -> None:
    event = message(13, b"/other")
    probe = [[message(8, b"/")]] if kind.name != "direct" else []
    script = Script(
        kind.directory,
        *probe,
        [
            event + event + message(11, b"/a", b"1") + event + message(11, b"/ab", b"2") + event + message(11),
            event + message(7, b"/a"),
        ],
    )
    store = kind.connect()
    assert store.multiread("/a") == {"/a": b"1", "/ab": b"2"}
    store.write("/a", b"")
    script.close()


@pytest.mark.parametrize(
    "answer",
    [
        message(7, b"/a"),  # of another command
        message(12, b"/a"),
        message(200, b"/a"),
        message(0, b"/a"),
        message(11, b"/a", length=3072),  # longer than any value
        message(11, b"/a", length=0xFFFFFFFF),
        b"\xff" * 72,
        message(11, b"/a", b"1") + message(8, b"/a"),
    ],
)
def test_an_answer_that_makes_no_sense(answer: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Only the direct client: the library would end the process, but such an answer would have to come from dom0."""
    directory = str(tmp_path_factory.mktemp("q"))
    script = Script(directory, [answer], [answer])
    store = DirectStore(directory, 5.0)
    with pytest.raises(StoreError, match="answer"):
        store.multiread("/a")
    with pytest.raises(StoreError):
        store.multiread("/a")
    with pytest.raises(StoreError):
        DirectWatches(directory, SHORT, ["/a", "/b"])
    store.close()
    script.close()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=80) | st.builds(message, st.integers(0, 14), st.binary(max_size=9)), max_size=5))
def test_whatever_it_answers_the_direct_client_gets_a_value_or_an_error(answers: list[bytes]) -> None:
    for directory in folder():
        script = Script(directory, [b"".join(answers)], [b"".join(answers)])
        store = DirectStore(directory, 0.02)
        for request in (store.multiread, store.read, store.list):
            try:
                assert isinstance(request("/a"), bytes | dict | list | None)
            except StoreError:
                continue
        with suppress(StoreError), closing(DirectWatches(directory, 0.02, ["/a"])) as watches:
            watches.drain()
        store.close()
        script.close()


@pytest.mark.behaviour("B106")
def test_backoff_doubles_from_a_tenth_of_a_second_and_ends_at_five_seconds() -> None:
    delays = [retry_pause.pause(attempt) for attempt in range(1, 9)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0], "it never spins"
    assert retry_pause.pause(100_000) == 5.0


@pytest.mark.behaviour("B106")
@pytest.mark.scenario("S-401")
def test_coming_back_after_an_outage(kind: Kind) -> None:
    """The whole dance of a caller: fails, waits as told, connects, sets watches, reads."""
    attempts = 0

    def connected() -> qubesdb.Watches | None:
        nonlocal attempts
        attempts += 1
        try:
            return kind.watches("/qubes-ip")
        except StoreError:
            assert retry_pause.pause(attempts) > 0
            return None

    for _ in range(3):
        assert connected() is None
    with kind.serve():
        assert connected() is not None
        assert kind.connect().read("/qubes-ip") == b"10.137.0.7"
