# SPDX-License-Identifier: GPL-2.0-or-later
"""What is found out about a resolv.conf: what it is, which file protects it, whether it is locked."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qubes_guestnet.errors import FileError
from qubes_guestnet.system import files
from qubes_guestnet.system.files import publish
from tests.support.faults.refuse import refuse
from tests.support.judge.publishing import SHORT, make_socket, touched
from tests.support.needs import needs


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Path:
    path = tmp_path / "etc" / "resolv.conf"
    path.parent.mkdir()
    path.write_bytes(b"old\n")
    return path


# --- chattr: for real where we may, else as the kernel would answer.

FLAGS = {"i": 0x10, "a": 0x20}


@pytest.fixture(params=list(FLAGS))
def locked(request: pytest.FixtureRequest, resolv_conf: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A resolv.conf that is immutable (i) or append-only (a)."""
    needs("chattr")
    done = subprocess.run(["chattr", f"+{request.param}", resolv_conf], capture_output=True, check=False)
    if done.returncode == 0:
        yield resolv_conf
        subprocess.run(["chattr", f"-{request.param}", resolv_conf], check=True)
        return

    def ioctl(_: int, number: int, answer: bytearray) -> int:
        assert number & 0xFFFF == 0x6601
        answer[:4] = FLAGS[request.param].to_bytes(4, sys.byteorder)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    refuse(monkeypatch, "rename", errno.EPERM)
    refuse(monkeypatch, "open", errno.EPERM, lambda path, flags, *_: path == str(resolv_conf) and flags & os.O_RDWR)
    yield resolv_conf


def test_a_file_that_chattr_locked(locked: Path) -> None:
    assert files.facts(str(locked), []).immutable
    before = touched(locked)
    with pytest.raises(FileError, match="chattr"):
        publish(str(locked), SHORT)
    assert touched(locked) == before
    assert locked.read_bytes() == b"old\n"
    assert os.listdir(locked.parent) == ["resolv.conf"]


def test_a_file_system_without_attributes(resolv_conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ioctl(*_: object) -> int:
        raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")

    assert not files.facts(str(resolv_conf), []).immutable
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert not files.facts(str(resolv_conf), []).immutable


# --- The facts.


def test_facts_of_a_file(resolv_conf: Path) -> None:
    resolv_conf.chmod(0o640)
    found = files.facts(str(resolv_conf), [], disabled=True, networkmanager=True)
    assert (found.kind, found.data, found.mode, found.link_target) == ("regular", b"old\n", 0o640, "")
    assert (found.protected_by, found.immutable, found.disabled, found.networkmanager) == ("", False, True, True)
    resolv_conf.write_bytes(b"x" * (files.LONGEST + 100))
    assert len(files.facts(str(resolv_conf), []).data) == files.LONGEST
    resolv_conf.unlink()
    assert files.facts(str(resolv_conf), []).kind == "missing"


def test_facts_of_a_file_that_cannot_be_read(resolv_conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "open", errno.EIO)
    with pytest.raises(FileError, match=f"{resolv_conf}: Input/output error"):
        files.facts(str(resolv_conf), [])


WHOLE = b"/etc/resolv.conf\n"
LISTS: list[tuple[str, dict[str, bytes], str]] = [
    ("a list of one", {"a": WHOLE}, "a"),
    ("no newline at its end", {"a": b"/etc/resolv.conf"}, "a"),
    ("a line among others", {"a": b"# mine\n/etc/hosts\n/etc/resolv.conf\n/etc/fstab\n"}, "a"),
    ("the second list", {"a": b"/etc/hosts\n", "b": WHOLE}, "b"),
    ("a list in a folder", {"sub/deep/a": WHOLE}, "sub/deep/a"),
    ("a binary file", {"a": b"\x00\xff\xfe\n" + WHOLE + b"\x00" * 5000}, "a"),
    ("a hidden list", {".a": WHOLE}, ".a"),
    ("a part of a line", {"a": b"/etc/resolv.conf.d\n/x/etc/resolv.conf\n"}, ""),
    ("a comment", {"a": b"#/etc/resolv.conf\n"}, ""),
    ("spaces", {"a": b" /etc/resolv.conf\n/etc/resolv.conf \n"}, ""),
    ("a carriage return", {"a": b"/etc/resolv.conf\r\n"}, ""),
    ("a pattern", {"a": b"/etc/*\n.*\n"}, ""),
    ("left by rpm or an editor", {"a~": WHOLE, "a.rpmsave": WHOLE, "a.rpmnew": WHOLE, "a.rpmold": WHOLE}, ""),
    ("an empty list", {"a": b""}, ""),
    ("no list", {}, ""),
]


@pytest.mark.behaviour("B23")
@pytest.mark.parametrize(("lists", "by"), [case[1:] for case in LISTS], ids=[case[0] for case in LISTS])
@pytest.mark.parametrize("second", [False, True], ids=["first folder", "second folder"])
def test_protected(lists: dict[str, bytes], by: str, second: bool, tmp_path: Path) -> None:
    system, user = tmp_path / "system.d", tmp_path / "user.d"
    where = user if second else system
    for name, data in lists.items():
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_bytes(data)
    found = files.facts("/etc/resolv.conf", [str(system), str(user)])
    assert found.protected_by == (str(where / by) if by else "")


@pytest.mark.behaviour("B23")
def test_odd_things_among_the_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = tmp_path / "d"
    lists.mkdir()
    monkeypatch.chdir(lists)
    (lists / "a-dangling").symlink_to("nowhere")
    (lists / "b-circle").symlink_to("b-circle")
    (lists / "c-up").symlink_to("..")
    os.mkfifo(lists / "d-fifo")
    make_socket(Path("e-socket"))
    assert files.facts("/etc/resolv.conf", [str(lists)]).protected_by == ""
    (tmp_path / "real").write_bytes(WHOLE)
    (lists / "f-link").symlink_to("../real")
    assert files.facts("/etc/resolv.conf", [str(lists)]).protected_by == str(lists / "f-link")
    assert files.facts("/etc/resolv.conf", [str(tmp_path / "real")]).protected_by == "", "a file is no folder of lists"


@pytest.mark.behaviour("B23")
@pytest.mark.parametrize("name", ["open", "stat", "listdir"])
def test_a_list_that_cannot_be_read_protects(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"/etc/hosts\n")
    assert files.facts("/etc/resolv.conf", [str(tmp_path)]).protected_by == ""
    refuse(monkeypatch, name, errno.EIO, lambda path, *_: str(path).startswith(str(tmp_path)))
    assert files.facts("/etc/resolv.conf", [str(tmp_path)]).protected_by.endswith(" (unreadable)")


def test_a_list_too_long_to_read_protects(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x\n" * files.LONGEST_LIST)
    assert files.facts("/etc/resolv.conf", [str(tmp_path)]).protected_by == f"{tmp_path / 'a'} (unreadable)"


def test_a_list_that_goes_away_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(WHOLE)
    (tmp_path / "b").write_bytes(WHOLE)
    refuse(monkeypatch, "open", errno.ENOENT, lambda path, *_: path == str(tmp_path / "a"))
    assert files.facts("/etc/resolv.conf", [str(tmp_path)]).protected_by == str(tmp_path / "b")


# --- read()


def test_read(resolv_conf: Path) -> None:
    assert files.read(str(resolv_conf)) == b"old\n"
    assert files.read(str(resolv_conf), 4) == b"old\n"
    with pytest.raises(FileError, match=r"longer than 3 bytes.*shorten the file"):
        files.read(str(resolv_conf), 3)
    link = resolv_conf.parent / "link"
    link.symlink_to("resolv.conf")
    assert files.read(str(link)) == b"old\n"
    assert files.read(str(resolv_conf.parent / "none")) is None
