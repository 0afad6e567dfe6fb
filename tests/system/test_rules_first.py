# SPDX-License-Identifier: GPL-2.0-or-later
"""What must not happen: an uplink without its rules, and a firewall of others that takes ours away."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.machines.machine import APT, Machine, Mounts
from tests.system.test_boot import UNIT, configured
from tests.system.test_provider import FORWARDING, PROVIDER, RULES, forwards, told

FIREWALLD = "firewalld.service"


@pytest.fixture(scope="module")
def broken(mounts: Mounts, base: Path, plain: Path, installed: Path, boot) -> Machine:
    """A provider on whose disk nft is damaged."""
    root = mounts.root(base, plain, installed)
    mounts.run(f"cd {root}/tree/usr/sbin; mv nft nft.good; printf '#!/bin/sh\\nexit 1\\n' >nft; chmod +x nft")
    return boot(root, "broken", PROVIDER, flags=("qubes-network",))


@pytest.mark.behaviour("B99")
def test_without_its_rules_the_uplink_stays_down(broken: Machine) -> None:
    assert broken.property(RULES, "Result") == "exit-code"
    assert "nft" in broken.journal(RULES)
    assert broken.property(UNIT, "ActiveState") == "inactive"
    assert broken.property("network-pre.target", "ActiveState") == "inactive"
    assert not broken.inside.is_up("eth0")
    assert broken.inside.addresses("eth0") == set()
    assert broken.run("cat", *FORWARDING).split() == ["0", "0"]


@pytest.mark.behaviour("B99")
def test_and_comes_up_once_they_can_be_loaded(broken: Machine) -> None:
    broken.run("mv", "/usr/sbin/nft.good", "/usr/sbin/nft")
    broken.run("systemctl", "start", UNIT)
    assert configured(broken), told(broken)
    assert broken.property(RULES, "ActiveState") == "active"
    eventually(lambda: forwards(broken) == ["1", "1"], what="forwarding", trouble=lambda: told(broken))


@pytest.fixture(scope="module")
def beside_firewalld(mounts: Mounts, base: Path, plain: Path, installed: Path, boot) -> Machine:
    root = mounts.root(base, plain, installed)
    command = f"chroot {root}/tree apt-get {' '.join(APT)} install firewalld netbase"
    mounts.run(f"export DEBIAN_FRONTEND=noninteractive; {command}")
    return boot(root, "firewalld", PROVIDER, flags=("qubes-network",))


def tables(machine: Machine) -> set[str]:
    """All but the tables that the agent makes for itself, which have tests of their own."""
    own = {"table inet qubes-guard", "table ip qubes-limits", "table ip6 qubes-limits"}
    return set(machine.run("nft", "list", "tables").splitlines()) - own


OURS = {"table ip qubes", "table ip6 qubes", "table arp qubes"}


@pytest.mark.behaviour("B107")
def test_firewalld_is_off_unless_it_is_asked_for(beside_firewalld: Machine) -> None:
    """By the preset; switched on for a whole template, it runs in the qubes that have the flag."""
    qube = beside_firewalld
    assert qube.run("systemctl", "is-enabled", FIREWALLD, check=False) == "disabled"
    qube.run("systemctl", "start", FIREWALLD)
    assert qube.property(FIREWALLD, "ActiveState") == "inactive"
    assert qube.property(FIREWALLD, "ConditionResult") == "no"
    assert tables(qube) == OURS


@pytest.mark.behaviour("B107")
def test_firewalld_starts_after_our_rules_and_leaves_them_alone(beside_firewalld: Machine) -> None:
    qube = beside_firewalld
    assert {RULES, "qubes-firewall.service"} <= set(qube.property(FIREWALLD, "After").split())
    rules = {table: qube.run("nft", "-s", "list", *table.split()) for table in sorted(OURS)}
    both = OURS | {"table inet firewalld"}
    qube.run("sh", "-c", "mkdir -p /run/qubes-service; : >/run/qubes-service/firewalld")
    try:
        qube.run("systemctl", "start", FIREWALLD)
        eventually(lambda: tables(qube) == both, what="both tables", trouble=lambda: qube.journal(FIREWALLD))
        qube.run("firewall-cmd", "--reload")
        qube.run("qubes-guestnet", "rules", "load")
        qube.run("systemctl", "restart", UNIT)
        assert tables(qube) == both
    finally:
        qube.run("systemctl", "stop", FIREWALLD)
    assert tables(qube) == OURS
    assert {table: qube.run("nft", "-s", "list", *table.split()) for table in sorted(OURS)} == rules


@pytest.mark.behaviour("B32")
@pytest.mark.behaviour("B107")
def test_no_cycle_with_firewalld(beside_firewalld: Machine) -> None:
    units = [FIREWALLD, UNIT, RULES, "multi-user.target"]
    said = beside_firewalld.run("systemd-analyze", "verify", "--man=no", *units, check=False)
    assert "cycle" not in said.lower(), said
    assert [line for line in said.splitlines() if "guestnet" in line] == []
