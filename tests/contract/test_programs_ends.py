# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of a program is the end of its process, and not of its output (behaviour B119)."""

from __future__ import annotations

import os
import resource
import select
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qubes_guestnet.core.nft import tables
from qubes_guestnet.errors import KernelError
from qubes_guestnet.system import files, program_tree, programs, systemd
from qubes_guestnet.system.nft import program as nft
from qubes_guestnet.system.programs import ProgramError, run
from tests.contract.test_programs import SH, children, script
from tests.support.eventually import eventually
from tests.support.faults.signal_state import LISTED, UNALTERED, altered

pytestmark = pytest.mark.behaviour("B119")

# Far above what a loaded machine takes for `sh`, far below what the programs here sleep.
SOON = 20.0


def reaped() -> bool:
    """Whether no child is left, once another one was started."""
    run((SH, "-c", ":"), 10)
    return children() == ""


def lives(pid: str) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(
    "text",
    [
        "exec >&- 2>&-; sleep 600",
        "exec >/dev/null 2>&1; sleep 600",
        "trap '' TERM; exec <&- >&- 2>&-; sleep 600",
        "sleep 600 & exec >&- 2>&-; wait",
    ],
)
@pytest.mark.parametrize("given", [b"", b"x" * 1_000_000])
def test_one_that_closes_its_output_has_its_limit(text: str, given: bytes) -> None:
    begin = time.monotonic()
    with pytest.raises(ProgramError, match=r"still running after 0.3 s"):
        run((SH, "-c", text), 0.3, input=given)
    assert time.monotonic() - begin < SOON
    assert children() == ""


@pytest.mark.parametrize("leaving", ["sleep 600 &", "setsid sleep 600 &", "sleep 600 >/dev/null 2>&1 &"])
@pytest.mark.parametrize("status", [0, 3])
def test_what_is_left_behind_lives_and_is_not_waited_for(tmp_path: Path, leaving: str, status: int) -> None:
    begin = time.monotonic()
    note = tmp_path / "pid"
    done = run((SH, "-c", f"{leaving} echo $! >{note}; echo said; exit {status}"), 300)
    assert time.monotonic() - begin < SOON
    assert done == (status, "said")
    daemon = note.read_text().strip()
    assert lives(daemon)
    os.kill(int(daemon), signal.SIGKILL)


ESCAPING = {
    "a child in a session of its own": f"setsid {SH} -c 'echo $$ >>NOTE; exec sleep 600' & wait",
    "one whose parent has ended": f"({SH} -c 'echo $$ >>NOTE; exec setsid sleep 600' &); sleep 600",
    "one that clears its environment": f"env -i setsid {SH} -c 'echo $$ >>NOTE; exec sleep 600' & wait",
    "a family": f"setsid {SH} -c 'for n in 1 2 3 4 5; do "
    f'setsid {SH} -c "echo \\$\\$ >>NOTE; exec sleep 600" & done; wait\'',
    "one that starts others all the time": f"setsid {SH} -c 'echo $$ >>NOTE; while :; do setsid sleep 0.01 & done'",
    "the program in another group": f"exec {sys.executable} -c 'import os, time; "
    'os.setpgid(0, os.getpgid(os.getppid())); print(os.getpid(), file=open("NOTE", "w")); time.sleep(600)\'',
}


@pytest.mark.parametrize("text", ESCAPING.values(), ids=ESCAPING.keys())
def test_one_that_is_too_slow_is_killed_with_all_that_it_started(tmp_path: Path, text: str) -> None:
    note = tmp_path / "pids"
    started = programs.start((SH, "-c", text.replace("NOTE", str(note))))
    wanted = 5 if "for n in" in text else 1
    eventually(lambda: note.exists() and len(note.read_text().split()) >= wanted, SOON)
    with pytest.raises(ProgramError, match="still running after"):
        programs.finish(started, 0.1)
    pids = note.read_text().split()
    assert len(pids) == wanted
    eventually(lambda: not any(map(lives, pids)), SOON)
    if "while" in text:
        mark = f"QUBES_GUESTNET_RUN={started.mark}\0".encode()
        every = Path("/proc").glob  # what has got SIGKILL takes its moment to end
        eventually(lambda: not [path for path in every("[0-9]*/environ") if mark in environment(path)], SOON)


def environment(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_what_others_run_is_left_alone(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    run((SH, "-c", f"setsid sleep 600 & echo $! >{note}"), 60)  # it ended in time, and may leave that behind
    other = subprocess.Popen([SH, "-c", "exec sleep 600"], start_new_session=True)
    with pytest.raises(ProgramError):
        run((SH, "-c", "setsid sleep 600 & wait"), 0.2)
    assert lives(note.read_text().strip())
    assert other.poll() is None
    os.kill(int(note.read_text()), signal.SIGKILL)
    other.kill()
    other.wait()


def test_all_programs_of_a_round_have_a_limit_together() -> None:
    begin = time.monotonic()
    programs.limit(1.0)
    try:
        for _ in range(3):
            with pytest.raises(ProgramError):
                run((SH, "-c", "exec sleep 600"), 0.6)
        with pytest.raises(ProgramError, match="because other programs used up the time of this pass"):
            run((SH, "-c", "exec sleep 600"), 0.6)
        assert time.monotonic() - begin < SOON
        programs.limit(60.0)
        assert run((SH, "-c", "echo again"), SOON).output == "again"
    finally:
        programs.limit(None)


LEAVING = (
    "import sys; from qubes_guestnet.system import programs; print(programs.run(tuple(sys.argv[1:]), 60, daemons=True))"
)


def test_a_daemon_that_goes_on_writing_is_not_ended_by_that(tmp_path: Path) -> None:
    """By SIGPIPE, as soon as the last reader of its output is gone: here the process that ran the command."""
    note, count = tmp_path / "pid", tmp_path / "count"
    count.write_text("0")
    counts = f"echo $n >{count}.new; mv {count}.new {count}"
    text = f"(n=0; while :; do n=$((n + 1)); echo $n; {counts}; done) & echo $! >{note}"
    done = subprocess.run(
        [sys.executable, "-c", LEAVING, SH, "-c", text], capture_output=True, text=True, timeout=60, check=True
    )
    assert "status=0" in done.stdout
    before = int(count.read_text())
    eventually(lambda: int(count.read_text()) > before + 50)
    os.kill(int(note.read_text()), signal.SIGKILL)


def test_one_that_floods_and_leaves_a_flood(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    done = run((SH, "-c", f"yes & echo $! >{note}; sleep 0.2"), 300)
    assert (done.status, len(done.output)) == (0, programs.LONGEST_OUTPUT - 1)
    eventually(lambda: not lives(note.read_text().strip()))  # its output ended with the command


def test_a_script_without_its_first_line_is_run_by_the_shell(tmp_path: Path) -> None:
    path = tmp_path / "hook"
    path.write_text('echo "$0 $1 $2"; exit 5\n')
    path.chmod(0o755)
    assert run((str(path), "a b", "c"), 10) == (5, f"{path} a b c")
    path.write_text("")
    assert run((str(path),), 10) == (0, "")


def test_a_program_of_another_machine_is_no_script(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(b"\x7fELF\0\0\0\0 echo run >&2\n")
    path.chmod(0o755)
    with pytest.raises(ProgramError, match=r"program: Exec format error"):
        run((str(path),), 10)


def test_of_several_all_have_the_same_time() -> None:
    begin = time.monotonic()
    with pytest.raises(ProgramError):
        programs.run_together([(SH, "-c", "exec sleep 600")] * 4, 0.5)
    assert time.monotonic() - begin < SOON
    assert children() == ""


@pytest.mark.parametrize("text", ["exec <&- >&- 2>&-; exec sleep 600", "exec sleep 600"])
def test_an_nft_that_stays_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    script(tmp_path / "nft", text)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nft, "_SECONDS", 0.5)
    begin = time.monotonic()
    for call in (
        lambda: nft.run("flush ruleset\n" * 1000),
        lambda: nft.tables(tables.IP_FAMILIES),
        lambda: nft.named_set("ip", "a", "b"),
        nft.chains,
    ):
        with pytest.raises(nft.NftError, match=r"still running after"):
            call()
    assert time.monotonic() - begin < SOON
    assert children() == ""


def test_no_descriptor_is_left_where_none_can_be_opened() -> None:
    """As an error that the agent knows, and not an OSError that ends it."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = os.listdir("/proc/self/fd")
    lowest = os.dup(0)
    os.close(lowest)
    failures: list[str] = []
    for room in range(16):  # some above the lowest free one may be taken
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + room, limits[1]))
        try:
            done = run((SH, "-c", ":"), 10, input=b"x")
            failures.append(str(done.status))
        except ProgramError as error:
            failures.append(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert os.listdir("/proc/self/fd") == before
    assert set(failures) == {"0", f"{SH}: Too many open files"}
    eventually(reaped)


IGNORING = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD, signal.SIGUSR1, signal.SIGALRM):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""
STARTING = f"""
from qubes_guestnet.system import programs
done = programs.run(("/bin/sh", "-c", {f"{shlex.join(LISTED)}; exit 7"!r}), 60)
print(done.status, done.output)
"""


def test_a_program_ignores_no_signal_that_its_starter_ignores() -> None:
    """A hook that is started beneath `nohup`, or in the background of a shell, could not be interrupted."""
    words = [sys.executable, "-c", IGNORING, STARTING]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    status, lines = done.stdout.split(" ", 1)
    assert (status, altered(lines.splitlines())) == ("7", UNALTERED)


@pytest.mark.behaviour("B81")
@pytest.mark.parametrize("first", ["#!/bin/sh\n", ""])
def test_a_users_script_ignores_no_signal_that_its_starter_ignores(tmp_path: Path, first: str) -> None:
    """With SIGCHLD ignored the kernel kept no exit status of it: each script failed for "No child processes"."""
    path = tmp_path / "script"
    path.write_text(f"{first}{shlex.join(LISTED)}; exit 7\n")
    path.chmod(0o755)
    starting = f"from qubes_guestnet.system import user_scripts\nprint(user_scripts.run({str(path)!r}))"
    words = [sys.executable, "-c", IGNORING, starting]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    *lines, reason = done.stdout.splitlines()
    assert (reason, altered(lines)) == ("exit status 7", UNALTERED)


def test_a_process_that_cannot_be_ended_at_once_is_reaped_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninterruptible sleep (a device that does not answer): here the signal does not come."""
    monkeypatch.setattr(programs, "_kill", lambda _pid: None)
    begin = time.monotonic()
    with pytest.raises(ProgramError, match=r"still running after"):
        run((SH, "-c", "exec sleep 1"), 0.05)
    assert time.monotonic() - begin < SOON
    monkeypatch.undo()
    eventually(reaped)


@pytest.mark.behaviour("B146")
def test_one_that_is_too_slow_is_killed_where_proc_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was stopped, to find what it started, and stayed so for ever with the lock that it held."""
    monkeypatch.setattr(program_tree, "_PROC", "/nonexistent")
    with pytest.raises(KernelError, match=r"^find what process \d+ has started, in /nonexistent: No such file"):
        run((SH, "-c", "exec sleep 600"), 0.05)
    assert children() == ""
    assert reaped()


@pytest.mark.behaviour("B146")
def test_a_log_line_that_its_follower_refuses_is_written_and_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Logging is what reports errors: one that it raised itself ended the agent."""
    taken: list[str] = []
    works = False

    def follower(_level: int, _kind: str, text: str) -> None:
        if not works:
            raise OSError("no memory")
        taken.append(text)

    systemd.follow(follower)
    try:
        for text in ("first", "second"):
            systemd.log(systemd.INFO, text)
        works = True
        systemd.log(systemd.INFO, "third")
        works = False
        systemd.log(systemd.INFO, "fourth")
    finally:
        systemd.follow(None)
    lost = "`monitor` has lost lines: no memory"
    assert [line.rpartition(">")[2] for line in capsys.readouterr().err.splitlines()] == [
        lost, "first", "second", "third", lost, "fourth",
    ]  # fmt: skip
    assert taken == ["third"]


def test_a_log_that_is_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    with pytest.raises(OSError, match="No such device"):
        files.append(str(tmp_path / "log"), b"x")
    files.append(str(tmp_path / "new"), b"one\n")
    files.append(str(tmp_path / "new"), b"two\n")
    assert (tmp_path / "new").read_bytes() == b"one\ntwo\n"
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) & 0o133 == 0


LOGGING = """
import sys, time
from qubes_guestnet.system.systemd import INFO, log
begin = time.monotonic()
for number in range(300):
    log(INFO, f"{number} " + "x" * 5000)
print(f"{time.monotonic() - begin:.3f}", flush=True)
sys.stdin.readline()
log(INFO, "read again")
"""


def test_standard_error_that_is_not_read_holds_nothing_up() -> None:
    """The journal was stopped: the agent waited in write(2)."""
    words = [sys.executable, "-c", LOGGING]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert float(process.stdout.readline()) < 10
        fd = process.stderr.fileno()
        while select.select([fd], [], [], 0)[0]:
            os.read(fd, 1 << 20)
        process.stdin.write("\n")
        process.stdin.flush()
        assert "read again (2" in process.stderr.read()
