# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C at any moment: one line, and nothing is left behind (B143)."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.qubes import lab_session
from tests.support.qubes.lab_session import COMMAND, LONGEST, base, done, processes

TREE = Path(__file__).resolve().parents[2]
MOMENTS = 5
# From the interpreter's start on, which alone takes 0.1 s, until well into the work.
FIRST, LAST = 0.3, 2.5


@pytest.fixture(autouse=True)
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder for the labs, and nothing left behind."""
    yield from lab_session.ground(tmp_path, monkeypatch)


def interrupted(command: tuple[str, ...], moment: float) -> tuple[int, list[str]]:
    """What a command says that its terminal's Ctrl-C ends after so many seconds: SIGINT to the whole group."""
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, cwd=TREE,
        start_new_session=True,
    )  # fmt: skip
    time.sleep(moment)
    os.killpg(running.pid, signal.SIGINT)
    said = running.communicate(timeout=LONGEST)[0]
    return running.returncode, said.splitlines()


@pytest.mark.behaviour("B143")
@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("tools/demo",), 0),
        ((*COMMAND, "demo"), 130),
        ((*COMMAND, "run", "S-010"), 130),
        ((*COMMAND, "up", "ipv6-feature"), 130),
    ],
    ids=["make demo", "demo", "run", "up"],
)
def test_one_line_says_it_and_nothing_is_left(words: tuple[str, ...], status: int) -> None:
    before = processes()
    # The first words of the shell come at once, those of Python after it has started.
    first = 0.05 if words[0] == "tools/demo" else FIRST
    for number in range(MOMENTS):
        code, said = interrupted(words, first + (LAST - first) * number / (MOMENTS - 1))
        assert (code, said.count("interrupted"), said[-1:]) == (status, 1, ["interrupted"]), said
        assert "Traceback" not in "\n".join(said)
        eventually(lambda: processes() <= before, 5.0, "every process has ended")
        assert not base().exists()


@pytest.mark.behaviour("B143")
def test_a_verb_that_asks_a_lab_is_interrupted_and_the_lab_stays(tmp_path: Path) -> None:
    done("up", str(lab_session.small(tmp_path)))
    (middle,) = children(lab_session.background())
    (inside,) = children(middle)
    for words in ("status", "diagram", "set vm1 netvm other", "feature vm1 ipv6 1 --restart"):
        os.kill(inside, signal.SIGSTOP)  # so the answer does not come
        assert interrupted((*COMMAND, *words.split()), 1.0) == (130, ["interrupted"])
        os.kill(inside, signal.SIGCONT)
        assert lab_session.rows("--no-measure")["vm1"]["state"] == "running"


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.behaviour("B143")
def test_a_lab_whose_command_has_ended_ends_silently() -> None:
    """The command ends first, and a step may be told before the lab has ended too."""
    code = "import os; from qubes_guestnet.lab.progress import Teller; there, say = os.pipe(); os.close(there)"
    command = [sys.executable, "-c", f"{code}; Teller(say).step('x')"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TREE)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@pytest.mark.behaviour("B143")
def test_at_a_terminal_it_is_on_a_line_of_its_own() -> None:
    master, inner = pty.openpty()
    running = subprocess.Popen(
        ["setsid", "--ctty", *COMMAND, "demo"], stdin=inner, stdout=inner, stderr=inner,
        env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(inner)
    said = b""
    while b"plan" not in said:  # the indicator moves
        said += os.read(master, 65536)
    os.write(master, b"\x03")
    while running.poll() is None or b"interrupted" not in said:
        try:
            said += os.read(master, 65536)
        except OSError:
            break
    os.close(master)
    assert said.endswith(b"\r\ninterrupted\r\n"), said[-200:]
    assert running.wait(LONGEST) == 130


def test_a_daemon_of_qubesdb_says_it_too(tmp_path: Path) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "qubes_guestnet", "lab", "store", "--dir", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert running.stdout is not None
    assert running.stdout.readline().startswith("ready")
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=LONGEST)[0] == "interrupted\n"
    assert running.returncode == 0
