# SPDX-License-Identifier: GPL-2.0-or-later
"""The interactive lab in tests: the real command line, a small tree, and a check that nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qubes_guestnet.lab import session_client
from qubes_guestnet.lab.place import Place, base
from tests.support.eventually import eventually
from tests.support.needs import needs

COMMAND = (sys.executable, "-m", "qubes_guestnet", "lab")
SMALL = """
[world.net]
ipv6 = true
[qube.net]
provides_network = true
[qube.other]
provides_network = true
[qube.vm1]
netvm = "net"
"""
LONGEST = 60.0


def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder for the labs; whatever a test left up is ended, and has to be gone without a trace."""
    needs("ip", "nsenter", "nft", "dnsmasq")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    before, mounts = processes(), Path("/proc/self/mountinfo").read_text()
    yield
    for folder in base().iterdir() if base().exists() else ():
        lab("down", "--name", folder.name)
    assert list(tmp_path.glob("qubes-guestnet-lab*")) == []
    # The kernel tells the parent of the last process first, and takes away the rest just then.
    eventually(lambda: processes() <= before, 5.0, "every process has ended", lambda: str(processes() - before))
    assert Path("/proc/self/mountinfo").read_text() == mounts


def processes() -> set[int]:
    """Return all processes that run here, without zombies."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if stat.read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.add(int(stat.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def lab(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """`qubes-guestnet lab WORDS`."""
    arguments = {"stdin": subprocess.DEVNULL, **more}
    return subprocess.run([*COMMAND, *words], text=True, capture_output=True, timeout=LONGEST, check=False, **arguments)


def done(*words: str, **more: Any) -> str:
    """The same, where it has to succeed; what it printed."""
    result = lab(*words, **more)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def refused(status: int, *words: str) -> str:
    """The same, where it has to fail with one line on standard error; that line."""
    result = lab(*words)
    assert (result.returncode, result.stdout) == (status, ""), result.stderr
    (line,) = result.stderr.splitlines()
    return line.removeprefix("qubes-guestnet lab: ")


def rows(*words: str) -> dict[str, dict[str, Any]]:
    """The qubes of `lab status --json`, by name."""
    return {row["name"]: row for row in json.loads(done("status", "--json", *words))["qubes"]}


def small(tmp_path: Path) -> Path:
    """A tree of two providers with a world each, of which one has IPv6, and a qube."""
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    return file


def background() -> int:
    """The process that listens at the lab's socket."""
    with Place().connect() as connection:
        return session_client._process_of(connection)
