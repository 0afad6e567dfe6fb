# SPDX-License-Identifier: GPL-2.0-or-later
"""A caller may close standard input, output or error (`>&-`): the exit status tells of the work alone."""

from __future__ import annotations

import shlex
import sys

import pytest

from tests.support.qubes.appvm import AppVm

PROGRAM = (sys.executable, "-m", "qubes_guestnet")


@pytest.mark.behaviour("B143")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("words", ["plan", "apply --dry-run", "plan --json", "--help", "lab up --list"])
def test_a_stream_that_the_caller_closed_changes_no_exit_status(words: str, closed: str) -> None:
    appvm = AppVm()
    done = appvm.qube.run("sh", "-c", f"{shlex.join(PROGRAM)} {words} {closed}", check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (">&-" not in closed.replace("2>&-", ""))
