# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the lab cannot be built, one sentence says so, and how that is changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.needs import needs
from tests.support.qubes.lab_session import COMMAND, LONGEST

VERBS = ("demo", "run S-000", "run S-000 --json", "up default")


def refused(*before: str, words: str) -> str:
    """The one line that a lab prints which cannot be built; nothing else is printed."""
    command = [*before, *COMMAND, *words.split()]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    assert (failed.returncode, failed.stdout) == (1, ""), failed
    (line,) = failed.stderr.splitlines()
    return line.removeprefix("qubes-guestnet lab: the lab cannot create its namespaces: ")


@pytest.fixture(autouse=True)
def _tools() -> None:
    needs("ip", "nsenter", "nft", "dnsmasq")


@pytest.mark.parametrize("words", VERBS)
def test_the_setting_that_forbids_namespaces_is_named(words: str) -> None:
    Path("/proc/sys/user/max_user_namespaces").write_text("0")  # that of the test's own namespace
    told = refused(words=words)
    assert told == "user.max_user_namespaces is 0; as root: sysctl -w user.max_user_namespaces=15000"


@pytest.mark.parametrize("kind", ["net", "mnt", "pid", "uts", "ipc"])
def test_the_setting_of_each_other_kind_of_namespace_is_named(kind: str) -> None:
    Path(f"/proc/sys/user/max_{kind}_namespaces").write_text("0")
    told = refused(words="demo")
    assert told == f"user.max_{kind}_namespaces is 0; as root: sysctl -w user.max_{kind}_namespaces=15000"


@pytest.mark.parametrize("words", VERBS)
def test_a_chroot_is_named(words: str, tmp_path: Path) -> None:
    subprocess.run(["mount", "--rbind", "/", str(tmp_path)], check=True)
    told = refused("chroot", str(tmp_path), words=words)
    assert told.startswith("the kernel refuses them in a chroot; run it outside, or enter it with systemd-nspawn"), told


def test_a_missing_proc_is_named(tmp_path: Path) -> None:
    subprocess.run(["mount", "--rbind", "/", str(tmp_path)], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "nothing", str(tmp_path / "proc")], check=True)
    assert refused("chroot", str(tmp_path), words="demo").startswith("/proc is not mounted; mount -t proc proc /proc")


@pytest.mark.parametrize("words", VERBS)
def test_every_missing_program_is_named_at_once_before_that(words: str) -> None:
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    script = (
        "import sys; from qubes_guestnet.lab import tools; "
        "tools.PATH = '/nowhere'; tools.unpacked_programs = lambda: ''; "
        "from qubes_guestnet.cli.main import main; sys.argv[0] = 'x'; sys.exit(main())"
    )
    command = [sys.executable, "-c", script, "lab", *words.split()]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    assert failed.stderr == (
        "qubes-guestnet lab: the lab needs dnsmasq, getent, ip, nft, nsenter, ping; "
        "apt-get install dnsmasq-base iproute2 iputils-ping libc-bin nftables util-linux\n"
    )
    assert (failed.returncode, failed.stdout) == (1, "")
