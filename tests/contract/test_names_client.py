# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent's end of the name look-up, against one that says anything or nothing: it never waits, each error is one."""

from __future__ import annotations

import ipaddress
import os
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qubes_guestnet.core import endpoint
from qubes_guestnet.core.firewall import name_messages
from qubes_guestnet.core.firewall.name_messages import Answer, Question, Request
from qubes_guestnet.errors import FileError, GuestnetError
from qubes_guestnet.system import names_client
from qubes_guestnet.system.names_client import LookUp

SERVERS = endpoint.of((ipaddress.ip_address("10.139.1.1"),))
ONE, TWO = Question(4, "one.example"), Question(4, "two.example")
GOOD = Answer(ONE, name_messages.ADDRESSES, 300, [ipaddress.ip_address("192.0.2.1")])
NONE = Answer(TWO, name_messages.NODATA, 60)


class Peer:
    """Listens where systemd does, and answers by hand."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / names_client.NAME)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(self.path)
        self._listening.listen(0)
        self.connection: socket.socket | None = None

    def asked(self, *questions: Question) -> LookUp:
        """A request, taken."""
        look_up = LookUp(self.path, Request(SERVERS, questions))
        self.connection, _ = self._listening.accept()
        assert name_messages.parse_request(self.connection.recv(50_000)) == Request(SERVERS, questions)
        return look_up

    def say(self, *messages: bytes) -> None:
        assert self.connection is not None
        for message in messages:
            self.connection.send(message)

    def leave(self) -> None:
        assert self.connection is not None
        self.connection.close()

    def close(self) -> None:
        self._listening.close()
        if self.connection is not None:
            self.connection.close()


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    made = Peer(tmp_path)
    yield made
    made.close()


def ready(look_up: LookUp) -> bool:
    poll = select.poll()
    poll.register(look_up.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def test_answers_come_one_by_one(peer: Peer) -> None:
    look_up = peer.asked(ONE, TWO)
    assert not ready(look_up)
    assert look_up.read() == ()
    peer.say(name_messages.render_answer(GOOD))
    assert ready(look_up)
    assert look_up.read() == (GOOD,)
    assert not look_up.ended
    assert 0 < look_up.seconds_left() <= names_client.LIMIT_SECONDS
    peer.say(name_messages.render_answer(NONE))
    peer.leave()
    assert look_up.read() == (NONE,)
    assert look_up.ended
    assert look_up.read() == ()
    assert not os.get_inheritable(look_up.fileno())
    look_up.close()


def test_what_came_before_an_early_end_is_not_lost(peer: Peer) -> None:
    look_up = peer.asked(ONE, TWO)
    peer.say(name_messages.render_answer(GOOD))
    peer.leave()
    assert look_up.read() == (GOOD,)
    with pytest.raises(GuestnetError, match="ended early; see: journalctl"):
        look_up.read()
    look_up.close()


def test_one_turn_reads_a_bounded_number(peer: Peer) -> None:
    questions = [Question(4, f"n{number}.example") for number in range(100)]
    look_up = peer.asked(*questions)
    peer.say(*(name_messages.render_answer(Answer(question, name_messages.NODATA, 1)) for question in questions))
    assert [len(look_up.read()) for _ in range(3)] == [64, 36, 0]
    look_up.close()


@pytest.mark.parametrize(
    "message",
    [
        b"answer 4 one.example addresses 300 192.0.2.1 }; drop",
        name_messages.render_answer(GOOD) + b"\n",
        b"answer 4 one.example addresses 300" + b" 192.0.2.1" * 500,
        b"\xff\xfe",
        name_messages.render_answer(NONE),  # which was not asked
    ],
)
def test_what_is_no_answer_to_it_is_an_error(peer: Peer, message: bytes) -> None:
    look_up = peer.asked(ONE)
    peer.say(message)
    with pytest.raises(GuestnetError, match="name look-up"):
        look_up.read()
    look_up.close()


def test_an_answer_counts_once(peer: Peer) -> None:
    look_up = peer.asked(ONE, TWO)
    peer.say(name_messages.render_answer(GOOD))
    assert look_up.read() == (GOOD,)
    peer.say(name_messages.render_answer(GOOD))
    with pytest.raises(GuestnetError, match=r"one\.example, which was not requested"):
        look_up.read()
    look_up.close()


def test_one_that_never_answers_has_a_limit(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_client, "LIMIT_SECONDS", 0.05)
    look_up = peer.asked(ONE)
    time.sleep(0.06)
    assert look_up.seconds_left() == 0
    with pytest.raises(GuestnetError, match="has not ended within"):
        look_up.read()
    look_up.close()


def test_a_broken_connection_is_one_error(peer: Peer) -> None:
    look_up = LookUp(peer.path, Request(SERVERS, (ONE,)))
    peer.close()  # with the request unread
    with pytest.raises(GuestnetError, match="failed: Connection reset by peer"):
        look_up.read()
    look_up.close()


def test_one_that_leaves_at_once_is_one_error(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the connection and the request."""

    class Leaving(socket.socket):
        def connect(self, address: str) -> None:  # type: ignore[override]
            super().connect(address)
            peer.close()

    monkeypatch.setattr(names_client.socket, "socket", Leaving)
    with pytest.raises(GuestnetError, match="refuses requests; see: journalctl"):
        LookUp(peer.path, Request(SERVERS, (ONE,)))


def test_without_the_unit_the_error_names_the_remedy(tmp_path: Path) -> None:
    path = str(tmp_path / "names.sock")
    with pytest.raises(GuestnetError, match=r"does not exist; systemctl restart qubes-guestnet-names\.socket"):
        LookUp(path, Request(SERVERS, (ONE,)))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(path)
    with pytest.raises(GuestnetError, match="does not exist"):
        LookUp(path, Request(SERVERS, (ONE,)))
    with pytest.raises(FileError, match="run as root"):
        LookUp("/dev/null/names.sock", Request(SERVERS, (ONE,)))


def test_a_full_queue_is_an_error_and_no_wait(peer: Peer) -> None:
    waiting = []
    with pytest.raises(GuestnetError, match="busy"):  # noqa: PT012
        for _ in range(10):
            waiting.append(LookUp(peer.path, Request(SERVERS, (ONE,))))
    assert waiting
    for look_up in waiting:
        look_up.close()
