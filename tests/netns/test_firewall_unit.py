# SPDX-License-Identifier: GPL-2.0-or-later
"""What qubes-firewall.service calls, beside a running agent and with packets. With systemd: tests/system."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import pytest

from tests.support.eventually import eventually, never
from tests.support.qubes.firewall import MARK, Enforcing
from tests.support.qubes.provider import ENTRIES6, Client

ETC, RW = "/etc/qubes/qubes-firewall.d", "/rw/config/qubes-firewall.d"
SCRIPT = "/rw/config/qubes-firewall-user-script"
NOTE = "#!/bin/sh\necho $0 >>/run/noted\ncat /proc/sys/net/ipv4/ip_forward >>/run/forwarded\n"
UDP9 = "action=accept proto=udp dstports=9-9"


class Unit(Enforcing):
    """A provider whose firewall is not started."""

    def __init__(self) -> None:
        super().__init__(ENTRIES6, agent=False)
        self.qube.run("rm", MARK)

    def script(self, path: str, text: str, mode: str = "755") -> None:
        """Put a user's script."""
        self.qube.write(path, text)
        self.qube.run("chmod", mode, path)

    def unit(self, action: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """What the unit calls."""
        return self.qube.guestnet("firewall-unit", action, check=check, timeout=90)

    def noted(self, path: str = "/run/noted") -> list[str]:
        """The words of a file there; none while it is missing."""
        return self.qube.run("sh", "-c", f"cat {path} 2>/dev/null || :").stdout.split()

    def begun(self) -> Client:
        """Boot, with one qube that may send datagrams to port 9 alone."""
        self.qube.guestnet("forwarding", "hold")  # qubes-guestnet-hold.service
        self.qube.start_agent()
        behind = self.attach()
        self.commit(behind.ip, UDP9)
        self.unit("start")
        assert self.passes(behind), self.trouble()
        return behind

    def rules(self) -> str:
        """The tables."""
        return "".join(self.oracle.run("nft", "-s", "list", "table", f, "qubes-firewall").stdout for f in ("ip", "ip6"))

    @contextmanager
    def nothing_else_passes(self, behind: Client) -> Iterator[None]:
        """No datagram to port 10 meanwhile, and every one to port 9."""
        ended, lost, passed = False, 0, 0

        def send() -> None:
            nonlocal lost, passed
            while not ended:
                lost += not self.passes(behind)
                passed += self.passes(behind, 10)

        sender = Thread(target=send)
        sender.start()
        try:
            yield
        finally:
            ended = True
            sender.join()
        assert (lost, passed) == (0, 0), self.trouble()


@pytest.mark.behaviour("B65")
@pytest.mark.behaviour("B81")
def test_scripts_run_once_in_their_order_after_the_tables_and_before_anything_is_forwarded() -> None:
    unit = Unit()
    for path in (SCRIPT, f"{RW}/20-b", f"{RW}/10-a", f"{ETC}/90-first"):
        unit.script(path, NOTE + "nft add rule ip qubes-firewall forward ip daddr 192.0.2.1 drop\n")
    unit.script(f"{RW}/15-off", NOTE, "644")
    unit.script(f"{RW}/16-plain-text", NOTE.partition("\n")[2])
    behind = unit.begun()
    order = [f"{ETC}/90-first", f"{RW}/10-a", f"{RW}/16-plain-text", f"{RW}/20-b", SCRIPT]
    assert unit.noted() == order
    assert set(unit.noted("/run/forwarded")) == {"0"}
    assert unit.rules().count("192.0.2.1") == 4
    assert not unit.passes(behind, 10)
    unit.unit("reload")
    assert unit.noted() == order


@pytest.mark.behaviour("B81")
def test_scripts_of_rw_do_not_run_with_custom_persist() -> None:
    unit = Unit()
    unit.qube.set_flag("custom-persist")
    for path in (SCRIPT, f"{RW}/a", f"{ETC}/b"):
        unit.script(path, NOTE)
    unit.begun()
    assert unit.noted() == [f"{ETC}/b"]


@pytest.mark.behaviour("B81")
@pytest.mark.behaviour("B87")
def test_a_script_that_fails_is_told_and_stops_nothing() -> None:
    """Here without a shell, a bus, a desktop: what a script calls in vain is its own affair."""
    unit = Unit()
    unit.script(f"{RW}/1", "#!/bin/sh\nnotify-send hello || exit 3\n")
    unit.script(f"{RW}/2", "#!/nowhere\n")
    unit.script(f"{RW}/3", "#!/bin/sh\nkill -KILL $$\n")
    unit.script(SCRIPT, NOTE)
    unit.begun()
    assert unit.noted() == [SCRIPT]
    told = unit.qube.guestnet("check", check=False).stdout
    for words in ("1 failed (exit status 3)", "2 failed (No such file or directory)", "3 failed (ended by signal 9)"):
        assert f"warning: firewall-script-failed: the firewall script {RW}/{words}" in told
    unit.script(f"{RW}/1", "#!/bin/sh\n")
    unit.script(f"{RW}/2", "#!/bin/sh\n")
    unit.script(f"{RW}/3", "#!/bin/sh\n")
    unit.unit("start")
    assert "firewall-script-failed" not in unit.qube.guestnet("check", check=False).stdout


@pytest.mark.behaviour("B65")
def test_a_script_that_hangs_keeps_forwarding_closed_and_is_named() -> None:
    unit = Unit()
    unit.script(SCRIPT, "#!/bin/sh\nwhile ! [ -e /run/go ]; do sleep 0.05; done\n")
    unit.qube.guestnet("forwarding", "hold")
    unit.qube.start_agent()
    behind = unit.attach()
    unit.commit(behind.ip, UDP9)
    starting = Thread(target=unit.unit, args=("start",))
    starting.start()
    try:
        eventually(lambda: SCRIPT in unit.qube.guestnet("status", check=False).stdout, trouble=unit.trouble)
        # The agent goes on: it has the list in force by now.
        eventually(lambda: unit.handled(behind.ip) > 0, trouble=unit.trouble)
        never(unit.forwards, 0.5)
        assert "runs the script" in unit.qube.guestnet("check", check=False).stdout
    finally:
        unit.qube.write("/run/go", "")
        starting.join()
    assert unit.passes(behind), unit.trouble()


@pytest.mark.behaviour("B65")
@pytest.mark.behaviour("B155")
def test_a_stop_closes_all_and_a_start_begins_without_what_was_there() -> None:
    unit = Unit()
    unit.script(SCRIPT, "#!/bin/sh\nnft add rule ip qubes-firewall forward ip daddr 192.0.2.1 drop\n")
    behind = unit.begun()
    unit.nft("add rule ip qubes-firewall forward ip daddr 192.0.2.2 drop")
    unit.unit("stop")
    assert not unit.forwards()
    assert not unit.qube.path(MARK).exists()
    assert "policy drop" in unit.rules()
    assert "qbs-" not in unit.rules()
    # What a person does then lets nothing through.
    unit.qube.guestnet("forwarding", "on", check=False)
    unit.agent.kill()
    unit.qube.start_agent()
    unit.commit(behind.ip, "action=accept")
    never(unit.forwards, 0.5)
    assert "firewall-not-ready" in unit.qube.guestnet("check", check=False).stdout
    assert unit.unit("reload", check=False).returncode == 1
    unit.commit(behind.ip, UDP9)
    unit.unit("start")
    assert unit.passes(behind), unit.trouble()
    assert not unit.passes(behind, 10)
    assert unit.rules().count("192.0.2.1") == 1
    assert "192.0.2.2" not in unit.rules()


@pytest.mark.behaviour("B65")
@pytest.mark.behaviour("B73")
def test_a_start_in_addition_and_a_reload_lose_nothing_and_let_nothing_pass() -> None:
    """What a restart of the unit is, whose stop leaves all in force."""
    unit = Unit()
    unit.script(SCRIPT, "#!/bin/sh\nsleep 0.3\n")
    behind = unit.begun()
    with unit.nothing_else_passes(behind):
        for action in ("start", "reload", "start"):
            unit.unit(action)


@pytest.mark.behaviour("B72")
@pytest.mark.behaviour("B76")
def test_a_hundred_reloads_during_a_hundred_commits_end_right() -> None:
    unit = Unit()
    behind = unit.begun()
    agent = unit.agent.pid
    for number in range(100):
        unit.commit(behind.ip, f"action=accept proto=udp dstports={number}-{number}")
        unit.agent.signal(1)
    unit.unit("reload")
    eventually(lambda: unit.passes(behind, 99), trouble=unit.trouble)
    assert not unit.passes(behind, 98)
    assert unit.agent.pid == agent
