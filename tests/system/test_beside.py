# SPDX-License-Identifier: GPL-2.0-or-later
"""Beside qubes-core-agent-networking: every kind of qube boots, is treated as people treat it, and loses nothing.

For each of Debian's releases one boot with both packages for each of AppVM, ProxyVM and NetVM, with and without
NetworkManager, and one with core-agent's alone after ours was removed. The tests of this file are the life of that
qube, in order. The order of installation goes by turns; that both give the same files is a test of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.judge.oracle import Oracle
from tests.support.machines import packages
from tests.support.machines.client import Client, commit
from tests.support.machines.core_agent import ENABLED, HARDENED, SCRIPTS
from tests.support.machines.kinds import (
    BARRIER,
    ENTRIES,
    OF_AN_UPLINK,
    OUTSIDE,
    RAN,
    REFUSED,
    RULES,
    SAMPLED,
    SERVER,
    TREATMENTS,
    UNIT,
    UPLINK,
    USERS_CHOICE,
    WAIT,
    Kind,
    Qube,
    cells,
)
from tests.support.machines.machine import Mounts
from tests.support.machines.takeover import check_takeover
from tests.support.packets.losses import at_most_arrive, every_packet_returns
from tests.system.conftest import SUITES

FIREWALL, NETWORK = "qubes-firewall.service", "qubes-network.service"
LONG = 60
CELLS = cells(flipped=False)


@pytest.fixture(
    scope="module", params=CELLS, ids=lambda kind: f"{kind.role}-{'nm' if kind.networkmanager else 'plain'}"
)
def qube(request: pytest.FixtureRequest, mounts: Mounts, base: Path, disks: Callable[[Kind], Path]) -> Iterator[Qube]:
    kind: Kind = request.param
    if SUITES.index(base.name.partition("-")[0]) % 2:
        kind = kind._replace(ours_first=not kind.ours_first)
    root = disks(kind)
    kind.prepare(mounts, root)
    qube = Qube(mounts, root, kind)
    try:
        yield qube
    finally:
        qube.close()


@pytest.mark.behaviour("B158")
def test_both_orders_of_installation_give_the_same_files(mounts: Mounts, disks: Callable[[Kind], Path]) -> None:
    def files(ours_first: bool) -> set[str]:
        tree = f"{disks(Kind('AppVM', False, ours_first))}/tree"
        kept = "-path ./var/lib/dpkg -o -path ./var/log -o -path ./var/tmp -o -path ./var/cache -o -path ./proc"
        script = f"cd {tree}; find . '(' {kept} -o -name __pycache__ ')' -prune -o -printf '%y %m %p %l\\n'"
        return set(mounts.run(script).stdout.splitlines())

    assert files(True) ^ files(False) == set()


@pytest.mark.behaviour("B97")
@pytest.mark.behaviour("B151")
@pytest.mark.behaviour("B158")
def test_it_boots_with_its_network_and_nothing_failed(qube: Qube) -> None:
    machine = qube.machine
    assert machine.run("systemctl", "--failed", "--no-legend", "--plain") == "", qube.told()
    qube.wire()
    eventually(qube.configured, LONG, "the network", qube.told)
    if qube.kind.networkmanager:
        assert machine.property("NetworkManager.service", "ActiveState") == "active"
        # NetworkManager comes after it; so a wait for what only that can do would be in vain, and a failure.
        ready = int(machine.property(BARRIER, "ActiveEnterTimestampMonotonic"))
        assert ready <= int(machine.property("NetworkManager.service", "InactiveExitTimestampMonotonic"))


@pytest.mark.behaviour("B137")
def test_its_public_units_are_active_and_ours(qube: Qube) -> None:
    """What core-agent's features script and dom0's call of qubes.WaitForNetworkUplink ask."""
    machine = qube.machine
    for unit in ENABLED:
        assert machine.run("systemctl", "is-enabled", unit) == "enabled"
    expected = ["qubes-antispoof.service", "qubes-iptables.service", BARRIER]
    expected += [UPLINK] if qube.kind.uplink else []
    expected += [FIREWALL, NETWORK] if qube.kind.provides else []
    for unit in expected:
        eventually(lambda unit=unit: machine.property(unit, "ActiveState") == "active", LONG, unit, qube.told)
        assert "/usr/bin/qubes-guestnet" in machine.property(unit, "ExecStart")
    noted = machine.run("sh", "-c", "ls /run/core-agent-* 2>/dev/null || :").split()
    assert noted == []  # its daemon does not run
    marked = machine.inside.run("test", "-e", "/run/qubes-guestnet/firewall", check=False).returncode
    assert marked == (0 if qube.kind.provides else 1)


@pytest.mark.behaviour("B153")
@pytest.mark.behaviour("B99")
@pytest.mark.behaviour("B65")
def test_nothing_is_forwarded_before_the_user_s_firewall_script_has_ended(qube: Qube) -> None:
    if not qube.kind.provides:
        assert qube.forwards() == ["0", "0"]
        return
    machine = qube.machine
    assert set(machine.run("cat", SAMPLED).split()) == {"0"}
    assert qube.noted(RAN) == ["ran"]
    ready, network = (int(machine.property(unit, "ActiveEnterTimestampMonotonic")) for unit in (FIREWALL, NETWORK))
    assert 0 < ready <= network
    eventually(lambda: qube.forwards()[0] == "1", LONG, "forwarding", qube.told)
    assert qube.behind is not None
    eventually(lambda: qube.behind.reaches(OUTSIDE), LONG, "a packet through", qube.told)


@pytest.mark.behaviour("B152")
def test_whatever_is_restarted_or_stopped_nothing_is_lost(qube: Qube) -> None:
    rules = qube.machine.run("nft", "-s", "list", "table", "ip", "qubes")
    lost = []
    for commands in (*TREATMENTS, *(OF_AN_UPLINK if qube.kind.uplink else ())):
        try:
            with qube.nothing_is_lost(", ".join(commands)):
                for words in commands:
                    qube.systemctl(words)
        except AssertionError as error:
            lost.append(str(error).splitlines()[0])
        # Units that went with what was stopped.
        qube.systemctl("reset-failed")
        qube.systemctl(f"start {UNIT} {' '.join(ENABLED)} {UPLINK if qube.kind.uplink else ''}")
        if not qube.configured():
            lost.append(f"{commands}: the interface is down")
            qube.systemctl(f"restart {UPLINK}")
    assert lost == []
    assert qube.machine.run("nft", "-s", "list", "table", "ip", "qubes") == rules
    assert qube.forwards()[0] == ("1" if qube.kind.provides else "0")
    assert qube.machine.run("systemctl", "--failed", "--no-legend", "--plain") == "", qube.told()


@pytest.mark.behaviour("B32")
@pytest.mark.behaviour("B151")
def test_no_unit_complains_and_no_cycle(qube: Qube) -> None:
    """NetworkManager's real unit among them, ordered after the uplink as Qubes OS orders it (#7952)."""
    units = [UNIT, RULES, WAIT, *ENABLED, "multi-user.target"]
    units += [UPLINK] if qube.kind.uplink else []
    units += ["NetworkManager.service"] if qube.kind.networkmanager else []
    told = qube.machine.run("systemd-analyze", "verify", "--man=no", *units, check=False)
    assert "cycle" not in told.lower(), told
    # What systemd 252 does not know of the real unit either.
    known = [line for line in told.splitlines() if "notify-reload" not in line]
    assert [line for line in known if "guestnet" in line] == []


def test_its_scripts_are_ours(qube: Qube) -> None:
    for script in SCRIPTS:
        name = Path(script).name
        assert qube.machine.run("readlink", "-f", script) == f"/usr/libexec/qubes-guestnet/{name}"
        assert f"/run/core-agent-{name}" in qube.machine.run("cat", f"{script}.qubes-core-agent")


def test_the_uplink_goes_down_when_its_own_unit_is_stopped(qube: Qube) -> None:
    """By systemctl, and by the script, whose arguments are the same."""
    if not qube.kind.uplink:
        return
    for down, up in (
        (("systemctl", "stop", UPLINK), ("systemctl", "start", UPLINK)),
        ((SCRIPTS[0], "remove", "eth0"), (SCRIPTS[0], "add", "eth0")),
    ):
        qube.machine.run(*down)
        assert not qube.machine.inside.is_up("eth0")
        qube.machine.run(*up)
        eventually(qube.configured, LONG, "the network", qube.told)
    assert qube.machine.inside.run(SCRIPTS[0], "nonsense", "eth0", check=False).returncode == 2
    qube.machine.unplug()
    eventually(lambda: qube.machine.property(UPLINK, "ActiveState") == "inactive", LONG, "its end", qube.told)
    qube.machine.plug()
    qube.wire()
    eventually(qube.configured, LONG, "the network of another interface", qube.told)
    eventually(lambda: qube.machine.property(UPLINK, "ActiveState") == "active", LONG, "its unit", qube.told)


@pytest.mark.behaviour("B17")
@pytest.mark.behaviour("B138")
@pytest.mark.behaviour("B154")
def test_interfaces_of_qubes_are_hardened_if_the_flag_is_set(qube: Qube) -> None:
    if qube.behind is None:
        return
    for key, value in HARDENED.items():
        name = f"/proc/sys/{key.replace('.', '/')}"
        found = {device: qube.machine.run("cat", name.replace("*", device)) for device in ("all", qube.behind.vif)}
        expected = "1" if key == USERS_CHOICE.replace("\\", "") else value
        if qube.kind.hardened:
            assert found == dict.fromkeys(found, expected), key
        elif key.endswith(("send_redirects", "drop_unicast_in_l2_multicast")):
            assert expected not in found.values(), key
    if not qube.kind.hardened:
        # dom0 switches it on for a qube that runs: it counts from the next interface on.
        qube.machine.write("/qubes-service/harden-network-interfaces", "1")
        another = Client(qube.machine, 5)
        qube.stack.callback(another.close)
        another.plug()
        another.hotplug()
        assert qube.machine.run("cat", f"/proc/sys/net/ipv4/conf/{another.vif}/send_redirects") == "0"
        another.unplug()


@pytest.mark.behaviour("B101")
def test_forwarding_follows_its_unit(qube: Qube) -> None:
    if not qube.kind.provides:
        return
    qube.systemctl(f"stop {NETWORK}")
    assert qube.forwards() == ["0", "0"]
    qube.systemctl(f"restart {FIREWALL}")
    assert qube.forwards() == ["0", "0"]
    qube.systemctl(f"start {NETWORK}")
    qube.machine.run("systemctl", "restart", "qubes-guestnet*", check=False)  # that of the hold is refused
    assert qube.forwards()[0] == "1"


@pytest.mark.behaviour("B79")
@pytest.mark.behaviour("B153")
def test_the_firewall_is_reloaded_and_not_restarted(qube: Qube) -> None:
    if not qube.kind.provides:
        return
    assert qube.behind is not None
    before = qube.noted(RAN)
    commit((qube.behind,), f"action=accept dst4={OUTSIDE}/32")
    with qube.behind.every_packet_returns(OUTSIDE, "reload of the firewall"):
        qube.systemctl(f"try-reload-or-restart {FIREWALL}")
    assert not qube.behind.inside.reaches(ENTRIES["/qubes-gateway"], within_s=0.5)
    assert qube.noted(RAN) == before
    commit((qube.behind,))
    assert qube.machine.property(FIREWALL, "ActiveState") == "active"


@pytest.mark.behaviour("B155")
def test_without_the_firewall_nothing_is_forwarded(qube: Qube) -> None:
    if not qube.kind.provides:
        return
    assert qube.behind is not None
    qube.systemctl(f"stop {FIREWALL}")
    assert qube.forwards() == ["0", "0"]
    assert not qube.behind.inside.reaches(OUTSIDE, within_s=1)
    qube.systemctl(f"restart {UNIT}")
    assert qube.forwards() == ["0", "0"]
    assert "error: firewall-not-ready: " in qube.machine.run("qubes-guestnet", "check", check=False)
    said = qube.machine.run("qubes-guestnet", "status", check=False)
    assert "forwards nothing (qubes-firewall.service is not ready)" in said
    qube.systemctl(f"restart {NETWORK}")
    assert qube.forwards() == ["0", "0"]
    qube.systemctl(f"start {FIREWALL} {NETWORK}")
    eventually(lambda: qube.forwards()[0] == "1", LONG, "forwarding", qube.told)
    eventually(lambda: qube.behind.reaches(OUTSIDE), LONG, "a packet through", qube.told)


@pytest.mark.behaviour("B65")
@pytest.mark.behaviour("B73")
@pytest.mark.behaviour("B155")
def test_a_restart_or_a_crash_of_the_firewall_loses_nothing_and_lets_nothing_pass(qube: Qube) -> None:
    """The tables stay, with users' rules, while the scripts run again; in the middle of that the unit is killed."""
    machine, behind = qube.machine, qube.behind
    if behind is None:
        return
    with (
        at_most_arrive(0, behind.inside.prefix, REFUSED, machine.router.prefix),
        behind.every_packet_returns(OUTSIDE, "restart of the firewall"),
    ):
        ran = len(qube.noted(RAN))
        qube.systemctl(f"restart {FIREWALL}")
        assert len(qube.noted(RAN)) == ran + 1
        qube.systemctl(f"kill --signal=KILL {FIREWALL}")  # in between it has no process
        qube.systemctl(f"--no-block restart {FIREWALL}")
        eventually(lambda: len(qube.noted(RAN)) == ran + 2, LONG, "a start", qube.told)
        qube.systemctl(f"kill --signal=KILL {FIREWALL}")
        eventually(lambda: machine.property(FIREWALL, "SubState") == "auto-restart", LONG, "its end", qube.told)
        eventually(lambda: machine.property(FIREWALL, "ActiveState") == "active", LONG, "its return", qube.told)
        assert qube.forwards()[0] == "1"


@pytest.mark.behaviour("B155")
@pytest.mark.parametrize("way", ["delete table ip qubes-firewall", "flush ruleset"])
def test_when_its_rules_go_forwarding_ends_until_the_scripts_have_run_again(qube: Qube, way: str) -> None:
    """Packets pass until the agent hears of it: some ms, more under load."""
    if (behind := qube.behind) is None:
        return
    ran = len(qube.noted(RAN))
    qube.machine.run("nft", way)
    eventually(lambda: qube.forwards() == ["0", "0"], LONG, "the end of forwarding", qube.told)
    with at_most_arrive(0, behind.inside.prefix, REFUSED, qube.machine.router.prefix):
        eventually(lambda: behind.reaches(OUTSIDE), LONG, "a packet through", qube.told)
    assert len(qube.noted(RAN)) > ran


def test_an_upgrade_loses_nothing(qube: Qube, following: Path) -> None:
    target = qube.give(following)
    with qube.nothing_is_lost("upgrade"):
        said = qube.dpkg("--install", target)
    assert "Version: 9.0" in qube.machine.run("dpkg", "--status", "qubes-guestnet"), said
    assert qube.configured()
    assert qube.forwards()[0] == ("1" if qube.kind.provides else "0")


def test_an_upgrade_of_core_agent_changes_nothing(qube: Qube, tmp_path: Path) -> None:
    """Of its script in /etc, a configuration file, its new version is put aside without a question."""
    target = qube.give(packages.core_agent(tmp_path, "4.3.1"))
    with qube.nothing_is_lost("upgrade of core-agent"):
        said = qube.dpkg("--install", target)
    for script in SCRIPTS:
        assert "/qubes-guestnet/" in qube.machine.run("readlink", "-f", script), said
        assert "# 4.3.1" in qube.machine.run("cat", f"{script}.qubes-core-agent").splitlines()


@pytest.mark.behaviour("B152")
@pytest.mark.behaviour("B157")
def test_core_agent_s_package_is_purged_and_returns(qube: Qube, core_agent: Path) -> None:
    with qube.nothing_is_lost("purge of core-agent", forwarded=False):
        said = qube.dpkg("--purge", "qubes-core-agent-networking")
    assert qube.configured(), said
    # With the firewall goes what it let pass.
    assert qube.forwards() == ["0", "0"]
    for script in SCRIPTS:
        assert qube.machine.run("readlink", "-f", script) == f"/usr/libexec/qubes-guestnet/{Path(script).name}"
    target = qube.give(core_agent)
    with qube.nothing_is_lost("core-agent returns", forwarded=False):
        qube.dpkg("--install", target)
    assert qube.configured()
    eventually(lambda: qube.forwards()[0] == ("1" if qube.kind.provides else "0"), LONG, "forwarding", qube.told)
    assert qube.machine.run("systemctl", "--failed", "--no-legend", "--plain") == "", qube.told()


@pytest.mark.behaviour("B145", "B152")
def test_removal_loses_nothing_and_leaves_nothing_dangling(qube: Qube) -> None:
    with every_packet_returns(qube.machine.network, qube.target, "removal"):
        said = qube.dpkg("--remove", "qubes-guestnet")
    assert "warning" not in said, said
    assert qube.configured()
    for script in SCRIPTS:
        assert f"/run/core-agent-{Path(script).name}" in qube.machine.run("cat", script)
        assert qube.machine.run("sh", "-c", f"ls {script}.* 2>/dev/null || :") == ""
    for unit in [*ENABLED, UPLINK]:
        assert "guestnet" not in qube.machine.property(unit, "DropInPaths"), unit
        assert "guestnet" not in qube.machine.property(unit, "ExecStart"), unit
    if qube.kind.provides:
        assert qube.forwards() == ["0", "0"]
        assert "chain antispoof" in qube.machine.run("nft", "list", "table", "ip", "qubes")
    dangling = qube.machine.run("sh", "-c", "find /etc /usr/lib /lib/systemd -xtype l -name '*qubes*'")
    assert dangling == ""
    assert qube.machine.run("sh", "-c", "find /etc/systemd /lib/systemd -name '*guestnet*'") == ""


@pytest.mark.behaviour("B150")
def test_after_removal_it_boots_with_core_agent_alone(qube: Qube) -> None:
    qube.reboot()
    machine = qube.machine
    assert machine.run("systemctl", "--failed", "--no-legend", "--plain") == "", qube.told()
    qube.wire()
    eventually(qube.configured, LONG, "the network", qube.told)
    if qube.kind.uplink:
        assert machine.property("network-pre.target", "ActiveState") == "active"
        assert "add eth0" in machine.run("cat", "/run/core-agent-setup-ip").splitlines()
        eventually(lambda: Oracle(machine.network).reaches(SERVER), LONG, "a packet", qube.told)


@pytest.mark.behaviour("B65", "B152", "B157")
def test_installed_into_a_running_qube_and_purged_with_the_other_one_first(qube: Qube, built: Path) -> None:
    """core-agent's default route was there before ours, and stays in force: the owner may want it. It is logged."""
    machine = qube.machine
    target = qube.give(built)
    with every_packet_returns(machine.network, qube.target, "install"):
        said = qube.dpkg("--install", target)
    assert qube.configured(), said
    check_takeover(qube)
    if qube.kind.uplink and not qube.kind.networkmanager:
        told = machine.run("qubes-guestnet", "check", check=False)
        assert "note: second-default-route: eth0" in told
        machine.run(*told.partition("second-default-route")[2].partition("if unwanted: ")[2].splitlines()[0].split())
        assert [route.get("gateway") for route in machine.inside.default_routes()] == [None]
    with every_packet_returns(machine.network, qube.target, "removal of the other one"):
        said = qube.dpkg("--remove", "qubes-core-agent-networking")
    if qube.kind.uplink:  # links in /etc that it leaves have network-pre.target require its units still
        machine.run("systemctl", "restart", UPLINK)
        assert machine.property(UPLINK, "FragmentPath").startswith("/run/")
        assert qube.configured()
    with every_packet_returns(machine.network, qube.target, "purge"):
        said = qube.dpkg("--purge", "qubes-core-agent-networking") + qube.dpkg("--purge", "qubes-guestnet")
    places = "! -path '/var/*' ! -path '/opt/*' ! -path '/proc/*' ! -path '/sys/*'"
    scripts = " ".join(f"-o -path '*{script}*'" for script in SCRIPTS)
    left = machine.run("sh", "-c", f"find / -xdev '(' -name '*guestnet*' {scripts} ')' {places}")
    assert left == "", said
    assert machine.run("dpkg-divert", "--list", "*qubes*") == ""
