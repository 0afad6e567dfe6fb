# SPDX-License-Identifier: GPL-2.0-or-later
"""The socket between hotplug's command and the agent: one question, one answer, root only, no peer blocks it."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qubes_guestnet.errors import FileError
from qubes_guestnet.system import hotplug_socket
from qubes_guestnet.system.hotplug_socket import CLIENT_SECONDS, LONGEST, Server, request
from tests.support.needs import needs

TREE = Path(__file__).resolve().parents[3]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / hotplug_socket.NAME)


@pytest.fixture
def server(path: str) -> Iterator[Server]:
    with contextlib.closing(Server(path)) as made:
        yield made


class Asking(threading.Thread):
    """Asks, beside the test."""

    def __init__(self, path: str, data: bytes, seconds: float = 10.0) -> None:
        super().__init__(daemon=True)
        self._words = (path, data, seconds)
        self._answer: bytes | None = b"no answer yet"
        self.start()

    def run(self) -> None:
        self._answer = request(*self._words)

    def answer(self) -> bytes | None:
        self.join(20)
        assert not self.is_alive()
        return self._answer


def connected(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.connect(path)
    return client


def wait(server: Server) -> None:
    assert select.select([server], [], [], 10)[0]


@pytest.mark.parametrize("size", [1, 500, LONGEST])
def test_a_question_and_its_answer(server: Server, path: str, size: int) -> None:
    asking = Asking(path, b"q" * size)
    wait(server)
    came = server.accept()
    assert came is not None
    assert came[0] == b"q" * size
    came[1](b"a" * size)
    assert asking.answer() == b"a" * size
    assert not select.select([server], [], [], 0)[0]


def test_many_at_once_are_served_one_by_one(server: Server, path: str) -> None:
    asking = [Asking(path, b"%d" % number) for number in range(50)]
    for _ in asking:
        wait(server)
        came = server.accept()
        assert came is not None
        came[1](came[0] * 2)
    assert [each.answer() for each in asking] == [b"%d" % number * 2 for number in range(50)]


def test_a_socket_of_root_alone(server: Server, path: str) -> None:
    mode = os.stat(path).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert not os.get_inheritable(server.fileno())


def test_somebody_who_is_not_root(tmp_path: Path) -> None:
    """The kernel names the peer. In this user namespace the user that started the test is user 1."""
    needs("unshare")
    code = """
import socket, sys
from qubes_guestnet.system.hotplug_socket import Server
server = Server(sys.argv[1])
client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
client.connect(sys.argv[1])
client.send(b"let me in")
print(server.accept())
"""
    command = ["unshare", "--user", "--map-user=1", sys.executable, "-c", code, str(tmp_path / "socket")]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "None\n"
    assert "user 1 is not root" in done.stderr


def test_without_anybody_there_is_nothing(server: Server) -> None:
    assert server.accept() is None


@pytest.mark.parametrize("said", [None, b"", b"x" * (LONGEST + 1)])
def test_who_asks_nothing_holds_nobody_up(
    server: Server, path: str, capsys: pytest.CaptureFixture[str], said: bytes | None
) -> None:
    with connected(path) as client:
        if said is not None:
            client.send(said)
        before = time.monotonic()
        assert server.accept() is None
        assert time.monotonic() - before < CLIENT_SECONDS + 2
        assert "malformed request on vif.sock" in capsys.readouterr().err
        client.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(10) == b""
    asking = Asking(path, b"next")
    wait(server)
    came = server.accept()
    assert came is not None
    came[1](b"yes")
    assert asking.answer() == b"yes"


def test_who_has_gone_before_the_question(server: Server, path: str) -> None:
    connected(path).close()
    wait(server)
    assert server.accept() is None


def test_who_has_gone_before_the_answer(server: Server, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    with connected(path) as client:
        client.send(b"question")
    came = server.accept()
    assert came is not None
    came[1](b"answer")
    assert "cannot send an answer: Broken pipe" in capsys.readouterr().err


def test_who_does_not_read_the_answer(server: Server, path: str) -> None:
    """It is one message, which the kernel keeps for it."""
    with connected(path) as client:
        client.send(b"question")
        came = server.accept()
        assert came is not None
        came[1](b"a" * LONGEST)


def test_nobody_listens(path: str) -> None:
    assert request(path, b"question", 5) is None
    Server(path).close()
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    assert request(path, b"question", 5) is None


def test_an_agent_that_does_not_answer(server: Server, path: str) -> None:
    before = time.monotonic()
    assert request(path, b"question", 0.2) is None
    assert time.monotonic() - before >= 0.2


def test_an_agent_that_ends_without_an_answer(server: Server, path: str) -> None:
    asking = Asking(path, b"question")
    wait(server)
    came = server.accept()
    assert came is not None
    came[1].close()
    assert asking.answer() is None
    asking = Asking(path, b"question")
    wait(server)
    server.close()  # with the question in the queue
    assert asking.answer() is None


def test_the_socket_of_a_former_agent_is_replaced(path: str) -> None:
    Server(path).close()
    with contextlib.closing(Server(path)) as server:
        asking = Asking(path, b"question")
        wait(server)
        came = server.accept()
        assert came is not None
        came[1](b"answer")
        assert asking.answer() == b"answer"


def test_what_is_no_socket_is_not_replaced(path: str) -> None:
    Path(path).write_text("mine")
    with pytest.raises(FileError, match="Address already in use"):
        Server(path)
    assert Path(path).read_text() == "mine"
    with pytest.raises(FileError, match=r"none/vif.sock: No such file or directory"):
        Server(os.path.join(os.path.dirname(path), "none", "vif.sock"))


def test_a_path_that_cannot_be_asked(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(path)
        other.listen()
        with pytest.raises(FileError, match="wrong type"):
            request(path, b"question", 5)


def test_a_server_out_of_descriptors_goes_on(
    server: Server, path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full:
        def accept(self) -> None:
            raise OSError(24, "Too many open files")

    real = server._socket
    server._socket = Full()  # type: ignore[assignment]
    assert server.accept() is None
    assert "cannot accept a connection: Too many open files" in capsys.readouterr().err
    server._socket = real


@pytest.mark.behaviour("B118")
def test_whether_the_asker_is_there_still(tmp_path: Path) -> None:
    path = str(tmp_path / "vif.sock")
    server = hotplug_socket.Server(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        asking.connect(path)
        asking.send(b"question")
        came = server.accept()
        assert came is not None
        begin = time.monotonic()
        assert [came[1].awaited() for _ in range(100)] == [True] * 100
        assert time.monotonic() - begin < hotplug_socket.CLIENT_SECONDS * 100 / 2, "it waits"
        asking.send(b"and more")
        assert came[1].awaited()
    assert not came[1].awaited()
    came[1].close()
    server.close()
