# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands in the qubes of an interactive lab: input, output, status, signals, and a terminal with job control."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.faults.signal_state import LISTED, UNALTERED, altered
from tests.support.qubes import lab_session
from tests.support.qubes.lab_session import COMMAND, LONGEST, background, done, lab, processes, refused


@pytest.fixture(autouse=True)
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder for the labs, and nothing left behind."""
    yield from lab_session.ground(tmp_path, monkeypatch)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The file of a small tree."""
    return lab_session.small(tmp_path)


def test_a_command_has_input_output_error_and_status_of_its_caller(small: Path, tmp_path: Path) -> None:
    done("up", str(small))
    script = "cat; echo error >&2; hostname; exit 7"
    result = lab("exec", "vm1", "sh", "-c", script, stdin=None, input="typed\n")
    assert (result.stdout, result.stderr, result.returncode) == ("typed\nvm1\n", "error\n", 7)
    with (tmp_path / "out").open("w") as out:
        subprocess.run([*COMMAND, "exec", "vm1", "--", "echo", "-n", "x"], stdout=out, check=True, timeout=LONGEST)
    assert (tmp_path / "out").read_text() == "x"
    assert lab("exec", "vm1", "sh", "-c", "kill -9 $$").returncode == 128 + 9
    assert lab("exec", "vm1", "no-such-program").returncode == 127
    assert done("exec", "vm1", "--", "ping", "-c1", "-W5", "192.168.123.45").count("1 received") == 1
    assert "eth0" in done("exec", "vm1", "qubes-guestnet", "status")
    long = "x" * 100_000
    assert done("exec", "vm1", "printf", "%s", long) == long
    assert refused(2, "exec", "nix", "true") == "there is no qube nix; the qubes are net, other, vm1"
    assert refused(2, "exec", "vm1").startswith("the command is missing; for a shell: ")
    assert refused(2, "exec", "--name", "b", "vm1").endswith(" lab exec --name b vm1 -- bash")


def inside() -> int:
    """The lab's process that serves the commands."""
    (middle,) = children(background())
    (found,) = children(middle)
    return found


def open_descriptors(pid: int) -> list[str]:
    """What a process has open while no command is connected to the lab."""
    eventually(lambda: len(re.findall(r"/fd/\d+/socket$", Path("/proc/net/unix").read_text(), re.MULTILINE)) == 1)
    return sorted(os.listdir(f"/proc/{pid}/fd"))


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_commands_run_beside_each_other_and_nothing_of_them_stays(small: Path) -> None:
    done("up", str(small))
    server = inside()
    before = open_descriptors(server)
    long = subprocess.Popen([*COMMAND, "exec", "vm1", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for _ in range(3):
        done("exec", "vm1", "true")
        lab("exec", "nix", "true")
    assert long.communicate(b"still there", timeout=LONGEST)[0] == b"still there"
    assert open_descriptors(server) == before


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=str
)
def test_signals_reach_the_command(small: Path, number: int, status: int) -> None:
    done("up", str(small))
    with _sleeping() as running:
        running.send_signal(number)
        assert running.wait(LONGEST) == status
    with _waiting("trap 'echo caught; exit 3' INT TERM HUP; echo ready; while :; do sleep 0.01; done") as running:
        running.send_signal(number)
        assert running.wait(LONGEST) == 3
        assert running.stdout is not None
        assert running.stdout.read() == b"caught\n"


def test_a_lab_that_was_started_in_the_background_has_commands_that_can_be_interrupted(small: Path) -> None:
    started = f"trap '' INT QUIT HUP; {shlex.join([*COMMAND, 'up', str(small)])} >/dev/null"
    subprocess.run(["sh", "-c", started], stdin=subprocess.DEVNULL, timeout=LONGEST, check=True)
    assert altered(done("exec", "vm1", *LISTED).splitlines()) == UNALTERED
    os.kill(background(), signal.SIGINT)
    with _sleeping() as running:
        running.send_signal(signal.SIGINT)
        assert running.wait(LONGEST) == 130


def _waiting(script: str) -> subprocess.Popen[bytes]:
    """A shell in vm1 that has said it is ready."""
    running = subprocess.Popen(
        [*COMMAND, "exec", "vm1", "sh", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert running.stdout is not None
    assert running.stdout.readline() == b"ready\n"
    return running


def _sleeping() -> subprocess.Popen[bytes]:
    """A shell in vm1 whose `sleep` runs: dash keeps a SIGINT that comes while it forks until its child has ended."""
    running = _waiting("echo ready; sleep 4711; echo not reached")
    eventually(lambda: "sleep\n4711" in _commands(), LONGEST, "the shell's command runs")
    return running


def test_a_command_whose_caller_is_gone_is_hung_up(small: Path) -> None:
    done("up", str(small))
    before = processes()
    with _sleeping() as running:
        running.kill()
    eventually(lambda: processes() <= before, what="it has ended")


class Person:
    """A person at a terminal, in front of a command of the lab."""

    def __init__(self, *words: str) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "dumb"
            os.execv(sys.executable, [*COMMAND, *words])
        self.seen = ""

    def sees(self, text: str) -> str:
        """Wait until something has been shown, since the last time; what was shown before it."""

        eventually(lambda: text in self.screen(), what=f"{text!r} is shown", trouble=self.screen)
        before, _, self.seen = self.seen.partition(text)
        return before

    def screen(self) -> str:
        """All that has been shown and not been looked at."""
        while select.select([self.terminal], [], [], 0)[0]:
            try:
                self.seen += os.read(self.terminal, 4096).decode(errors="replace")
            except OSError:  # no process has the terminal any more
                break
        return self.seen

    def types(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def resizes(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def leaves(self) -> int:
        """Wait for the end of the command; its exit status."""
        ended, status = eventually(
            lambda: (found := os.waitpid(self.pid, os.WNOHANG))[0] and found, what="the end", trouble=self.screen
        )
        assert ended == self.pid
        return os.waitstatus_to_exitcode(status)


def test_a_shell_at_a_terminal_has_job_control(small: Path) -> None:
    done("up", str(small))
    person = Person("exec", "vm1", "--", "bash", "--norc", "-i")
    person.resizes(33, 99)
    assert "job control" not in person.sees("bash-")
    person.types("stty size; echo $((6 * 7)) > /dev/tty\r")
    person.sees("\r\n33 99\r\n42\r\n")
    person.resizes(20, 50)
    person.types("until [ \"$(stty size)\" = '20 50' ]; do sleep 0.01; done; echo re''sized\r")
    person.sees("\r\nresized\r\n")
    person.types("sleep 4711\r")
    person.sees("sleep 4711")
    eventually(lambda: "sleep\n4711" in _commands(), what="it runs")
    person.types("\x03")
    person.sees("^C")
    person.types("sleep 4712\r")
    eventually(lambda: "sleep\n4712" in _commands(), what="it runs")
    person.types("\x1a")
    person.sees("Stopped")
    person.types("kill -9 %1\r")
    eventually(lambda: "sleep\n4712" not in _commands(), what="it is gone")
    person.types("exit 5\rexit 5\r")  # the first one only warns where bash has not noticed yet
    assert person.leaves() == 5
    assert "sleep\n471" not in _commands()


def _commands() -> str:
    """Command lines of all that runs here, words by lines."""
    found = []
    for pid in processes():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", "\n"))
    return "\n\n".join(found)


def test_the_terminal_is_given_back_as_it_was(small: Path) -> None:
    done("up", str(small))
    shell = Person("exec", "vm1", "--", "sh", "-c", "echo ready; exec sleep 4711")
    shell.sees("ready")
    master = shell.terminal
    eventually(lambda: not termios.tcgetattr(master)[3] & termios.ECHO, what="keys go through as they are")
    os.kill(shell.pid, signal.SIGTERM)
    assert shell.leaves() == 143
    assert termios.tcgetattr(master)[3] & termios.ECHO
    eventually(lambda: "sleep\n4711" not in _commands(), what="the command was hung up")
    last = Person("exec", "vm1", "--", "sh", "-c", "seq 20000; exit 4")
    last.sees("\r\n20000\r\n")
    assert last.leaves() == 4


def test_a_lab_that_ends_ends_the_commands_in_it(small: Path) -> None:
    done("up", str(small))
    with _sleeping() as running:
        done("down")
        assert running.wait(LONGEST) == 1
