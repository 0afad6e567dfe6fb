# SPDX-License-Identifier: GPL-2.0-or-later
"""`uplink add` and `uplink remove` at the same time, one after the other, and late."""

from __future__ import annotations

import contextlib
import os
import sys

import pytest

from qubes_guestnet.lab.qube import Service
from tests.support.eventually import eventually
from tests.support.needs import needs
from tests.support.qubes.appvm import ENTRIES6, GATEWAY6, GATEWAY_FLAG, IP6, AppVm

LOCK = "/run/qubes-guestnet/lock"
WITH6 = {"ip6": f"{IP6}/128", "gateway6": GATEWAY6}


def hold_the_lock(appvm: AppVm) -> Service:
    """What another run of the program does while it works."""
    needs("flock")
    appvm.qube.run("mkdir", "-p", os.path.dirname(LOCK))
    said = len(log.read_text()) if (log := appvm.qube.folder / "holder.log").exists() else 0
    holder = appvm.qube.spawn("holder", "flock", "--close", LOCK, "sh", "-c", "echo held; exec sleep 1000")
    eventually(lambda: "held" in holder.output()[said:])
    return holder


def files_of(service: Service) -> list[str]:
    """Files that a process has open."""
    folder = f"/proc/{service.pid}/fd"
    found = []
    for number in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"{folder}/{number}"))
    return found


@pytest.mark.behaviour("B2")
@pytest.mark.parametrize("how_many", [2, 8])
@pytest.mark.parametrize("style", ["device", "gateway"])
def test_adding_in_parallel(how_many: int, style: str) -> None:
    appvm = AppVm(ENTRIES6)
    appvm.qube.set_flag(GATEWAY_FLAG, style == "gateway")
    command = [sys.executable, "-m", "qubes_guestnet", "uplink", "add", "eth0"]
    runs = [appvm.qube.spawn(f"add{number}", *command) for number in range(how_many)]
    assert [run.wait(20) for run in runs] == [0] * how_many, [run.tail() for run in runs]
    appvm.check(style=style, **WITH6)
    told = [line for run in runs for line in run.output().splitlines()]
    assert len(told) == len(set(told)), "something was done twice"


@pytest.mark.behaviour("B1")
def test_add_while_a_remove_is_delayed() -> None:
    """The two wait for the lock together, and either may come first; the remove means the interface that went."""
    appvm = AppVm()
    program = [sys.executable, "-m", "qubes_guestnet", "uplink"]
    appvm.qube.run(*program, "add", "eth0")
    for round_number in range(3):
        holder = hold_the_lock(appvm)
        remove = appvm.qube.spawn(f"remove{round_number}", *program, "remove", "eth0")
        eventually(lambda: LOCK in files_of(remove), what="remove waits for the lock")  # noqa: B023
        appvm.unplug()
        appvm.plug()
        add = appvm.qube.spawn(f"add{round_number}", *program, "add", "eth0")
        eventually(lambda: LOCK in files_of(add), what="add waits for the lock")  # noqa: B023
        holder.kill()
        assert [remove.wait(20), add.wait(20)] == [0, 0], remove.tail() + add.tail()
        appvm.check()


@pytest.mark.behaviour("B1")
def test_remove_then_add() -> None:
    appvm = AppVm()
    appvm.qube.guestnet("uplink", "add", "eth0")
    for _ in range(2):
        appvm.unplug()
        appvm.qube.guestnet("uplink", "remove", "eth0")
        appvm.plug()
        appvm.qube.guestnet("uplink", "add", "eth0")
        appvm.check()


@pytest.mark.behaviour("B18")
def test_remove_takes_the_link_down_and_keeps_it_down() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.qube.guestnet("uplink", "add", "eth0")
    done = appvm.qube.guestnet("uplink", "remove", "eth0")
    assert done.stdout == "ip link set dev eth0 down\n"
    assert not appvm.oracle.is_up("eth0")
    assert appvm.oracle.routes(4) == []
    appvm.qube.guestnet("uplink", "remove", "eth0")
    assert not appvm.oracle.is_up("eth0")
    appvm.qube.guestnet("uplink", "add", "eth0")
    appvm.check(**WITH6)


@pytest.mark.behaviour("B18")
def test_remove_without_interface_or_qubesdb() -> None:
    appvm = AppVm()
    appvm.qube.guestnet("uplink", "remove", "eth0")
    assert appvm.oracle.link("eth0") is not None
    appvm.qube.guestnet("uplink", "add", "eth0")
    assert appvm.qube.store_daemon is not None
    appvm.qube.store_daemon.kill()
    appvm.qube.guestnet("uplink", "remove", "eth0")
    assert not appvm.oracle.is_up("eth0")
    appvm.unplug()
    assert appvm.qube.guestnet("uplink", "remove", "eth0").stderr == ""


@pytest.mark.behaviour("B18")
@pytest.mark.parametrize("name", ["eth1", "lo"])
def test_remove_leaves_what_we_never_configured(name: str) -> None:
    appvm = AppVm()
    appvm.plug("eth1", "00:16:3e:5e:6c:77", "vif5.1")
    appvm.ip("link", "set", "eth1", "up")
    appvm.qube.guestnet("apply")
    appvm.qube.guestnet("uplink", "remove", name)
    assert appvm.oracle.is_up(name)
    appvm.check()


def test_a_lock_that_is_not_given_back() -> None:
    """A stopped program must not stop all others for ever; the one that waits names what is in its way."""
    appvm = AppVm()
    holder = hold_the_lock(appvm)
    sooner = "from qubes_guestnet.cli import main as cli\nfrom qubes_guestnet.system import owned_state\n"
    sooner += "owned_state.LOCK_SECONDS = 0.3\n"
    failed = appvm.qube.run(sys.executable, "-c", sooner + "raise SystemExit(cli.main())", "apply", check=False)
    assert failed.returncode == 1
    assert "another qubes-guestnet process holds the lock" in failed.stderr
    holder.kill()
    appvm.qube.guestnet("apply")
    appvm.check()
