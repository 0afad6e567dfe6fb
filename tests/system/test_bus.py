# SPDX-License-Identifier: GPL-2.0-or-later
"""A qube with NetworkManager and systemd-resolved; its bus is dbus-daemon, or dbus-broker installed beside that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.machines.machine import APT, Machine, Mounts
from tests.system.test_boot import ENTRIES, UNIT, configured, pid

NM, RESOLVED = "NetworkManager.service", "systemd-resolved.service"
LONG = 60


@pytest.fixture(scope="module", params=["dbus-daemon", "dbus-broker"])
def qube(request: pytest.FixtureRequest, mounts: Mounts, base: Path, plain: Path, installed: Path) -> Iterator[Machine]:
    root = mounts.root(base, plain, installed)
    others = f"network-manager systemd-resolved {'dbus-broker' if request.param == 'dbus-broker' else ''}"
    command = f"chroot {root}/tree apt-get {' '.join(APT)} install {others}"
    mounts.run(f"export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8; {command}")
    machine = Machine(mounts, root, request.param, ENTRIES, flags=("network-manager",))
    try:
        eventually(lambda: configured(machine), LONG, "the network", machine.jobs)
        unit = {"dbus-daemon": "dbus.service", "dbus-broker": "dbus-broker.service"}[request.param]
        assert machine.property("dbus.service", "Id") == unit
        yield machine
    finally:
        machine.close()


def knows(qube: Machine, *servers: str) -> None:
    """Wait until systemd-resolved, NetworkManager and resolv.conf have these servers."""

    def told() -> bool:
        assert qube.run("resolvectl", "dns", "eth0").rpartition(": ")[2].split() == list(servers)
        assert qube.run("nmcli", "-g", "IP4.DNS", "device", "show", "eth0").split(" | ") == list(servers)
        named = qube.run("sed", "-n", "s/^nameserver //p", "/etc/resolv.conf").split()
        assert named in (list(servers), ["127.0.0.53"])
        return True

    eventually(told, LONG, "the servers", lambda: f"{qube.jobs()}{qube.journal(UNIT)}{qube.journal(NM)}")


def named(qube: Machine, second: str) -> None:
    """Have dom0 name another second server, and wait until everything knows it."""
    qube.write("/qubes-secondary-dns", second)
    knows(qube, "10.139.1.1", second)


@pytest.mark.behaviour("B21")
@pytest.mark.behaviour("B25")
def test_its_services_know_the_servers(qube: Machine) -> None:
    assert qube.run("systemctl", "--failed", "--no-legend", "--plain") == "", qube.jobs()
    knows(qube, "10.139.1.1", "10.139.1.2")


@pytest.mark.behaviour("B21")
@pytest.mark.behaviour("B25")
def test_the_bus_is_reloaded(qube: Machine) -> None:
    before = pid(qube)
    qube.run("systemctl", "reload", "dbus.service")
    named(qube, "10.139.1.3")
    assert pid(qube) == before


@pytest.mark.behaviour("B21")
@pytest.mark.behaviour("B25")
def test_the_bus_is_restarted(qube: Machine) -> None:
    """What was on it is started anew, by systemd or by its owner; the agent stays, and so does the network."""
    before = pid(qube)
    qube.run("systemctl", "restart", "dbus.service")
    assert configured(qube)
    qube.run("systemctl", "restart", NM, RESOLVED)
    named(qube, "10.139.1.4")
    assert configured(qube)
    assert pid(qube) == before
    for unit in (UNIT, NM, RESOLVED):  # others fail for want of a bus: systemd-hostnamed of Debian 13
        assert qube.property(unit, "ActiveState") == "active"
