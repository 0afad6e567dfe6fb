# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals arrive in poll and nowhere else; a folder wakes for every kind of change; systemd hears what it should.

Each body runs in an interpreter of its own: signal masks and handlers belong to a whole process.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = """
import os, select, signal, sys, time
from qubes_guestnet.system import dir_watch
from qubes_guestnet.system.signals import Signals
signals = Signals((signal.SIGHUP, signal.SIGTERM, signal.SIGIO))
me = os.getpid()
"""


def child(code: str, *words: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code, *words],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_signal_between_two_polls_is_kept_for_the_next() -> None:
    assert child("""
os.kill(me, signal.SIGHUP)
time.sleep(0.01)  # would be interrupted by a handler
assert signal.SIGHUP in signal.sigpending()
print(signals.poll(5) == (frozenset(), {signal.SIGHUP}), signals.poll(0) == (frozenset(), frozenset()))
""") == "True True\n"  # fmt: skip


def test_a_signal_while_it_waits_ends_the_wait() -> None:
    assert child("""
if os.fork() == 0:
    time.sleep(0.05)
    os.kill(me, signal.SIGTERM)
    os._exit(0)
print(signals.poll(None)[1] == {signal.SIGTERM})
""") == "True\n"  # fmt: skip


def test_many_signals_of_many_kinds() -> None:
    assert child("""
for _ in range(3):
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGIO):
        os.kill(me, number)
came = signals.poll(5)[1]
print(sorted(came) == sorted((signal.SIGHUP, signal.SIGTERM, signal.SIGIO)))
""") == "True\n"  # fmt: skip


def test_a_signal_during_a_request_does_not_interrupt_it() -> None:
    """Blocked, so that a read of QubesDB is never cut in two (#10643)."""
    assert child("""
reader, writer = os.pipe()
if os.fork() == 0:
    for _ in range(50):
        os.kill(me, signal.SIGHUP)
        time.sleep(0.001)
    os.write(writer, b"whole")
    os._exit(0)
print(os.read(reader, 100), signals.poll(5)[1] == {signal.SIGHUP})
""") == "b'whole' True\n"  # fmt: skip


def test_file_descriptors_come_and_go() -> None:
    assert child("""
reader, writer = os.pipe()
signals.register(reader)
print(signals.poll(0)[0] == frozenset())
os.write(writer, b"x")
print(signals.poll(5)[0] == {reader})
os.close(writer)
signals.unregister(reader)
print(signals.poll(0.01)[0] == frozenset())
""") == "True\nTrue\nTrue\n"  # fmt: skip


CHANGES = {
    "written": "open(path, 'a').write('x')",
    "made": "open(other, 'w').close()",
    "renamed over": "os.rename(other, path)",
    "removed": "os.remove(path)",
    "linked": "os.remove(path); signals.poll(5); os.symlink('x', path)",
    "mode": "os.chmod(path, 0o600)",
    "truncated": "os.truncate(path, 0)",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_the_folder_wakes(change: str, tmp_path: Path) -> None:
    text = f"""
path, other = sys.argv[1] + "/resolv.conf", sys.argv[1] + "/other"
open(path, "w").write("old")
if {change!r} == "renamed over":
    open(other, "w").close()
folder = dir_watch.Folder(sys.argv[1])
open(path).read()
print(signals.poll(0.05)[1] == frozenset())
{CHANGES[change]}
print(signals.poll(5)[1] == {{signal.SIGIO}})
folder.close()
open(path + "2", "w").close()
print(signals.poll(0.05)[1] == frozenset())
"""
    assert child(text, str(tmp_path)) == "True\nTrue\nTrue\n"


def test_each_change_wakes_again(tmp_path: Path) -> None:
    assert child("""
folder = dir_watch.Folder(sys.argv[1])
for number in range(3):
    open(f"{sys.argv[1]}/{number}", "w").close()
    print(signal.SIGIO in signals.poll(5)[1])
""", str(tmp_path)) == "True\nTrue\nTrue\n"  # fmt: skip


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert child("""
for path in (sys.argv[1] + "/none", "/dev/null"):
    try:
        dir_watch.Folder(path)
    except OSError as error:
        print(error.errno)
""", str(tmp_path)) == "2\n20\n"  # fmt: skip


def test_a_folder_that_cannot_be_watched_is_told_once_and_watched_later(tmp_path: Path) -> None:
    told = child("""
import resource
sys.stderr = sys.stdout
folders, limits = dir_watch.Folders(), resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # all of them are in use
for _ in range(3):
    folders.watch((sys.argv[1], sys.argv[1] + "/none"))
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
folders.watch((sys.argv[1],))
open(sys.argv[1] + "/new", "w").close()
print(signals.poll(5)[1] == {signal.SIGIO})
""", str(tmp_path))  # fmt: skip
    assert told == f"{tmp_path} is not watched, its changes are noticed late: Too many open files\nTrue\n"


# --- systemd -------------------------------------------------------------------------------------------------------

NOTIFY = "from qubes_guestnet.system import systemd; systemd.notify('READY=1', 'STATUS=well'); print('done')"


@pytest.mark.parametrize("abstract", [True, False])
def test_notify(abstract: bool, tmp_path: Path) -> None:
    name = f"qubes-guestnet-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name if abstract else name)
        listener.settimeout(10)
        assert child(NOTIFY, NOTIFY_SOCKET=("@" if abstract else "") + name) == "done\n"
        assert listener.recv(4096) == b"READY=1\nSTATUS=well"


def test_a_listener_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    """An unread socket takes some ten messages; a blocking send then waited for ever."""
    name = str(tmp_path / "n")
    many = "from qubes_guestnet.system import systemd\nsystemd.NOTIFY_SECONDS = 0.01\n"
    many += "for _ in range(30): systemd.notify('STATUS=well')\nprint('done')"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name)
        assert child(many, NOTIFY_SOCKET=name) == "done\n"


@pytest.mark.parametrize("path", ["", "/nowhere/at-all", "@no-listener", "x" * 200])
def test_nobody_to_notify(path: str) -> None:
    assert child(NOTIFY, NOTIFY_SOCKET=path) == "done\n"


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("", "", None), ("30000000", "", 15.0), ("200000", "me", 0.1), ("30000000", "1", None),
        ("0", "", None), ("rubbish", "", None), ("-5", "", None),
    ],
)  # fmt: skip
def test_watchdog(usec: str, pid: str, seconds: float | None) -> None:
    code = """
from qubes_guestnet.system import systemd
if os.environ.get("WATCHDOG_PID") == "me":
    os.environ["WATCHDOG_PID"] = str(me)
if os.environ.get("WATCHDOG_PID") == "":
    del os.environ["WATCHDOG_PID"]
print(systemd.watchdog_seconds())
"""
    assert child(code, WATCHDOG_USEC=usec, WATCHDOG_PID=pid) == f"{seconds}\n"
