# SPDX-License-Identifier: GPL-2.0-or-later
"""The socket that `monitor` follows: the agent never waits for a follower, and a follower learns what it missed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from qubes_guestnet.errors import FileError, GuestnetError
from qubes_guestnet.system import monitor_socket, systemd
from qubes_guestnet.system.monitor_socket import Line, Server, connect


def test_each_follower_gets_a_greeting_and_then_each_line(tmp_path: Path) -> None:
    path = str(tmp_path / monitor_socket.NAME)
    server = Server(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    server.send(6, "pass", "nothing follows yet")
    first = connect(path)
    server.accept("hello")
    second = connect(path)
    server.accept("hello again")
    server.send(3, "message", "some words\x1b")
    greeting, said = Line(first.recv(4096)), Line(first.recv(4096))
    assert (greeting.level, greeting.kind, greeting.lost, greeting.text) == (6, "agent", 0, "hello")
    assert (said.level, said.kind, said.text) == (3, "message", "some words\x1b")
    assert said.when >= greeting.when > 1e9
    assert Line(second.recv(4096)).text == "hello again"
    server.close()
    assert Line(second.recv(4096)).text == "some words\x1b"
    assert second.recv(4096) == b""
    with pytest.raises(GuestnetError, match="agent is not running"):
        connect(path)
    first.close()
    second.close()
    Server(path).close()  # the next agent's


def test_one_that_does_not_read_makes_nothing_wait_and_learns_what_it_lost(tmp_path: Path) -> None:
    server = Server(str(tmp_path / "s"))
    following = connect(str(tmp_path / "s"))
    server.accept("hello")
    for number in range(20000):
        server.send(6, "pass", f"{number} {'x' * 200}")
    read = 0
    following.setblocking(False)
    try:
        while Line(following.recv(4096)):
            read += 1
    except BlockingIOError:
        pass
    server.send(6, "pass", "now")
    last = Line(following.recv(4096))
    assert (last.text, last.lost) == ("now", 20001 - read)
    assert last.lost > 0
    server.send(6, "pass", "")
    assert Line(following.recv(4096)).lost == 0
    following.close()
    server.close()


def test_followers_that_went_are_forgotten_and_there_are_never_too_many(tmp_path: Path) -> None:
    server = Server(str(tmp_path / "s"))
    for _ in range(20):
        connect(str(tmp_path / "s")).close()
        server.accept("hello")
    server.send(6, "pass", "x")
    assert len(server._followers) == 0
    followers = []
    for _ in range(12):
        followers.append(connect(str(tmp_path / "s")))
        server.accept("hello")
    assert len(server._followers) == 8
    assert followers[0].recv(4096)
    assert followers[0].recv(4096) == b""
    server.accept("nothing waits to be accepted")
    for each in followers:
        each.close()
    server.close()


def test_a_place_where_there_can_be_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not ours")
    for path in (tmp_path / "no" / "s", tmp_path / "file"):
        with pytest.raises(FileError):
            Server(str(path))
    with pytest.raises(GuestnetError, match="not running"):
        connect(str(tmp_path / "none"))
    with pytest.raises(FileError):
        connect("x" * 200)


def test_the_log_is_followed_with_what_is_only_told_verbosely(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[tuple[int, str, str]] = []
    systemd.follow(lambda level, kind, text: said.append((level, kind, text)))
    try:
        systemd.log(systemd.DEBUG, "quiet\x1b", "pass")
        systemd.log(systemd.INFO, "loud")
        systemd.tell_all(True)
        systemd.log(systemd.DEBUG, "no longer quiet")
    finally:
        systemd.follow(None)
        systemd.tell_all(False)
    systemd.log(systemd.DEBUG, "unheard")
    assert said == [(7, "pass", "quiet\\x1b"), (6, "message", "loud"), (7, "message", "no longer quiet")]
    assert capsys.readouterr().err.splitlines() == ["loud", "no longer quiet"]
