# SPDX-License-Identifier: GPL-2.0-or-later
"""xenstore by programs that stand in for Xen's: there is no Xen here, and the lab has a store of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from qubes_guestnet.system import programs, xenstore
from qubes_guestnet.system.xenstore import XenstoreError

# As in Xen: a path is looked for only behind `--`, a missing one is told on standard error.
READ = """#!/bin/sh
[ "$1" = -- ] && [ $# -eq 2 ] || exit 2
case "$2" in
    device/mac) echo 00:16:3e:5e:6c:04;;
    device/empty) echo;;
    device/binary) printf '\\377\\n';;
    device/broken) echo "xs_open: Permission denied" >&2; exit 1;;
    device/mute) exit 3;;
    device/together*)
        # All of them run at once, or none ever ends.
        touch "$MEETING/${2##*/}"
        until [ "$(ls "$MEETING" | wc -l)" -ge 3 ]; do sleep 0.01; done
        echo met;;
    *) echo "xenstore-read: couldn't read path $2" >&2; exit 1;;
esac
"""
WRITE = """#!/bin/sh
[ "$1" = -- ] || exit 2
case "$2" in
    read-only) echo "xenstore-write: could not write path $2" >&2; exit 1;;
    *) printf '%s=%s' "$2" "$3" > "$WRITTEN";;
esac
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    programs_folder = tmp_path / "xen tools"
    programs_folder.mkdir()
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    places = {"MEETING": str(meeting), "WRITTEN": str(tmp_path / "written")}
    monkeypatch.setattr(programs, "ENVIRONMENT", {**programs.ENVIRONMENT, **places})
    for name, text in (("xenstore-read", READ), ("xenstore-write", WRITE)):
        program = programs_folder / name
        program.write_text(text)
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs_folder}:/usr/bin:/bin")
    return tmp_path


def test_a_path_that_is_not_there_is_not_in_the_answer(folder: Path) -> None:
    found = xenstore.read(("device/mac", "device/type", "device/empty"))
    assert found == {"device/mac": b"00:16:3e:5e:6c:04", "device/empty": b""}
    assert xenstore.read(()) == {}


def test_what_is_no_text_becomes_nothing_that_validates(folder: Path) -> None:
    (value,) = xenstore.read(("device/binary",)).values()
    assert value
    assert not value.isascii()


def test_all_are_read_at_the_same_time(folder: Path) -> None:
    paths = tuple(f"device/together{number}" for number in range(3))
    assert xenstore.read(paths) == dict.fromkeys(paths, b"met")


@pytest.mark.parametrize(("path", "said"), [("device/broken", "xs_open: Permission denied"), ("device/mute", "3")])
def test_no_xenstore_is_an_error_and_no_missing_path(folder: Path, path: str, said: str) -> None:
    with pytest.raises(XenstoreError, match=said) as caught:
        xenstore.read(("device/mac", path))
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_slow_one_is_not_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xenstore, "_SECONDS", 0.05)
    with pytest.raises(XenstoreError, match="still running after"):
        xenstore.read(("device/together0", "device/mac"))  # the other two never come


def test_a_write(folder: Path) -> None:
    xenstore.write("device/hotplug-error", "-x; vif4.0: 'two words'")
    assert (folder / "written").read_text() == "device/hotplug-error=-x; vif4.0: 'two words'"
    with pytest.raises(XenstoreError, match="xenstore-write read-only: xenstore-write: could not"):
        xenstore.write("read-only", "x")


def test_a_missing_program_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "SEARCHED", ())
    with pytest.raises(XenstoreError, match=r"xenstore-read is not installed; install .*xenstore-utils"):
        xenstore.read(("device/mac",))
    with pytest.raises(XenstoreError, match=r"xenstore-write is not installed; install .*xenstore-utils"):
        xenstore.write("device/x", "y")


def test_one_that_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("xenstore-read", "xenstore-write"):
        (tmp_path / name).write_bytes(b"\0 no program")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(XenstoreError, match="Exec format error"):
        xenstore.read(("device/mac",))
    with pytest.raises(XenstoreError, match="Exec format error"):
        xenstore.write("device/x", "y")
