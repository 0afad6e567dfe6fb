# SPDX-License-Identifier: GPL-2.0-or-later
"""Other kinds of boot: a template without a network, and a qube with qubes-core-agent-networking beside us."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.machine import APT, Hall, Machine
from tests.system.test_boot import ENTRIES, UNIT, configured

SETUP_IP = "/usr/lib/qubes/setup-ip"
DIVERTED = "/usr/lib/qubes/setup-ip.qubes-core-agent"
OURS = "../../libexec/qubes-guestnet/setup-ip"
CALLED = "/run/core-agent-setup-ip"  # what the other package's script notes


@pytest.fixture(scope="module")
def template(hall: Hall, base: Path, plain: Path, installed: Path, boot) -> Machine:
    return boot(hall.root(base, plain, installed), "template", {"/name": "debian-12"}, plugged=False)


@pytest.mark.behaviour("B97")
@pytest.mark.behaviour("B100")
def test_a_template_boots_without_waiting(template: Machine) -> None:
    assert template.run("systemctl", "--failed", "--no-legend", "--plain") == "", template.jobs()
    assert template.property(UNIT, "ActiveState") == "active"
    assert template.property(UNIT, "StatusText") == "no interface expected"
    # The limits are 20 s for the agent and 60 s for the barrier; neither was waited for, nor anything like it.
    began, ready = (
        int(template.property(UNIT, name))
        for name in ("InactiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    )
    assert ready - began < 10_000_000
    template.run("systemctl", "start", "network-online.target")
    assert template.property("qubes-guestnet-wait-uplink.service", "ActiveState") == "active"


@pytest.mark.behaviour("B101")
def test_a_template_forwards_nothing(template: Machine) -> None:
    forwarding = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"]
    assert template.run("cat", *forwarding).split() == ["0", "0"]


def test_an_interface_starts_its_agent(template: Machine) -> None:
    """By our udev rule alone, in a qube that has no other package of Qubes networking."""
    template.run("systemctl", "stop", UNIT)
    template.write(*(word for entry in ENTRIES.items() for word in entry))
    template.plug()
    eventually(lambda: configured(template), 20, "network", lambda: template.journal(UNIT))
    assert template.property(UNIT, "ActiveState") in ("activating", "active")


@pytest.fixture(scope="module")
def beside(hall: Hall, base: Path, plain: Path, installed: Path, core_agent: Path, boot) -> Machine:
    """The other package came after ours, which is the harder order for a diversion."""
    root = hall.root(base, plain, installed)
    hall.install(root, [core_agent])
    return boot(root, "beside", ENTRIES)


def test_beside_core_agent_networking_the_network_is_there(beside: Machine) -> None:
    assert beside.run("systemctl", "--failed", "--no-legend", "--plain") == "", beside.jobs()
    assert configured(beside), beside.journal(UNIT)


def test_its_units_run_our_commands(beside: Machine) -> None:
    for unit in ("qubes-network-uplink@eth0.service", "qubes-network-uplink.service"):
        assert "/usr/bin/qubes-guestnet" in beside.property(unit, "ExecStart"), unit
        assert SETUP_IP not in beside.property(unit, "ExecStart"), unit
        eventually(lambda unit=unit: beside.property(unit, "ActiveState") == "active", 20, unit)
        assert beside.property(unit, "ExecMainStatus") == "0"
    assert "setup-ip" not in beside.run("ls", "/run")


def test_stopping_and_starting_its_unit_takes_the_interface_down_and_up(beside: Machine) -> None:
    beside.run("systemctl", "stop", "qubes-network-uplink@eth0.service")
    assert not beside.inside.is_up("eth0")
    beside.run("systemctl", "start", "qubes-network-uplink@eth0.service")
    assert configured(beside)


def test_its_script_is_ours_with_the_same_arguments(beside: Machine) -> None:
    assert beside.run("readlink", SETUP_IP) == OURS
    assert CALLED in beside.run("cat", DIVERTED)
    beside.run(SETUP_IP, "remove", "eth0")
    assert not beside.inside.is_up("eth0")
    beside.run(SETUP_IP, "add", "eth0")
    assert configured(beside)
    wrong = beside.inside.run(SETUP_IP, "nonsense", "eth0", check=False)
    assert wrong.returncode == 2


@pytest.mark.behaviour("B32")
def test_no_cycle_with_network_manager(hall: Hall, beside: Machine) -> None:
    """Its real unit, ordered after the uplink as Qubes OS orders it (#7952)."""
    script = """
        cd /opt/network-manager; cp $(find . -name '*.service') /etc/systemd/system/; cd /etc/systemd/system
        mkdir -p NetworkManager.service.d multi-user.target.wants
        { echo '[Unit]'; echo After=qubes-network-uplink.service
          echo '[Service]'; echo ExecStart=; echo ExecStart=/bin/true; } >NetworkManager.service.d/30_qubes.conf
        ln -s ../NetworkManager.service multi-user.target.wants/
        systemctl daemon-reload
    """
    beside.run("sh", "-euc", script)
    units = ["NetworkManager.service", UNIT, "qubes-network-uplink@eth0.service", "multi-user.target"]
    told = beside.run("systemd-analyze", "verify", "--man=no", *units, check=False)
    assert "cycle" not in told.lower(), told
    assert [line for line in told.splitlines() if "guestnet" in line] == []


def test_removal_gives_everything_back(beside: Machine) -> None:
    beside.run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *APT, "purge", "qubes-guestnet")
    assert CALLED in beside.run("cat", SETUP_IP)
    assert beside.run("sh", "-c", f"test -e {DIVERTED} || echo gone") == "gone"
    for unit in ("qubes-network-uplink@eth0.service", "qubes-network-uplink.service"):
        assert SETUP_IP in beside.property(unit, "ExecStart")
        assert beside.property(unit, "DropInPaths") == ""
    beside.run("systemctl", "restart", "qubes-network-uplink@eth0.service")
    assert beside.run("cat", CALLED).splitlines()[-2:] == ["remove eth0", "add eth0"]
