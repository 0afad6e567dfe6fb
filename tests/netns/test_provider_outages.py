# SPDX-License-Identifier: GPL-2.0-or-later
"""Vifs while something around them is out: QubesDB, xenstore, the agent's socket; and messages that are none."""

from __future__ import annotations

import socket
import sys

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.provider import ENTRIES6, HOTPLUG_LOG, WORLD, Provider

SOCKET = "/run/qubes-guestnet/vif.sock"
resident_or_not = pytest.mark.parametrize("agent", [True, False], ids=["agent", "cold"])


@pytest.mark.behaviour("B49")
@resident_or_not
def test_a_vif_goes_without_qubesdb_and_without_xenstore(agent: bool) -> None:
    host = Provider(ENTRIES6, agent=agent)
    first, second = host.attach(4), host.attach(5)
    host.qube.stop_store()
    done = host.call("offline", first)
    assert done.returncode == 0, done.stderr
    assert host.elements("allowed") == {"vif5.0 10.137.0.5"}
    host.qube.run("sh", "-ec", "for each in read write; do rm $(command -v xenstore-$each); done")
    done = host.call("offline", second)
    assert done.returncode == 0, done.stderr
    assert host.elements("allowed") == host.elements("allowed", "ip6") == set()
    assert host.routes("vif5.0") == []


def test_a_vif_comes_while_the_agent_has_no_qubesdb() -> None:
    host = Provider(ENTRIES6)
    first, second = host.attach(4), host.plug(5)
    host.qube.stop_store()
    eventually(lambda: "waiting for QubesDB" in str(host.qube.notifications()), trouble=host.trouble)
    assert host.works(first)
    # The command asks for itself whether the qube sees other addresses than it has, and waits instead of guessing.
    host.qube.write(
        "/run/lab/hasty/sitecustomize.py", "from qubes_guestnet.cli import reading\nreading.STORE_SECONDS = 0.3\n"
    )
    done = host.call("online", second, PYTHONPATH=":".join(("/run/lab/hasty", *sys.path)))
    assert done.returncode == 1
    assert "QubesDB" in host.node(second, "hotplug-error")
    assert "UP" not in host.link("vif5.0")["flags"]
    host.qube.start_store(ENTRIES6)
    host.online(second)
    assert host.works(second)


MESSAGES = {
    "nothing": b"",
    "no request": b"reboot\n",
    "another action": b"destroy\nvif vif4.0 00:16:3e:5e:6c:04 vif\naddress 10.137.0.4\nend\n",
    "cut off": b"online\nvif vif4.0 00:16:3e:5e:6c:04 vif\naddress 10.137.0.4\n",
    "another interface": b"online\nvif ens6 00:16:3e:5e:6c:04 vif\naddress 10.137.0.4\nend\n",
    "more than an address": b"online\nvif vif4.0 00:16:3e:5e:6c:04 vif\naddress 10.0.0.1 }; flush ruleset\nend\n",
    "everybody": b"online\nvif vif4.0 00:16:3e:5e:6c:04 vif\naddress 0.0.0.0\nend\n",
    "bytes": bytes(range(256)) * 4,
    "long": b"online\n" + b"x" * 65000,
}


def test_what_is_no_message_is_answered_and_does_nothing() -> None:
    host = Provider(ENTRIES6)
    behind = host.attach(5)
    before = host.state(behind.vif)
    for name, data in MESSAGES.items():
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
            asking.settimeout(5.0)
            asking.connect(str(host.qube.path(SOCKET)))
            asking.send(data)
            answer = asking.recv(65536)
            assert answer == b"" or answer.startswith(b"problem malformed request on vif.sock"), name
    assert host.state(behind.vif) == before
    assert host.works(behind)
    assert host.qube.path(SOCKET).stat().st_mode & 0o777 == 0o600


def test_somebody_who_says_nothing_holds_nobody_up_for_long() -> None:
    host = Provider(ENTRIES6)
    silent = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    for each in silent:
        each.connect(str(host.qube.path(SOCKET)))
    behind = host.attach()
    assert host.works(behind)
    for each in silent:
        each.close()


def test_more_addresses_than_any_qube_has() -> None:
    host = Provider(ENTRIES6)
    behind = host.plug()
    done = host.call("online", behind, ip=" ".join(f"10.137.{n >> 8}.{n & 255}" for n in range(1, 1000)))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "at most 64" in host.node(behind, "hotplug-error")
    assert "at most 64" in host.qube.read(HOTPLUG_LOG)
    host.online(behind)
    assert host.works(behind)


def test_a_damaged_record_of_a_vif_is_made_anew() -> None:
    host = Provider(ENTRIES6)
    behind = host.attach()
    before = host.state(behind.vif)
    host.agent.stop()
    host.qube.write("/run/qubes-guestnet/vifs/vif4.0", "vif vif4.0 00:16:3e:5e:6c:04\naddress 0.0.0.0\n")
    host.qube.start_agent()
    assert host.works(behind)
    host.online(behind)
    assert host.state(behind.vif) == before
    behind.port.send("10.137.0.77", WORLD, "spoofed")
    outside = host.outside()
    assert host.works(behind, outside)
    assert outside.words() == {"works"}
