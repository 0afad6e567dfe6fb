# SPDX-License-Identifier: GPL-2.0-or-later
"""What must hold of `files.publish` wherever the file lies: one body, run here and inside namespaces.

Run as a program it is one such place: `python -m tests.support.judge.publishing PLACE FOLDER`, as root of a mount
namespace.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qubes_guestnet.core.dns.resolv_conf import HEADER
from qubes_guestnet.errors import FileError
from qubes_guestnet.system.files import Published, publish

SHORT = HEADER + b"nameserver 10.139.1.1\n"
LONG = HEADER + b"nameserver 10.139.1.1\nnameserver 10.139.1.2\n" + b"# more\n" * 40


def touched(path: Path) -> tuple[int, int, int, int]:
    """Return a value that changes with each write, replacement or new label of the file."""
    status = path.lstat()
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_mode


def make_socket(path: Path) -> None:
    """Make a socket without a listener."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def contract(path: Path, how: Published) -> None:
    """Publish all sorts of content over an existing file and look at it by plain system calls.

    Args:
        path: an existing regular file.
        how: what a change is expected to be, REPLACED or IN_PLACE.
    """
    others = sorted(set(os.listdir(path.parent)) - {path.name})
    for data in (SHORT, LONG, SHORT, b"", b"x", LONG, b"\x00\xff" * 10_000, b"x"):
        assert publish(str(path), data) is how, data[:20]
        assert path.read_bytes() == data
        assert path.lstat().st_mode == 0o100644
        before = touched(path)
        assert publish(str(path), data) is Published.UNCHANGED
        assert touched(path) == before, "what is equal is not touched"
    path.chmod(0o600)
    assert publish(str(path), b"x") is how
    assert path.lstat().st_mode == 0o100644, "the mode is restored"
    mask = os.umask(0o077)
    try:
        assert publish(str(path), SHORT) is how
        assert publish(str(path), LONG, 0o640, sync=False) is how
    finally:
        os.umask(mask)
    assert path.lstat().st_mode == 0o100640, "the umask does not count"
    assert path.read_bytes() == LONG
    assert sorted(set(os.listdir(path.parent)) - {path.name}) == others, "nothing else is left in the folder"


def readers_see_no_hole(path: Path, how: Published, rounds: int = 150) -> None:
    """While one publishes, another reads: the old or the new, never nothing and never half of it."""
    publish(str(path), SHORT, sync=False)
    seen: list[bytes] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            data = path.read_bytes()
            if not seen or seen[-1] != data:
                seen.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for turn in range(rounds):
            assert publish(str(path), (LONG, SHORT)[turn % 2], sync=False) is how
    finally:
        stop.set()
        reader.join()
    if how is Published.REPLACED:
        assert set(seen) <= {SHORT, LONG}
    # In place the kernel promises no more than that what both have in common is always there.
    assert all(len(data) >= len(SHORT) and data.startswith(SHORT.rstrip(b"\n")) for data in seen)


def disk_full(path: Path) -> None:
    """On a full file system the old content stays, whole, and nothing is left beside it."""
    path.write_bytes(SHORT)
    filler = Path(os.environ.get("FILLER", str(path.parent / "filler")))
    with filler.open("wb", buffering=0) as out:
        while os.statvfs(out.fileno()).f_bavail:
            out.write(b"\0" * 4096)
    before = sorted(os.listdir(path.parent))
    for data in (LONG + b"# more\n" * 5000, b"x" * 100_000):
        with pytest.raises(FileError, match=f"{path}: No space left on device; .*free some space"):
            publish(str(path), data)
        assert path.read_bytes() == SHORT
        assert sorted(os.listdir(path.parent)) == before
    filler.unlink()
    publish(str(path), LONG)
    assert path.read_bytes() == LONG


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


def _bind_mount(folder: Path) -> Path:
    """As bind-dirs does it: another file is mounted over resolv.conf."""
    path, source = folder / "resolv.conf", folder.parent / "source"
    source.write_bytes(b"old\n")
    path.touch()
    _mount("--bind", source, path)
    return path


def _read_only_folder(folder: Path) -> Path:
    """As a service sandbox does it: the folder is read-only but for this file."""
    path, source = folder / "resolv.conf", folder.parent / "source"
    source.write_bytes(b"old\n")
    path.touch()
    _mount("--bind", folder, folder)
    _mount("-o", "remount,bind,ro", folder)
    _mount("--bind", source, path)
    return path


def _tmpfs(folder: Path) -> Path:
    """A file system of three pages."""
    _mount("-t", "tmpfs", "-o", "size=12k", "tmpfs", folder)
    return folder / "resolv.conf"


def main(place: str, folder: Path) -> None:
    """Set up one place in a mount namespace of our own, and hold publish to its word there."""
    folder.mkdir()
    if place in ("bind mount", "read-only folder"):
        path = _bind_mount(folder) if place == "bind mount" else _read_only_folder(folder)
        contract(path, Published.IN_PLACE)
        readers_see_no_hole(path, Published.IN_PLACE)
    elif place == "full disk":
        disk_full(_tmpfs(folder))
    elif place == "full disk under a bind mount":
        path = _tmpfs(folder)
        path.touch()
        mounted = folder.parent / "elsewhere" / "resolv.conf"
        mounted.parent.mkdir()
        mounted.touch()
        _mount("--bind", path, mounted)
        os.environ["FILLER"] = str(folder / "filler")
        disk_full(mounted)
    else:
        raise ValueError(place)
    print("held")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
