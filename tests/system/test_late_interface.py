# SPDX-License-Identifier: GPL-2.0-or-later
"""dom0 has named an interface, and none is there at boot: the boot goes on, and a late interface is configured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.machines.kinds import Kind, Qube
from tests.support.machines.machine import Mounts

UPLINK, BARRIER = "qubes-network-uplink@eth0.service", "qubes-network-uplink.service"
WAIT = "qubes-guestnet-wait-uplink.service"
LONG = 60


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "nm"])
def qube(request: pytest.FixtureRequest, mounts: Mounts, disks: Callable[[Kind], Path]) -> Iterator[Qube]:
    kind = Kind("AppVM", request.param, ours_first=True)
    qube = Qube(mounts, disks(kind), kind, plugged=False)
    try:
        yield qube
    finally:
        qube.close()


@pytest.mark.behaviour("B156")
def test_without_an_interface_the_boot_neither_waits_nor_fails(qube: Qube) -> None:
    machine = qube.machine
    assert machine.run("systemctl", "--failed", "--no-legend", "--plain") == "", qube.told()
    assert machine.property(BARRIER, "ActiveState") == "active"
    # A wait in vain says so, and fails.
    assert "not configured" not in machine.journal(BARRIER)
    assert machine.property(UPLINK, "ActiveState") == "inactive"


@pytest.mark.behaviour("B156")
def test_a_barrier_that_waits_in_vain_is_no_failure(qube: Qube) -> None:
    """Its minute is a second here."""
    if qube.kind.networkmanager:
        return
    machine = qube.machine
    command = "/usr/bin/qubes-guestnet wait-uplink"
    assert f"argv[]={command} --timeout 60 ; ignore_errors=yes" in machine.property(WAIT, "ExecStart")
    drop_in = f"/run/systemd/system/{WAIT}.d"
    lines = f"[Service]\\nExecStart=\\nExecStart=-{command} --timeout 1\\n"
    machine.run("sh", "-euc", f"mkdir {drop_in}; printf '{lines}' >{drop_in}/soon.conf; systemctl daemon-reload")
    machine.run("systemctl", "start", WAIT)
    assert machine.property(WAIT, "ActiveState") == "active"
    assert "not configured after 1 s" in machine.journal(WAIT)
    machine.run("rm", "-r", drop_in)


@pytest.mark.behaviour("B156")
def test_a_late_interface_is_configured(qube: Qube) -> None:
    machine = qube.machine
    machine.plug()
    eventually(qube.configured, LONG, "the network", qube.told)
    eventually(lambda: machine.property(UPLINK, "ActiveState") == "active", LONG, "its unit", qube.told)
    assert machine.run("systemctl", "--failed", "--no-legend", "--plain") == "", qube.told()
