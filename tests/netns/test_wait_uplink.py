# SPDX-License-Identifier: GPL-2.0-or-later
"""`wait-uplink`: 0 once the interface that is there now is configured, at once if none is expected, else 1."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.appvm import ENTRIES, ENTRIES6, GATEWAY, IP6, MAC, AppVm

PROGRAM = (sys.executable, "-m", "qubes_guestnet")


@pytest.mark.behaviour("B4")
@pytest.mark.parametrize("entries", [{}, {"/qubes-mac": MAC}], ids=["nothing", "no-address"])
def test_wait_uplink_is_done_at_once_when_none_is_expected(entries: dict[str, str]) -> None:
    appvm = AppVm(entries, plugged=False)
    done = appvm.qube.guestnet("wait-uplink", "--timeout", "0")
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.behaviour("B3")
def test_wait_uplink_gives_up_with_a_reason() -> None:
    appvm = AppVm(plugged=False)
    failed = appvm.qube.guestnet("wait-uplink", "--timeout", "0.2", check=False)
    assert failed.returncode == 1
    assert failed.stderr == ("qubes-guestnet: not configured after 0.2 s: interface missing; qubes-guestnet check\n")
    appvm.plug()
    failed = appvm.qube.guestnet("wait-uplink", "--timeout", "0", check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("qubes-guestnet: not configured after 0 s: sysctl net/ipv4/conf/eth0/")
    assert "; ip link set dev eth0 group 1; " in failed.stderr


@pytest.mark.behaviour("B3")
@pytest.mark.parametrize("what", ["address", "link", "route", "neighbour"])
def test_wait_uplink_is_not_content_with_less(what: str) -> None:
    appvm = AppVm(ENTRIES6)
    appvm.qube.guestnet("apply")
    assert appvm.qube.guestnet("wait-uplink", "--timeout", "0").returncode == 0
    harm = {
        "address": f"address del {IP6}/128 dev eth0",
        "link": "link set eth0 down",
        "route": "-6 route del default dev eth0",
        "neighbour": f"neighbour del {GATEWAY} dev eth0",
    }
    appvm.ip(*harm[what].split())
    assert appvm.qube.guestnet("wait-uplink", "--timeout", "0", check=False).returncode == 1


@pytest.mark.behaviour("B3")
def test_wait_uplink_waits_for_the_interface_that_is_there_now() -> None:
    """The configured one goes while it is waited for another state; the new one counts."""
    appvm = AppVm(plugged=False)
    waiting = appvm.qube.spawn("wait", *PROGRAM, "wait-uplink", "--timeout", "20")
    appvm.plug("eth7")
    appvm.unplug()
    appvm.agent()
    assert waiting.running
    appvm.plug("enX0")
    assert waiting.wait(25) == 0, waiting.tail()
    appvm.check("enX0")


@pytest.mark.behaviour("B4")
def test_wait_uplink_of_a_detached_interface() -> None:
    """dom0 took the provider away and left the keys: nothing is expected, until it writes again."""
    appvm = AppVm()
    appvm.agent()
    appvm.unplug()
    eventually(lambda: appvm.qube.guestnet("wait-uplink", "--timeout", "0", check=False).returncode == 0)
    assert f"interface {MAC}: detached" in appvm.qube.guestnet("status", check=False).stdout
    appvm.write("/qubes-gateway", "10.137.0.9")
    eventually(lambda: appvm.qube.guestnet("wait-uplink", "--timeout", "0", check=False).returncode == 1)
    appvm.plug()
    appvm.qube.guestnet("wait-uplink")
    appvm.check(gateway="10.137.0.9")


def test_wait_uplink_outlives_a_restart_of_qubesdb() -> None:
    appvm = AppVm(None)
    waiting = appvm.qube.spawn("wait", *PROGRAM, "wait-uplink", "--timeout", "20")
    appvm.qube.start_store(ENTRIES)
    appvm.qube.guestnet("apply")
    assert waiting.wait(25) == 0, waiting.tail()


def test_interrupted() -> None:
    appvm = AppVm(plugged=False)
    waiting = appvm.qube.spawn("wait", *PROGRAM, "wait-uplink", "--timeout", "30")
    # It sleeps between two looks: the program is loaded, and what handles the signal is in place.
    eventually(lambda: "sleep" in Path(f"/proc/{waiting.pid}/wchan").read_text())
    waiting.signal(signal.SIGINT)
    assert (waiting.wait(), waiting.output()) == (130, "interrupted\n")


def test_the_stop_of_the_unit_is_for_systemd() -> None:
    appvm = AppVm()
    appvm.qube.guestnet("apply")
    failed = appvm.qube.guestnet("uplink", "stop", "eth0", check=False)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == (
        "qubes-guestnet: `uplink stop` is only for systemd's unit, and systemd is not running here; "
        "to take the interface down, call `qubes-guestnet uplink remove eth0`\n"
    )
    appvm.check()
