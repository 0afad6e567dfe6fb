# SPDX-License-Identifier: GPL-2.0-or-later
"""Other kinds of boot: a template without a network, and a qube with qubes-core-agent-networking beside us."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import packages
from tests.support.eventually import eventually, never
from tests.support.machine import APT, Hall, Machine
from tests.system.test_boot import ENTRIES, UNIT, configured
from tests.system.test_provider import PROVIDER, RULES, forwards, told

SETUP_IP = "/usr/lib/qubes/setup-ip"
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
    """And has the rules nevertheless, before anybody could attach something to it."""
    assert template.property(RULES, "ActiveState") == "active"
    assert "chain antispoof" in template.run("nft", "list", "table", "ip", "qubes")
    assert forwards(template) == ["0", "0"]
    template.inside.run("qubes-guestnet", "forwarding", "on", check=False)
    assert forwards(template) == ["0", "0"]


def test_an_interface_starts_its_agent(template: Machine) -> None:
    """By our udev rule alone, in a qube that has no other package of Qubes networking."""
    template.run("systemctl", "stop", UNIT)
    template.write(*(word for entry in ENTRIES.items() for word in entry))
    template.plug()
    eventually(lambda: configured(template), 20, "network", lambda: template.journal(UNIT))
    assert template.property(UNIT, "ActiveState") in ("activating", "active")


@pytest.mark.behaviour("B101")
def test_it_takes_both_the_flag_and_the_key_to_forward(template: Machine) -> None:
    """dom0 may give a network to provide to a qube whose owner does not want that, and the other way round."""
    provided = {key: value for key, value in PROVIDER.items() if key.startswith("/qubes-netvm-")}
    template.write(*(word for entry in provided.items() for word in entry))
    template.run("systemctl", "restart", UNIT)  # so that it is not asked before it has looked
    assert forwards(template) == ["0", "0"]
    template.write("/qubes-netvm-network", "")
    template.run("sh", "-c", "mkdir -p /run/qubes-service; : >/run/qubes-service/qubes-network")
    template.run("systemctl", "restart", UNIT)
    never(lambda: forwards(template) != ["0", "0"], 0.5, "forwarding")
    template.write("/qubes-netvm-network", PROVIDER["/qubes-netvm-network"])
    eventually(lambda: forwards(template) == ["1", "1"], what="forwarding", trouble=lambda: told(template))
    template.write("/qubes-netvm-network", "")
    eventually(lambda: forwards(template) == ["0", "0"], what="none again", trouble=lambda: told(template))


@pytest.fixture(scope="module")
def beside(hall: Hall, base: Path, plain: Path, installed: Path, core_agent: Path, boot) -> Machine:
    """The other package came after ours, which is the harder order for a diversion."""
    root = hall.root(base, plain, installed)
    hall.install(root, [core_agent])
    return boot(root, "beside", PROVIDER, flags=("qubes-network", "qubes-firewall"))


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


@pytest.mark.parametrize("name", packages.PROVIDER_UNITS)
def test_its_units_of_the_provider_run_our_commands(beside: Machine, name: str) -> None:
    unit = f"qubes-{name}.service"
    assert "/usr/bin/qubes-guestnet" in beside.property(unit, "ExecStart")
    assert RULES in beside.property(unit, "After").split()
    eventually(lambda: beside.property(unit, "ActiveState") == "active", 20, unit)
    assert beside.property(unit, "ExecMainStatus") == "0"
    assert "core-agent-units" not in beside.run("ls", "/run")


@pytest.mark.behaviour("B99")
@pytest.mark.behaviour("B65")
def test_nothing_is_forwarded_before_its_firewall_is_ready(beside: Machine) -> None:
    """The uplink is there before it: a user's script in it may ask for names."""
    assert beside.run("cat", "/run/at-qubes-firewall").split() == ["0", "0"]
    agent, firewall, network = (
        int(beside.property(unit, "ActiveEnterTimestampMonotonic"))
        for unit in (UNIT, "qubes-firewall.service", "qubes-network.service")
    )
    assert agent <= firewall <= network
    eventually(lambda: forwards(beside) == ["1", "1"], what="forwarding", trouble=lambda: told(beside))


@pytest.mark.behaviour("B101")
def test_its_unit_switches_forwarding_on_and_off(beside: Machine) -> None:
    unit = "qubes-network.service"
    eventually(lambda: forwards(beside) == ["1", "1"], what="forwarding", trouble=lambda: told(beside))
    beside.run("systemctl", "stop", unit)
    assert forwards(beside) == ["0", "0"]
    beside.run("systemctl", "start", unit)
    assert forwards(beside) == ["1", "1"]


def test_restarting_its_firewall_base_takes_no_rule_away(beside: Machine) -> None:
    rules = beside.run("nft", "-s", "list", "ruleset")
    for name in ("antispoof", "iptables"):
        beside.run("systemctl", "restart", f"qubes-{name}.service")
    eventually(lambda: beside.run("nft", "-s", "list", "ruleset") == rules, what="the same rules")


def test_stopping_and_starting_its_unit_takes_the_interface_down_and_up(beside: Machine) -> None:
    beside.run("systemctl", "stop", "qubes-network-uplink@eth0.service")
    assert not beside.inside.is_up("eth0")
    beside.run("systemctl", "start", "qubes-network-uplink@eth0.service")
    assert configured(beside)


def test_its_scripts_are_ours(beside: Machine) -> None:
    for script in packages.SCRIPTS:
        name = Path(script).name
        assert beside.run("readlink", "-f", script) == f"/usr/libexec/qubes-guestnet/{name}"
        assert f"/run/core-agent-{name}" in beside.run("cat", f"{script}.qubes-core-agent")


def test_setup_ip_takes_the_same_arguments(beside: Machine) -> None:
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


def test_an_upgrade_of_the_other_package_changes_nothing(beside: Machine, tmp_path: Path) -> None:
    """Of its script in /etc, a configuration file, its new version is put aside without a question."""
    package, target = packages.core_agent(tmp_path, "4.3.1"), "/var/tmp/core-agent.deb"
    with package.open("rb") as data:
        subprocess.run([*beside.inside.prefix, "sh", "-c", f"cat >{target}"], stdin=data, check=True)
    beside.run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *APT, "install", target)
    for script in packages.SCRIPTS:
        assert "/qubes-guestnet/" in beside.run("readlink", "-f", script)
        assert "# 4.3.1" in beside.run("cat", f"{script}.qubes-core-agent").splitlines()


def test_removal_gives_everything_back(beside: Machine) -> None:
    beside.run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *APT, "purge", "qubes-guestnet")
    for script in packages.SCRIPTS:
        assert f"/run/core-agent-{Path(script).name}" in beside.run("cat", script)
        assert beside.run("sh", "-c", f"test -e {script}.qubes-core-agent || echo gone") == "gone"
    assert beside.run("dpkg-divert", "--list", "*qubes*") == ""
    for unit in ("qubes-network-uplink@eth0.service", "qubes-network-uplink.service"):
        assert SETUP_IP in beside.property(unit, "ExecStart")
        assert beside.property(unit, "DropInPaths") == ""
    for name in packages.PROVIDER_UNITS:
        assert f"echo {name}" in beside.property(f"qubes-{name}.service", "ExecStart")
        assert beside.property(f"qubes-{name}.service", "DropInPaths") == ""
    assert forwards(beside) == ["0", "0"]
    beside.run("systemctl", "restart", "qubes-network-uplink@eth0.service")
    assert beside.run("cat", CALLED).splitlines()[-2:] == ["remove eth0", "add eth0"]
