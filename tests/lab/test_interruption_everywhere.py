# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C at moments that are counted and not timed: the same on a fast machine and on a slow one (B143).

`make test` tries 24 of them, which is what its time allows, and `make soak` 102.

A verb is played once to its end, and what it does is counted (`tests.support.faults.interrupting`). Then it is
interrupted at moments that are spread evenly over that, from its first import on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.eventually import eventually
from tests.support.needs import needs
from tests.support.qubes import lab_session
from tests.support.qubes.lab_session import LONGEST, base, done

TREE = Path(__file__).resolve().parents[2]
VERBS = ("demo", "run S-110", "up ipv6-feature")
# Of each verb; in so many tests, which may run side by side.
MOMENTS, PARTS = (34, 17) if "GUESTNET_SOAK_STEPS" in os.environ else (8, 4)
# The events of two runs are not as many, because some wait longer; and what is nearly done may end first.
CERTAIN = 0.9
MARK = "PYTHON_OF_THIS_TEST"  # the lab gives what begins so to its qubes


@pytest.fixture(autouse=True)
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder for the labs, and nothing left behind."""
    needs("ip", "nsenter", "nft", "dnsmasq")
    monkeypatch.setenv(MARK, str(tmp_path))
    yield from lab_session.ground(tmp_path, monkeypatch)


def left() -> list[str]:
    """Processes that a verb has left behind, by their environment; other tests may run beside this one."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={os.environ[MARK]}\0".encode() in environment.read_bytes() + b"\0":
                found.append(environment.parent.name)
        except OSError:
            continue
    return [pid for pid in found if int(pid) != os.getpid()]


def play(verb: str, counter: Path, moment: int) -> tuple[int, str]:
    """Exit status of a verb, and what it prints on both outputs."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.faults.interrupting", str(counter), str(moment), "lab", *verb.split()],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, cwd=TREE,
        start_new_session=True, timeout=LONGEST, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@cache
def events(verb: str) -> int:
    """How many events a verb has from its begin to its end."""
    with TemporaryDirectory() as folder:
        counter = Path(folder, "counter")
        code, said = play(verb, counter, 0)
        assert code == 0, said
        if verb.startswith("up"):
            done("down")
        return counter.stat().st_size


@pytest.mark.soak
@pytest.mark.behaviour("B143")
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_says_one_line_and_leaves_nothing(verb: str, part: int, tmp_path: Path) -> None:
    count = events(verb)
    for number in range(part, MOMENTS, PARTS):
        moment = 1 + int(count * CERTAIN * number / MOMENTS)
        code, said = play(verb, tmp_path / f"counter{number}", moment)
        lines = said.splitlines()
        assert (code, lines.count("interrupted"), lines[-1:]) == (130, 1, ["interrupted"]), (moment, said)
        assert "Traceback" not in said, (moment, said)
        eventually(lambda: not left(), 10.0, f"every process has ended, event {moment}", lambda: str(left()))
        assert not base().exists(), moment
