# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's QubesDB over real sockets: many clients, slow ones, hostile ones; and its command line."""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qubes_guestnet.errors import StoreError
from qubes_guestnet.lab import store_hub
from qubes_guestnet.system.qubesdb import store as qubesdb
from qubes_guestnet.system.qubesdb import wire
from qubes_guestnet.system.qubesdb.direct import READ_ONLY, READ_WRITE, DirectStore, DirectWatches
from tests.support.eventually import eventually
from tests.support.programs.qubesdb_clients import ENTRIES, folder
from tests.support.programs.qubesdb_faulty import Running

ROOT = Path(__file__).parents[2]
LIMIT_S = 30.0


@pytest.fixture
def directory() -> Iterator[str]:
    yield from folder()


@pytest.fixture
def daemon(directory: str) -> Iterator[Running]:
    with Running(directory, ENTRIES) as running:
        yield running


def raw(directory: str, name: str = READ_WRITE) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(LIMIT_S)
    client.connect(os.path.join(directory, name))
    return client


def exactly(client: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = client.recv(size - len(found))
        assert piece, f"closed after {len(found)} of {size} bytes"
        found += piece
    return found


def closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def full(client: socket.socket, request: bytes) -> None:
    """Send until no more is taken, twice: the second time after the daemon had its turn."""
    for _ in range(2):
        try:
            while True:
                client.send(request)
        except BlockingIOError:
            select.select([], [], [], 0.05)


def test_256_clients_and_no_more(directory: str, daemon: Running) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(raw(directory, (READ_WRITE, READ_ONLY)[number % 2])) for number in range(256)]
        for client in clients:
            client.sendall(wire.pack(wire.CMD_WATCH, b"/qubes-ip"))
            assert exactly(client, 72)[0] == wire.RESP_OK
        with raw(directory) as late:
            assert closed(late), "the 257th is turned away"
        clients[0].sendall(wire.pack(wire.CMD_WRITE, b"/qubes-ip", b"10.137.0.8"))
        assert exactly(clients[0], 72) == wire.pack(wire.RESP_OK, b"/qubes-ip")
        for client in clients:
            assert exactly(client, 72) == wire.pack(wire.RESP_WATCH, b"/qubes-ip")
        clients.pop().close()
        eventually(lambda: len(daemon.hub.clients) == 255)
        store = DirectStore(directory, LIMIT_S)
        assert store.read("/qubes-ip") == b"10.137.0.8"
        store.close()


def test_a_client_that_reads_nothing_blocks_nobody_and_is_bounded(directory: str, daemon: Running) -> None:
    """Thousands of answers are asked for and none is read: no more is taken from that client."""
    with raw(directory) as hog, raw(directory) as half:
        half.sendall(wire.pack(wire.CMD_WRITE, b"/half", b"v" * 100)[:90])
        hog.setblocking(False)
        full(hog, wire.pack(wire.CMD_MULTIREAD, b"/") * 200)
        store = DirectStore(directory, LIMIT_S, writable=True)
        store.write("/other", b"alive")
        assert store.read("/other") == b"alive"
        assert store.read("/half") is None
        one_answer = sum(72 + len(value) for value in ENTRIES.values()) + 72
        assert max(client.out_bytes for client in daemon.hub.clients) <= one_answer
        assert max(len(client.inbox) for client in daemon.hub.clients) < 65536 + 72 + 3072
        half.sendall(wire.pack(wire.CMD_WRITE, b"/half", b"v" * 100)[90:])
        assert exactly(half, 72)[0] == wire.RESP_OK
        # and all its answers are still right, once it reads
        hog.setblocking(True)
        hog.settimeout(LIMIT_S)
        answer = b"".join(wire.pack(wire.RESP_MULTIREAD, path, ENTRIES[path]) for path in sorted(ENTRIES)) + wire.pack(
            wire.RESP_MULTIREAD
        )
        for _ in range(20):
            assert exactly(hog, len(answer)) == answer
        store.close()


def test_a_client_that_never_reads_its_events_is_dropped(
    directory: str, daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_hub, "BACKLOG_LIMIT", 1 << 16)
    with raw(directory) as deaf, raw(directory) as other:
        for client in (deaf, other):
            client.sendall(wire.pack(wire.CMD_WATCH, b"/"))
            exactly(client, 72)
        store = DirectStore(directory, LIMIT_S, writable=True)
        for number in range(20_000):
            store.write("/e", b"%d" % number)
            assert exactly(other, 72) == wire.pack(wire.RESP_WATCH, b"/e")
            if len(daemon.hub.clients) == 2:
                break
        assert len(daemon.hub.clients) == 2
        store.close()


def test_headers_are_never_seen_in_halves(directory: str) -> None:
    """The C client takes a header in one read() and gives up on a shorter one: also when the buffer just ran full."""
    entries = {b"/%04d" % number: b"x" * (number * 37 % 3000) for number in range(1500)}
    with Running(directory, entries) as daemon:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        client = daemon.hub.connect(writable=False)
        client.inbox += wire.pack(wire.CMD_MULTIREAD, b"/")
        assert daemon.hub.step(client)
        found: list[bytes] = []
        while client.outbox:
            try:
                while client.outbox:
                    client.sent(daemon.daemon._send(ours, client))
            except BlockingIOError:
                pass
            found += whole_messages(theirs)
        assert found == [*sorted(entries), b""]
        ours.close()
        theirs.close()


def whole_messages(reader: socket.socket) -> list[bytes]:
    """Read until there is no more, as the C client does; the paths."""
    found: list[bytes] = []
    while True:
        try:
            header = reader.recv(wire.HEADER_SIZE)
        except BlockingIOError:
            return found
        assert len(header) == wire.HEADER_SIZE
        _kind, path, length = wire.unpack(header)
        found.append(path)
        left = length
        while left:
            left -= len(reader.recv(left))


def test_a_half_closed_connection_still_gets_its_answer(directory: str, daemon: Running) -> None:
    with raw(directory) as client:
        client.sendall(wire.pack(wire.CMD_LIST, b"/qubes-") * 3)
        client.shutdown(socket.SHUT_WR)
        answer = exactly(client, 72 * 4 * 3)
        assert answer == answer[: 72 * 4] * 3
        assert closed(client)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([READ_WRITE, READ_ONLY]),
            st.lists(
                st.binary(max_size=200)
                | st.builds(
                    lambda kind, path, data, cut: wire.pack(kind, path, data)[: 72 + cut],
                    st.integers(0, 255),
                    st.binary(max_size=64) | st.sampled_from([b"/", b"/qubes-ip", b"", b"/a"]),
                    st.binary(max_size=100),
                    st.integers(-20, 100),
                ),
                max_size=6,
            ),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_no_bytes_bring_it_down_or_block_others(
    directory: str, daemon: Running, hostile: list[tuple[str, list[bytes], bool]]
) -> None:
    with ExitStack() as stack:
        for name, pieces, stay in hostile:
            client = stack.enter_context(raw(directory, name))
            for piece in pieces:
                try:
                    client.sendall(piece)
                except (BrokenPipeError, ConnectionResetError):
                    break
            if not stay:
                client.close()
        store = DirectStore(directory, LIMIT_S, writable=True)
        store.write("/honest", b"answer")
        assert store.read("/honest") == b"answer"
        store.close()
    eventually(lambda: not daemon.hub.clients)


def command(directory: str | None, *arguments: str) -> list[str]:
    place = ["--dir", directory] if directory else []
    return [sys.executable, "-m", "qubes_guestnet.lab.store_cli", *place, *arguments]


def run(directory: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != qubesdb.DIRECTORY_VARIABLE}
    return subprocess.run(
        command(directory, *arguments),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env=environment,
        cwd=ROOT,
    )


@pytest.fixture
def process(directory: str) -> Iterator[subprocess.Popen[str]]:
    process = start(directory, "--set", "/qubes-ip=10.137.0.7", "--set", "/x==")
    yield process
    process.kill()
    process.communicate()


def start(directory: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(command(directory, *arguments), stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready"), line
    for name in (READ_WRITE, READ_ONLY):  # bound and listening before it says so
        raw(directory, name).close()
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly(directory: str, process: subprocess.Popen[str], number: int) -> None:
    assert stat.S_IMODE(os.stat(os.path.join(directory, READ_ONLY)).st_mode) == 0o666
    store = DirectStore(directory, LIMIT_S)
    assert store.read("/qubes-ip") == b"10.137.0.7"
    process.send_signal(number)
    assert process.wait(LIMIT_S) == 0
    assert os.listdir(directory) == []
    with pytest.raises(StoreError):
        store.read("/qubes-ip")
    store.close()


def test_after_a_kill_the_next_one_takes_the_place(directory: str, process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(LIMIT_S)
    assert sorted(os.listdir(directory)) == [READ_ONLY, READ_WRITE]
    second = start(directory)
    assert run(directory, "list", "/").stdout == ""
    second.terminate()
    assert second.wait(LIMIT_S) == 0
    second.communicate()


@pytest.mark.behaviour("B106")
@pytest.mark.scenario("S-401")
def test_stopped_and_continued(directory: str, process: subprocess.Popen[str]) -> None:
    """A hang from outside: bounded errors while it lasts, and everything is there afterwards."""
    store = DirectStore(directory, 0.1, writable=True)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(StoreError, match="did not answer"):
        store.read("/qubes-ip")
    for _ in range(3):
        with pytest.raises(StoreError):
            DirectWatches(directory, 0.1, ["/qubes-ip"])
    process.send_signal(signal.SIGCONT)
    store.close()
    fresh = DirectStore(directory, LIMIT_S)
    assert fresh.read("/qubes-ip") == b"10.137.0.7"
    fresh.close()


def test_two_in_one_place_are_refused(directory: str, process: subprocess.Popen[str]) -> None:
    result = run(directory)
    assert result.returncode == 1
    assert result.stderr.startswith(f"qubes-guestnet: another daemon already serves {directory}/qubesdb.sock; ")
    assert run(directory, "read", "/qubes-ip").stdout == "10.137.0.7\n"


def test_playing_dom0_from_a_shell(directory: str, process: subprocess.Popen[str]) -> None:
    assert run(directory, "read", "/qubes-ip", "/x").stdout == "10.137.0.7\n=\n"
    assert run(directory, "write", "/a/1", "one", "/a/2", "zwei\n", "/b", "").returncode == 0
    assert run(directory, "multiread", "/a", "/b").stdout == "/a/1 = one\n/a/2 = zwei\\x0a\n/b = \n"
    assert run(directory, "read", "-r", "/a/2").stdout == "zwei\n\n"
    assert run(directory, "list", "/a").stdout == "/a/1\n/a/2\n"
    assert run(None, "list", "--dir", directory, "/a/1").stdout == "/a/1\n"
    assert run(directory, "rm", "/a/", "/none").returncode == 0
    assert run(directory, "list", "/a").stdout == ""


def test_watching_from_a_shell(directory: str, process: subprocess.Popen[str]) -> None:
    arguments = command(directory, "watch", "-n", "3", "/a/", "/b")
    watcher = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    store = DirectStore(directory, LIMIT_S, writable=True)

    def poke() -> bool:  # no program listens before the watches are set
        store.write("/b", b"")
        return watcher.poll() is not None

    eventually(poke, LIMIT_S)
    output, _ = watcher.communicate(timeout=LIMIT_S)
    assert output.split() == ["/b"] * 3
    assert watcher.returncode == 0
    store.close()


def test_entries_from_a_file(directory: str) -> None:
    file = os.path.join(directory, "entries")
    Path(file).write_text("# a qube\n/qubes-ip = 10.137.0.7\n/qubes-mac=00:16:3e:5e:6c:00\n")
    process = start(directory, "--file", file, "--set", "/qubes-ip=10.0.0.1")
    printed = run(directory, "multiread", "/").stdout
    assert printed == "/qubes-ip = 10.0.0.1\n/qubes-mac = 00:16:3e:5e:6c:00\n"
    process.terminate()
    assert process.wait(LIMIT_S) == 0
    process.communicate()


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["read", "/none"], 1, "/none: no such entry"),
        (["write", "/a"], 2, "/a has no value; write KEY VALUE [KEY VALUE…]"),
        (["write", "bad", "x"], 1, "'bad' is not a QubesDB entry; it must begin with a slash"),
        (["watch", "bad path"], 1, "'bad path' is not a QubesDB path"),
        (["--set", "novalue"], 2, "--set novalue: there is no `=`"),
        (["--set", "bad=1"], 1, "'bad' is not a QubesDB entry"),
        (["--file", "/nowhere"], 1, "/nowhere: No such file or directory"),
    ],
)
def test_errors_are_one_clear_line(
    directory: str, process: subprocess.Popen[str], arguments: list[str], status: int, text: str
) -> None:
    result = run(directory, *arguments)
    assert result.returncode == status
    assert result.stderr.startswith(f"qubes-guestnet: {text}")
    assert result.stderr.count("\n") == 1


def test_errors_without_a_daemon(directory: str) -> None:
    assert run(directory, "read", "/a").stderr == (
        f"qubes-guestnet: no QubesDB in {directory}; is qubes-db.service running?\n"
    )
    assert "give --dir or set QUBES_GUESTNET_QUBESDB_DIR" in run(None, "read", "/a").stderr
    assert run(None).returncode == 2
    assert run(os.path.join(directory, "none")).stderr.startswith(f"qubes-guestnet: {directory}/none: No such file")
    assert "AF_UNIX path too long" in run(os.path.join(directory, "x" * 120)).stderr
