# SPDX-License-Identifier: GPL-2.0-or-later
"""What lies in /run/qubes-guestnet and /run/qubes-service: the record and its lock, the agent's standing, flags."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qubes_guestnet.core.owned_state import Interface, Record
from qubes_guestnet.core.uplink.desired import Flags, Style
from qubes_guestnet.core.values import Owned
from qubes_guestnet.errors import ConfigError, FileError
from qubes_guestnet.system import agent_status, guestnet_toml, owned_state, service_flags
from qubes_guestnet.system.owned_state import Ledger
from tests.support.faults.refuse import refuse

MAC = "00:16:3e:5e:6c:00"
TREE = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from qubes_guestnet.system.owned_state import Ledger
with Ledger(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""
ADD = """
import ipaddress, sys
from qubes_guestnet.core.owned_state import Interface
from qubes_guestnet.core.values import Link, Owned
from qubes_guestnet.system.owned_state import Ledger
for step in range(20):
    with Ledger(sys.argv[1]) as ledger:
        entry = ledger.record.interface(Link(2, "eth0", "00:16:3e:5e:6c:00"))
        made = ipaddress.ip_interface(f"10.{sys.argv[2]}.0.{step}/32")
        owned = Owned(entry.owned.addresses | {made})
        ledger.save(ledger.record.with_interface(entry._replace(owned=owned)))
"""


def python(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=TREE, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "run")


@pytest.fixture
def holder(run: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the lock."""
    process = python(HOLD, run)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_it_is_made_kept_and_read_again(run: str) -> None:
    record = Record((Interface(2, MAC, Owned(frozenset({ipaddress.ip_interface("10.137.0.5/32")}))),))
    with Ledger(run) as ledger:
        assert ledger.record == Record()
        ledger.save(record)
        assert ledger.record == record
    path = Path(run, "owned")
    assert (path.stat().st_mode & 0o777, Path(run, "lock").stat().st_mode & 0o777) == (0o644, 0o600)
    stamp = path.stat()
    with Ledger(run) as ledger:
        assert ledger.record == record
        ledger.save(record)
    assert path.stat() == stamp


def test_who_only_looks_makes_nothing_and_waits_for_nobody(run: str, holder: subprocess.Popen[bytes]) -> None:
    assert holder.poll() is None
    with Ledger(run, reading=True) as ledger:
        assert ledger.record == Record()
    with Ledger(f"{run}/not/there", reading=True) as ledger:
        assert ledger.record == Record()
    assert not Path(run, "not").exists()


@pytest.mark.behaviour("B2")
def test_several_processes_one_after_the_other(run: str) -> None:
    processes = [python(ADD, run, number) for number in range(4)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    for process in processes:
        process.communicate()
    with Ledger(run, reading=True) as ledger:
        assert len(ledger.record.interfaces[0].owned.addresses) == 80


def test_a_stopped_holder_is_waited_for_so_long_and_no_longer(
    run: str, holder: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owned_state, "LOCK_SECONDS", 0.05)
    holder.send_signal(signal.SIGSTOP)
    before = descriptors()
    with pytest.raises(FileError, match="another qubes-guestnet process holds the lock") as caught, Ledger(run):
        pass
    assert caught.value.retryable
    assert descriptors() == before


def test_a_killed_holder_leaves_no_lock(run: str, holder: subprocess.Popen[bytes]) -> None:
    holder.kill()
    holder.wait()
    with Ledger(run) as ledger:
        assert ledger.record == Record()


def test_a_lock_that_comes_free_is_taken(run: str, holder: subprocess.Popen[bytes]) -> None:
    assert holder.stdin is not None
    holder.stdin.close()
    with Ledger(run):
        pass
    holder.stdin = None


def test_a_file_system_without_locks_is_an_error_at_once(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    before = descriptors()
    with pytest.raises(FileError, match="No locks available"), Ledger(run):
        pass
    assert descriptors() == before


@pytest.mark.parametrize("name", ["lock", "owned"])
def test_a_link_that_somebody_laid_is_not_followed_to_write(run: str, tmp_path: Path, name: str) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    os.mkdir(run)
    Path(run, name).symlink_to(target)
    try:
        with Ledger(run) as ledger:
            ledger.save(Record(detached=frozenset({MAC})))
    except FileError:
        assert name == "lock"
    assert target.read_bytes() == b"precious"


def test_a_record_that_cannot_be_read_is_an_error_and_the_lock_is_free(run: str) -> None:
    os.makedirs(f"{run}/owned")
    before = descriptors()
    for _ in range(2):
        with pytest.raises(FileError, match="not a regular file"), Ledger(run):
            pass
    assert descriptors() == before


def test_a_failed_save_leaves_the_record_in_memory(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = Record(detached=frozenset({MAC}))
    with Ledger(run) as ledger:
        with monkeypatch.context() as full:
            refuse(full, "rename", errno.ENOSPC)
            with pytest.raises(FileError):
                ledger.save(changed)
        assert ledger.record == changed
        assert not Path(run, "owned").exists()


def test_the_agent_stands_as_long_as_its_process(run: str) -> None:
    assert agent_status.read(run) == (False, "", "")
    agent_status.publish(run, "it hurts")
    found = agent_status.read(run)
    assert (found.running, found.error) == (True, "it hurts")
    assert found.since.endswith("Z")
    path = Path(run, "status")
    agent, *rest = path.read_text().splitlines()
    word, pid, start = agent.split()
    path.write_text("\n".join([f"{word} {pid} {int(start) + 1}", *rest]))
    assert agent_status.read(run) == (False, found.since, "")


@pytest.mark.parametrize(
    "text", ["", "agent\n", "agent x y\n", "agent 0 1\n", "agent 4194305 1\n", "\xff\n", "agent \u00b2 1\n"]
)
def test_a_damaged_standing_is_nobodys(run: str, text: str) -> None:
    os.mkdir(run)
    Path(run, "status").write_text(text)
    assert agent_status.read(run).running is False


def test_a_standing_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="run as root"):
        agent_status.publish(str(tmp_path / "file" / "run"), "")


def test_flags_are_files_whatever_is_in_them(tmp_path: Path) -> None:
    assert service_flags.flags(str(tmp_path / "none")) == Flags()
    (tmp_path / "disable-default-route").touch()
    (tmp_path / "guestnet-gateway-route").write_text("0")
    assert service_flags.flags(str(tmp_path)) == Flags(disable_default_route=True, gateway_route=True)
    (tmp_path / "disable-dns-server").touch()
    assert service_flags.flags(str(tmp_path)).disable_dns_server


STYLES = {
    "": None,
    "[uplink]\n": None,
    '[uplink]\ndefault-route = "device"\n': Style.DEVICE,
    '[uplink]\ndefault-route = "gateway"\n': Style.GATEWAY,
}


@pytest.mark.parametrize(("text", "style"), STYLES.items())
def test_the_style_of_the_file(tmp_path: Path, text: str, style: Style | None) -> None:
    path = tmp_path / "guestnet.toml"
    assert guestnet_toml.configured_style(str(path)) is None
    path.write_text(text)
    assert guestnet_toml.configured_style(str(path)) is style


@pytest.mark.parametrize(
    ("data", "right"),
    [
        (b"[uplink\n", "fix it; until then all its settings are ignored"),
        (b"\xff", "fix it; until then all its settings are ignored"),
        (b"uplink = 1\n", r"write \[uplink\] on a line of its own"),
        (b"[uplink]\nother = 1\n", "the keys are default-route"),
        (b"[uplnk]\n", "the tables are dns, firewall, provider, uplink"),
        (b"[uplink]\ndefault-route = 7\n", "default-route is"),
        (b"[uplink]\ndefault-route = []\n", "default-route is"),
    ],
)
def test_a_bad_file_is_an_error_that_says_what_would_be_right(tmp_path: Path, data: bytes, right: str) -> None:
    path = tmp_path / "guestnet.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=right):
        guestnet_toml.configured_style(str(path))
