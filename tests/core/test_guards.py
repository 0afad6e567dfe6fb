# SPDX-License-Identifier: GPL-2.0-or-later
"""The guards of conftest.py do guard."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ATTEMPTS = {
    "opens a socket": lambda: socket.socket(),
    "spawns a process": lambda: subprocess.run(["true"], check=False),
    "becomes another process": lambda: os.execv("/bin/true", ["true"]),
    "forks": lambda: os.fork(),
    "writes outside its temporary folder: open": lambda: Path("/etc/guestnet-guard").write_text("x"),
    "writes outside its temporary folder: os.mkdir": lambda: os.mkdir("/etc/guestnet-guard"),
    "writes outside its temporary folder: os.rename": lambda: os.rename("/etc/guestnet-a", "/etc/guestnet-b"),
}


def _swallowing(attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except Exception as error:
        raise AssertionError("the guard was swallowed") from error


@pytest.mark.parametrize(("why", "attempt"), ATTEMPTS.items())
def test_a_pure_test_that_reaches_out_fails_whatever_it_catches(why: str, attempt: Callable[[], object]) -> None:
    with pytest.raises(BaseException, match=why) as caught:
        _swallowing(attempt)
    assert type(caught.value).__name__ == "ForbiddenInPureTest"


def test_its_own_folder_is_free_to_write(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    os.rename(tmp_path / "a", tmp_path / "b")
    Path(os.devnull).write_text("x")
    assert (tmp_path / "b").read_text() == "x"
