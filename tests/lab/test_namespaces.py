# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's own ground: separate namespaces, nothing left behind, and probes that tell the truth."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qubes_guestnet.lab import probes
from qubes_guestnet.lab.namespaces import LabError, isolate, work_folder
from qubes_guestnet.lab.qube import Qube
from tests.support.eventually import eventually
from tests.support.faults.signal_state import LISTED, UNALTERED, altered
from tests.support.needs import needs


@pytest.fixture(autouse=True)
def _tools() -> None:
    needs("ip", "nsenter", "nft", "dnsmasq")


def test_the_test_itself_is_process_1_and_root() -> None:
    assert os.getpid() == 1
    assert os.getuid() == 0
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    assert os.listdir(work_folder()) == []


def test_a_qube_has_everything_of_its_own() -> None:
    one, other = Qube("one"), Qube("other")
    one.write("/etc/resolv.conf", "nameserver 10.139.1.1\n")
    one.write("/rw/config/x", "y")
    one.wire("ip link add eth0 type veth peer name vif1.0")
    assert one.run("hostname").stdout == "one\n"
    assert one.run("cat", "/etc/resolv.conf", "/rw/config/x").stdout == "nameserver 10.139.1.1\ny"
    assert sorted(os.listdir(one.path("/sys/class/net"))) == ["eth0", "lo", "vif1.0"]
    assert other.read("/etc/resolv.conf") == ""
    assert [link["ifname"] for link in other.ip("link")] == ["lo"]
    assert one.run("sh", "-c", "ls /proc | grep -c '^[0-9]'").stdout.strip() in ("4", "3")


@pytest.mark.parametrize("path", ["/usr/x", "/etc/ssl/x", "/var/x", "/root/x", "/dev/x"])
def test_a_qube_cannot_write_to_the_host(path: str) -> None:
    done = Qube("one").run("touch", path, check=False)
    # Where an ordinary user may not even enter, as in /root, that is said first. The lab of one maps a single user.
    ordinary = Path("/proc/self/uid_map").read_text().split()[2] == "1"
    assert "Read-only" in done.stderr or (ordinary and "Permission denied" in done.stderr)


def test_a_paused_qube_does_nothing_until_it_is_unpaused() -> None:
    qube = Qube("one")
    counter = qube.spawn("counter", "sh", "-c", "while :; do echo x; sleep 0.01; done")
    eventually(counter.output)
    qube.pause()
    said = counter.output()
    states = {Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in qube.processes()}
    assert states <= {"T", "D", "Z"}, "stopped, asleep in vfork() until a stopped child goes on, or ended before"
    assert counter.output() == said
    qube.unpause()
    eventually(lambda: len(counter.output()) > len(said))
    assert counter.kill() == -signal.SIGKILL


def test_a_killed_qube_takes_its_processes_and_cables_along() -> None:
    one, other = Qube("one"), Qube("other")
    service = one.spawn("sleeper", "sleep", "1000")
    pid = service.pid
    one.wire(f"ip link add eth0 type veth peer name vif1.0 netns {other.pid}")
    one.kill()
    assert not Path(f"/proc/{pid}").exists()
    eventually(lambda: [link["ifname"] for link in other.ip("link")] == ["lo"])


def test_a_service_that_fails_says_why() -> None:
    service = Qube("one").spawn("broken", "sh", "-c", "echo the reason; exit 3")
    assert service.wait() == 3
    with pytest.raises(LabError, match="the reason"):
        _ = service.pid


def test_ping_tells_an_answer_from_silence_and_from_no_route() -> None:
    qube = Qube("one")
    assert probes.ping(qube, "127.0.0.1") is not None
    assert probes.ping(qube, "::1") is not None
    assert probes.ping(qube, "192.0.2.1", timeout=0.1) is None


# A lab inside the test's namespaces, so that what it left behind could be seen.
_LAB = """
import sys, time
from qubes_guestnet.lab.namespaces import isolate
from qubes_guestnet.lab.qube import Qube
def lab():
    Qube("one").spawn("sleeper", "sleep", "4242")
    print("up", flush=True)
    time.sleep(1000)
sys.exit(isolate(lab))
"""


def _others() -> set[str]:
    return {folder.name for folder in Path("/proc").glob("[0-9]*")} - {"1"}


# As a shell starts a job in the background, or nohup, or a careless program.
_IGNORING = """
import signal
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
"""
_SHOWING = f"""{_IGNORING}
import subprocess, sys
from qubes_guestnet.lab.namespaces import isolate
def lab():
    subprocess.run({LISTED!r}, check=True)
    print("up", flush=True)
    return len(sys.stdin.read())
sys.exit(isolate(lab))
"""


def test_programs_begin_with_no_signal_ignored_or_blocked_and_the_lab_goes_on_ignoring() -> None:
    lab = subprocess.Popen([sys.executable, "-c", _SHOWING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert lab.stdout is not None
    assert altered(lab.stdout.readline() for _ in range(2)) == UNALTERED
    assert lab.stdout.readline() == "up\n"
    for number in (signal.SIGINT, signal.SIGHUP):
        for pid in _others():
            os.kill(int(pid), number)
    assert lab.communicate("xyz", timeout=30)[0] == ""
    assert lab.returncode == 3


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_nothing_is_left_behind(number: int, status: int) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    lab = subprocess.Popen([sys.executable, "-c", _LAB], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert lab.stdout is not None
    assert lab.stdout.readline() == b"up\n"
    assert len(_others()) > 4
    lab.send_signal(number)
    lab.communicate(timeout=10)
    assert lab.returncode == status
    # What lost its parent became our child, as we are process 1.
    eventually(
        lambda: _reaped() and not _others(), what="all processes of the lab are gone", trouble=lambda: str(_others())
    )
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert os.listdir(work_folder()) == []


def _reaped() -> bool:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    return True


def test_a_lab_in_a_lab_gives_its_exit_status() -> None:
    assert isolate(lambda: 7) == 7
