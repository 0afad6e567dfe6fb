# SPDX-License-Identifier: GPL-2.0-or-later
"""Files: the real file system, real mounts in namespaces, and system calls that fail on purpose."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from qubes_guestnet.errors import FileError
from qubes_guestnet.system import files
from qubes_guestnet.system.files import Published, publish
from tests.support.faults.refuse import refuse
from tests.support.judge import publishing
from tests.support.judge.publishing import LONG, SHORT, contract, make_socket, readers_see_no_hole, touched
from tests.support.needs import needs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "etc"
    path.mkdir()
    return path


@pytest.fixture
def resolv_conf(folder: Path) -> Path:
    path = folder / "resolv.conf"
    path.write_bytes(b"old\n")
    return path


def test_plain_folder(resolv_conf: Path) -> None:
    contract(resolv_conf, Published.REPLACED)
    readers_see_no_hole(resolv_conf, Published.REPLACED)


@pytest.mark.parametrize("place", ["bind mount", "read-only folder", "full disk", "full disk under a bind mount"])
def test_in_a_real_mount(place: str, tmp_path: Path) -> None:
    needs("unshare", "mount")
    command = ["unshare", "--user", "--map-root-user", "--mount", "--propagation", "private", sys.executable]
    done = subprocess.run(
        [*command, "-m", "tests.support.judge.publishing", place, str(tmp_path / "etc")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "held\n"), done.stderr


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES, errno.EROFS])
def test_rename_refused(number: int, resolv_conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "rename", number)
    contract(resolv_conf, Published.IN_PLACE)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_new_files_refused(number: int, resolv_conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "open", number, lambda path, flags, *_: bool(flags & os.O_CREAT))
    contract(resolv_conf, Published.IN_PLACE)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_sync(number: int, resolv_conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "fsync", number)
    contract(resolv_conf, Published.REPLACED)


def test_short_writes(resolv_conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:1000]))
    contract(resolv_conf, Published.REPLACED)
    refuse(monkeypatch, "rename", errno.EBUSY)
    contract(resolv_conf, Published.IN_PLACE)


# --- Failures: the old content stays, nothing is left behind, and the error says what to do.

FAILURES = [
    ("open", errno.ENOSPC, "free some space"),
    ("open", errno.EMFILE, ""),
    ("write", errno.ENOSPC, "free some space"),
    ("write", errno.EDQUOT, "free some space"),
    ("write", errno.EIO, ""),
    ("fchmod", errno.EIO, ""),
    ("fsync", errno.EIO, ""),
    ("fsync", errno.ENOSPC, "free some space"),
    ("rename", errno.ENOSPC, "free some space"),
    ("rename", errno.EISDIR, "move it away"),
]


@pytest.mark.parametrize(("name", "number", "remedy"), FAILURES)
@pytest.mark.parametrize("there", [True, False], ids=["over a file", "where none is"])
def test_a_failure_on_the_way(
    name: str, number: int, remedy: str, there: bool, resolv_conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not there:
        resolv_conf.unlink()
    with monkeypatch.context() as patch:
        refuse(
            patch, name, number, (lambda _, flags, *__: bool(flags & os.O_CREAT)) if name == "open" else lambda *_: True
        )
        with pytest.raises(FileError, match=str(resolv_conf)) as caught:
            publish(str(resolv_conf), LONG)
    assert caught.value.errno == number
    assert caught.value.retryable
    assert remedy in caught.value.remedy
    assert os.listdir(resolv_conf.parent) == (["resolv.conf"] if there else [])
    assert not there or resolv_conf.read_bytes() == b"old\n"
    assert publish(str(resolv_conf), LONG) is Published.REPLACED, "and later it goes"


@pytest.mark.parametrize(("old", "new"), [(SHORT, LONG), (LONG, SHORT), (b"", LONG), (LONG, b"")])
@pytest.mark.parametrize("after", [0, 1, 50])
def test_disk_full_in_place_puts_the_old_bytes_back(
    old: bytes, new: bytes, after: int, resolv_conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolv_conf.write_bytes(old)
    refuse(monkeypatch, "rename", errno.EBUSY)
    real, room = os.write, [1 << 20, after]

    def write(fd: int, data: bytes) -> int:
        left = room[0]
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] = left - len(data[:left])
        return real(fd, data[:left])

    real_pread = os.pread

    def pread(fd: int, length: int, offset: int) -> bytes:
        room[0] = after  # from here on the file itself is written
        return real_pread(fd, length, offset)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(FileError, match="space"):
        publish(str(resolv_conf), new)
    assert resolv_conf.read_bytes() == old
    assert os.listdir(resolv_conf.parent) == ["resolv.conf"]


def test_a_signal_on_the_way_leaves_nothing(resolv_conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(str(resolv_conf), LONG)
    assert os.listdir(resolv_conf.parent) == ["resolv.conf"]
    assert resolv_conf.read_bytes() == b"old\n"


def test_the_error_of_the_failure_is_reported_and_not_that_of_the_cleaning(
    resolv_conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "fsync", errno.EIO)
    refuse(monkeypatch, "unlink", errno.EROFS)
    with pytest.raises(FileError, match="Input/output error"):
        publish(str(resolv_conf), LONG)


def test_when_the_folder_cannot_be_synced_the_file_is_whole(resolv_conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "fsync", errno.EIO, lambda fd: os.path.isdir(f"/proc/self/fd/{fd}"))
    with pytest.raises(FileError, match="Input/output error"):
        publish(str(resolv_conf), LONG)
    assert resolv_conf.read_bytes() == LONG
    assert os.listdir(resolv_conf.parent) == ["resolv.conf"]


def test_files_below_run_are_not_synced(resolv_conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "fsync", errno.EIO)
    assert publish(str(resolv_conf), LONG, sync=False) is Published.REPLACED
    refuse(monkeypatch, "rename", errno.EBUSY)
    assert publish(str(resolv_conf), SHORT, sync=False) is Published.IN_PLACE


def test_no_descriptor_is_left_open(resolv_conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")
    for name, number in (("write", errno.EIO), ("rename", errno.EBUSY), ("fsync", errno.EIO), ("unlink", errno.EIO)):
        with monkeypatch.context() as patch:
            refuse(patch, name, number)
            for data in (LONG, SHORT):
                with suppress(FileError):
                    publish(str(resolv_conf), data)
        files.facts(str(resolv_conf), [str(resolv_conf.parent)])
        files.read(str(resolv_conf))
    assert os.listdir("/proc/self/fd") == before


def test_where_nothing_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "new"
    assert publish(str(path), SHORT, 0o600) is Published.REPLACED
    assert path.read_bytes() == SHORT
    assert path.lstat().st_mode == 0o100600
    monkeypatch.chdir(folder)
    assert publish("here", SHORT) is Published.REPLACED
    assert sorted(os.listdir(folder)) == ["here", "new"]


def test_without_its_folder(folder: Path) -> None:
    with pytest.raises(FileError, match="the folder does not exist"):
        publish(str(folder / "none" / "resolv.conf"), SHORT)


@pytest.mark.behaviour("B19")
@pytest.mark.parametrize("exists", [True, False], ids=["live", "dangling"])
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_is_replaced_and_its_target_left_alone(
    exists: bool, relative: bool, resolv_conf: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    target = run / "stub-resolv.conf"
    if exists:
        target.write_bytes(SHORT)
    before = touched(target) if exists else None
    resolv_conf.unlink()
    resolv_conf.symlink_to("../run/stub-resolv.conf" if relative else target)
    found = files.facts(str(resolv_conf), [])
    assert (found.kind, found.data) == ("symlink", b"")
    assert found.link_target == ("../run/stub-resolv.conf" if relative else str(target))
    assert publish(str(resolv_conf), SHORT) is Published.REPLACED
    assert not resolv_conf.is_symlink()
    assert resolv_conf.read_bytes() == SHORT
    assert os.listdir(run) == (["stub-resolv.conf"] if exists else [])
    assert not exists or touched(target) == before
    assert publish(str(resolv_conf), SHORT) is Published.UNCHANGED


@pytest.mark.behaviour("B19")
def test_a_link_that_cannot_be_replaced_is_not_written_through(
    resolv_conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"target\n")
    resolv_conf.unlink()
    resolv_conf.symlink_to(target)
    refuse(monkeypatch, "rename", errno.EBUSY)
    with pytest.raises(FileError, match="busy"):
        publish(str(resolv_conf), SHORT)
    assert target.read_bytes() == b"target\n"
    assert os.listdir(resolv_conf.parent) == ["resolv.conf"]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, make_socket], ids=["folder", "fifo", "socket"])
def test_what_is_no_file_is_left_alone(
    make: Callable[[Path], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # the path of a socket must be short
    make(Path("resolv.conf"))
    before = touched(folder / "resolv.conf")
    assert files.facts("resolv.conf", []).kind == "other"
    with pytest.raises(FileError, match="move it away"):
        publish("resolv.conf", SHORT)
    with pytest.raises(FileError, match=r"resolv\.conf: "):
        files.read("resolv.conf")
    assert touched(folder / "resolv.conf") == before
    assert os.listdir(folder) == ["resolv.conf"]


def test_the_temporary_file_is_in_the_same_folder_and_nobody_can_guess_its_name(
    resolv_conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    real = os.rename

    def rename(old: str, new: str, **folders: int) -> None:
        assert folders["src_dir_fd"] == folders["dst_dir_fd"]
        names.append(old)
        real(old, new, **folders)

    monkeypatch.setattr(os, "rename", rename)
    for turn in range(20):
        publish(str(resolv_conf), str(turn).encode())
    assert len(set(names)) == 20
    assert all(
        name.startswith(".resolv.conf.guestnet-") and len(name) == len(".resolv.conf.guestnet-") + 16 for name in names
    )


def test_what_a_killed_publisher_left_is_swept_away(resolv_conf: Path) -> None:
    folder = resolv_conf.parent
    program = "import os, signal, sys; from qubes_guestnet.system import files\n"
    program += "os.rename = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL); files.publish(sys.argv[1], b'x')"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program, resolv_conf], cwd=ROOT, check=False, timeout=60)
    assert resolv_conf.read_bytes() == b"old\n"
    first, second = (name for name in os.listdir(folder) if name.startswith(".resolv.conf.guestnet-"))
    for name in ("resolv.conf.guestnet-1", ".resolv.conf", ".hosts.guestnet-0123456789abcdef"):
        (folder / name).write_bytes(b"not ours")
        os.utime(folder / name, (0, 0))
    others = set(os.listdir(folder))
    os.utime(folder / first, (0, 0))
    publish(str(resolv_conf), SHORT)
    assert set(os.listdir(folder)) == others - {first}, "the other one may be of a process that is still writing"
    os.utime(folder / second, (0, 0))
    publish(str(resolv_conf), LONG)
    assert set(os.listdir(folder)) == others - {first, second}


@pytest.mark.parametrize("name", ["lstat", "unlink"])
def test_sweeping_never_fails(name: str, resolv_conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = resolv_conf.parent / ".resolv.conf.guestnet-0123456789abcdef"
    left.touch()
    os.utime(left, (0, 0))
    refuse(monkeypatch, name, errno.ENOENT, lambda path, *_: str(path).startswith(".resolv"))
    assert publish(str(resolv_conf), SHORT) is Published.REPLACED


def test_the_body_can_fail(resolv_conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge of the namespaces is no rubber stamp."""

    def careless(path: str, data: bytes, mode: int = 0o644, **_: object) -> Published:
        Path(path).write_bytes(data)
        return Published.REPLACED

    monkeypatch.setattr(publishing, "publish", careless)
    with pytest.raises(AssertionError):
        contract(resolv_conf, Published.REPLACED)


@pytest.mark.behaviour("B124")
@pytest.mark.parametrize("words", [b"others\n", b"older\n", b""])
def test_what_came_since_the_look_is_left(resolv_conf: Path, words: bytes) -> None:
    seen = files.facts(str(resolv_conf))
    resolv_conf.write_bytes(words)
    with pytest.raises(FileError, match="just now") as caught:
        publish(str(resolv_conf), b"ours\n", over=seen)
    assert caught.value.errno == errno.ESTALE
    assert {path.name: path.read_bytes() for path in resolv_conf.parent.iterdir()} == {"resolv.conf": words}


def test_what_is_as_it_was_is_written_over_whatever_its_age(resolv_conf: Path) -> None:
    seen = files.facts(str(resolv_conf))
    os.utime(resolv_conf)
    assert publish(str(resolv_conf), b"ours\n", over=seen) is Published.REPLACED
