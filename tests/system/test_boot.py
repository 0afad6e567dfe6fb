# SPDX-License-Identifier: GPL-2.0-or-later
"""A qube boots, lives, is upgraded, and loses our package again; one machine, in the order of this file."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.machines.core_agent import SCRIPTS
from tests.support.machines.kinds import ENTRIES
from tests.support.machines.machine import APT, MAC, Machine, Mounts

UNIT = "qubes-guestnet.service"
UPLINK = "qubes-network-uplink@eth0.service"
PROVIDER = ("qubes-firewall.service", "qubes-network.service")
PUBLIC = ("qubes-iptables.service", *PROVIDER, "qubes-network-uplink.service")
ADDRESSES = {"10.137.0.7/32", "fd09:24ef:4179::a89:7/128"}


# The first that may use the network, and it notes what it finds.
FIRST_USER = """\
[Unit]
After=network.target

[Service]
Type=oneshot
ExecStart=/bin/sh -c '{ ip -oneline address; ip route; cat /etc/resolv.conf; } >/run/first-user'
"""


@pytest.fixture(scope="module")
def qube(mounts: Mounts, base: Path, plain: Path, installed: Path, boot) -> Machine:
    root = mounts.root(base, plain, installed)
    units = f"{root}/tree/etc/systemd/system"
    mounts.run(f"cat >{units}/first-user.service <<'END'\n{FIRST_USER}END\nmkdir -p {units}/multi-user.target.wants")
    mounts.run(f"ln -s ../first-user.service {units}/multi-user.target.wants/")
    return boot(root, "qube", ENTRIES)


def configured(qube: Machine, name: str = "eth0", addresses: set[str] = ADDRESSES) -> bool:
    found = qube.inside.addresses(name)
    defaults = [route for route in qube.inside.default_routes() if route["dev"] == name]
    return found == addresses and len(defaults) == 1 and qube.inside.is_up(name)


def pid(qube: Machine) -> int:
    return int(qube.property(UNIT, "MainPID"))


@contextmanager
def nothing_is_lost(qube: Machine, notes: Path) -> Iterator[None]:
    """The kernel itself is the witness that no address, route or link was taken away meanwhile, not for a moment."""
    # Not in the machine's process namespace: there it would be left over, and hold up the shutdown.
    command = ["nsenter", "-t", str(qube.leader), "--net", "ip", "-oneline", "monitor", "address", "route", "link"]
    with notes.open("w") as file:
        witness = subprocess.Popen(command, stdout=file)

    def reports(address: str) -> bool:
        qube.inside.run("ip", "route", "replace", f"{address}/32", "dev", "lo")
        qube.inside.run("ip", "route", "delete", f"{address}/32", "dev", "lo")
        return address in notes.read_text()

    try:
        eventually(lambda: reports("192.0.2.1"), what="a witness that listens")
        yield
        eventually(lambda: reports("192.0.2.2"), what="a witness that listened to the end")
    finally:
        witness.terminate()
        witness.wait()
    lines = [line for line in notes.read_text().splitlines() if "192.0.2." not in line]
    assert [line for line in lines if line.startswith("Deleted") or "state DOWN" in line] == []


@pytest.mark.behaviour("B97")
def test_after_the_boot_the_network_is_there(qube: Machine) -> None:
    assert qube.run("systemctl", "--failed", "--no-legend", "--plain") == "", qube.jobs()
    assert configured(qube), qube.journal(UNIT)
    (route,) = qube.inside.default_routes()
    assert (route["dev"], route["protocol"], route["scope"]) == ("eth0", "qubes", "link")
    assert [entry.get("gateway") for entry in qube.inside.default_routes(6)] == ["fd09:24ef:4179::a8a:102"]
    resolver = qube.run("cat", "/etc/resolv.conf").splitlines()
    assert [line for line in resolver if line.startswith("nameserver")] == [
        "nameserver 10.139.1.1",
        "nameserver 10.139.1.2",
    ]
    found = json.loads(qube.run("sh", "-c", "qubes-guestnet check --json || :"))
    # This world has no name servers.
    assert {finding["code"] for finding in found if finding["severity"] == "error"} <= {"dns-unreachable"}


@pytest.mark.behaviour("B97")
def test_network_target_is_reached_after_the_interface_is_configured(qube: Machine) -> None:
    ready = int(qube.property(UNIT, "ActiveEnterTimestampMonotonic"))
    assert ready <= int(qube.property("network.target", "ActiveEnterTimestampMonotonic"))
    seen = qube.run("cat", "/run/first-user")
    for wanted in (*ADDRESSES, "default dev eth0", "nameserver 10.139.1.1"):
        assert wanted in seen


@pytest.mark.behaviour("B137")
def test_units_that_others_know_are_there_without_core_agent(qube: Machine) -> None:
    """dom0 and users ask by these names."""
    for unit in PUBLIC:
        assert qube.inside.run("systemctl", "--quiet", "is-enabled", unit, check=False).returncode == 0, unit
        assert "/usr/bin/qubes-guestnet" in qube.property(unit, "ExecStart"), unit
    for unit in ("qubes-iptables.service", "qubes-network-uplink.service", UPLINK):
        eventually(lambda unit=unit: qube.property(unit, "ActiveState") == "active", 60, unit, qube.jobs)
    # Their flags are not set.
    assert [qube.property(unit, "ConditionResult") for unit in PROVIDER] == ["no", "no"]


@pytest.mark.behaviour("B97")
@pytest.mark.behaviour("B98")
def test_the_order_of_units(qube: Machine) -> None:
    after = qube.property(UNIT, "After").split()
    assert {"qubes-db.service", "qubes-sysinit.service", "network-pre.target"} <= set(after)
    # So it is stopped after everything that uses the network.
    assert {"network.target", "shutdown.target"} <= set(qube.property(UNIT, "Before").split())


@pytest.mark.behaviour("B104")
def test_one_process_stays(qube: Machine) -> None:
    groups = f"cd /sys/fs/cgroup; cat systemd/system.slice/{UNIT}/cgroup.procs || cat system.slice/{UNIT}/cgroup.procs"
    assert qube.run("sh", "-c", groups).split() == [str(pid(qube))]


def test_a_watch_changes_the_network(qube: Machine) -> None:
    qube.write("/qubes-ip", "10.137.0.8")
    eventually(lambda: configured(qube, addresses={"10.137.0.8/32", "fd09:24ef:4179::a89:7/128"}), what="new address")
    qube.write("/qubes-ip", "10.137.0.7")
    eventually(lambda: configured(qube), what="the old address")


def test_resolv_conf_is_put_back_from_within_the_sandbox(qube: Machine) -> None:
    ours = qube.run("cat", "/etc/resolv.conf")
    qube.run("sh", "-c", "echo nameserver 192.0.2.53 >/etc/resolv.conf")
    eventually(lambda: qube.run("cat", "/etc/resolv.conf") == ours, what="our file")
    # As bind-dirs of Qubes OS does it, after the agent has got its own view of the file system.
    qube.run("sh", "-c", "echo nameserver 192.0.2.53 >/var/bound; mount --bind /var/bound /etc/resolv.conf")
    qube.run("systemctl", "reload", UNIT)
    eventually(
        lambda: qube.run("cat", "/var/bound") == ours, what="our file, in place", trouble=lambda: qube.journal(UNIT)
    )
    qube.run("umount", "/etc/resolv.conf")


def test_the_interface_goes_and_returns(qube: Machine) -> None:
    qube.unplug()
    assert qube.inside.link("eth0") is None
    qube.plug()
    eventually(lambda: configured(qube), what="network again", trouble=lambda: qube.journal(UNIT))


@pytest.mark.behaviour("B8")
def test_any_name_of_the_interface(qube: Machine) -> None:
    qube.unplug()
    qube.plug("enX0")
    eventually(lambda: configured(qube, "enX0"), what="network", trouble=lambda: qube.journal(UNIT))
    qube.unplug()
    qube.plug()
    eventually(lambda: configured(qube), what="network", trouble=lambda: qube.journal(UNIT))


@pytest.mark.behaviour("B8")
def test_our_link_file_keeps_the_name_and_the_address(qube: Machine) -> None:
    """With the driver that is here beside Xen's; there udev would call it enX0."""
    copy = "/run/systemd/network/00-test.link"
    source = "/lib/systemd/network/80-qubes-guestnet.link"
    qube.run("sh", "-euc", f"mkdir -p /run/systemd/network; sed 's/=vif/=veth vif/' {source} >{copy}")
    told = qube.inside.run("udevadm", "test-builtin", "net_setup_link", "/sys/class/net/eth0")
    assert f"ID_NET_LINK_FILE={copy}" in told.stdout + told.stderr
    assert "gnoring" not in told.stderr  # what systemd says of a key or value that it does not know
    qube.unplug()
    qube.plug()
    eventually(lambda: configured(qube), what="network", trouble=lambda: qube.journal(UNIT))
    link = qube.inside.link("eth0")
    assert link is not None
    assert link["address"] == MAC
    assert link.get("altnames", []) == []
    qube.run("rm", copy)


def test_a_reload_repairs_and_keeps_the_process(qube: Machine) -> None:
    before = pid(qube)
    qube.run("systemctl", "reload", UNIT)
    qube.inside.run("ip", "address", "delete", "10.137.0.7/32", "dev", "eth0")
    eventually(lambda: configured(qube), what="repair", trouble=lambda: qube.journal(UNIT))
    assert pid(qube) == before


def test_a_restart_loses_nothing(qube: Machine, tmp_path: Path) -> None:
    before = pid(qube)
    with nothing_is_lost(qube, tmp_path / "witness"):
        qube.run("systemctl", "restart", UNIT)
    assert pid(qube) not in (0, before)
    assert configured(qube)


def test_a_killed_agent_comes_back_and_loses_nothing(qube: Machine, tmp_path: Path) -> None:
    before = pid(qube)
    with nothing_is_lost(qube, tmp_path / "witness"):
        qube.run("kill", "-KILL", str(before))
        eventually(lambda: pid(qube) not in (0, before), 30, "another process")
        eventually(lambda: qube.property(UNIT, "ActiveState") == "active", 30, "a ready agent")
    qube.write("/qubes-ip", "10.137.0.9")
    eventually(lambda: "10.137.0.9/32" in qube.inside.addresses("eth0"), what="a change that it serves")
    qube.write("/qubes-ip", "10.137.0.7")
    eventually(lambda: configured(qube), what="the old address")


@pytest.mark.behaviour("B62")
@pytest.mark.parametrize("way", ["stop", "kill"])
def test_offload_does_not_outlive_the_agent(qube: Machine, way: str) -> None:
    """Whichever program loaded it. Here its table alone, for this kernel has no flowtables."""
    before = pid(qube)
    assert before > 0
    qube.run("nft", "add", "table", "inet", "qubes-offload")
    if way == "stop":
        qube.run("systemctl", "stop", UNIT)
        assert "qubes-offload" not in qube.run("nft", "list", "tables")
        qube.run("systemctl", "start", UNIT)
    else:
        qube.run("kill", "-KILL", str(before))
        eventually(lambda: pid(qube) not in (0, before), 30, "another process")
        assert "qubes-offload" not in qube.run("nft", "list", "tables")
    eventually(lambda: qube.property(UNIT, "ActiveState") == "active", 30, "a ready agent")
    assert "qubes-offload" not in qube.journal(UNIT)


def test_a_hanging_agent_is_replaced(qube: Machine, tmp_path: Path) -> None:
    """By the watchdog, whose 30 s are 1 s here."""
    drop_in = f"/run/systemd/system/{UNIT}.d"
    qube.run("sh", "-euc", f"mkdir {drop_in}; printf '[Service]\nWatchdogSec=1s\n' >{drop_in}/soon.conf")
    qube.run("systemctl", "daemon-reload")
    qube.run("systemctl", "restart", UNIT)
    before = pid(qube)
    with nothing_is_lost(qube, tmp_path / "witness"):
        qube.run("kill", "-STOP", str(before))
        eventually(lambda: pid(qube) not in (0, before), 60, "another process", lambda: qube.journal(UNIT))
        eventually(lambda: qube.property(UNIT, "ActiveState") == "active", 30, "a ready agent")
    qube.run("rm", "-r", drop_in)
    qube.run("systemctl", "daemon-reload")
    qube.run("systemctl", "restart", UNIT)


def test_the_sandbox_holds(qube: Machine) -> None:
    assert qube.exposure(UNIT) <= 1.5
    capabilities = qube.run("grep", "Cap", f"/proc/{pid(qube)}/status")
    net_admin = f"{1 << 12:016x}"
    assert f"CapBnd:\t{net_admin}" in capabilities
    assert f"CapEff:\t{net_admin}" in capabilities
    read_only = ["nsenter", "-t", str(pid(qube)), "--mount", "touch", "/usr/touched"]
    assert "Read-only" in qube.run(*read_only, check=False)


@pytest.mark.behaviour("B32")
def test_no_unit_complains_and_no_cycle(qube: Machine) -> None:
    ours = [UNIT, "qubes-guestnet-rules.service", "qubes-guestnet-wait-uplink.service"]
    told = qube.run("systemd-analyze", "verify", "--man=no", *ours, "default.target", check=False)
    assert [line for line in told.splitlines() if "guestnet" in line or "cycle" in line.lower()] == []


def test_a_user_of_the_barrier_gets_it(qube: Machine) -> None:
    """What is promised but not attached yet holds up network-online.target, and nothing else."""
    waiting = "qubes-guestnet-wait-uplink.service"
    # A timer of the image, as apt-daily's, may have asked for it since the boot.
    qube.run("systemctl", "stop", "network-online.target", waiting)
    qube.unplug()
    qube.run("systemctl", "start", "--no-block", "network-online.target")
    eventually(lambda: qube.property(waiting, "ActiveState") == "activating", what="waiting")
    assert qube.property("network-online.target", "ActiveState") == "inactive"
    qube.plug()
    eventually(lambda: qube.property("network-online.target", "ActiveState") == "active", 60, "network-online.target")
    assert configured(qube)


def install(qube: Machine, *arguments: str) -> str:
    return qube.run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *APT, *arguments)


def test_an_upgrade_loses_nothing(qube: Machine, following: Path, tmp_path: Path) -> None:

    target = "/var/tmp/following.deb"
    with following.open("rb") as package:
        subprocess.run([*qube.inside.prefix, "sh", "-c", f"cat >{target}"], stdin=package, check=True)
    before = pid(qube)
    with nothing_is_lost(qube, tmp_path / "witness"):
        install(qube, "install", target)
    assert "Version: 9.0" in qube.run("dpkg", "--status", "qubes-guestnet")
    assert pid(qube) not in (0, before)
    assert configured(qube)
    qube.unplug()
    qube.plug()
    eventually(lambda: configured(qube), what="network of the new version", trouble=lambda: qube.journal(UNIT))


def test_removal_leaves_the_network_and_purge_no_trace(qube: Machine, tmp_path: Path) -> None:
    with nothing_is_lost(qube, tmp_path / "witness"):
        install(qube, "remove", "qubes-guestnet")
        assert qube.property(UNIT, "LoadState") == "not-found"
        install(qube, "purge", "qubes-guestnet")
    assert configured(qube)
    scripts = " ".join(f"-o -path '*{script}*'" for script in SCRIPTS)
    traces = f"find / -xdev '(' -name '*guestnet*' {scripts} ')'"
    left = qube.run("sh", "-c", f"{traces} ! -path '/opt/*' ! -path '/var/tmp/*' ! -path '/proc/*' ! -path '/sys/*'")
    assert [line for line in left.splitlines() if not line.startswith(("/var/log", "/var/lib/dpkg/diversions"))] == []
    assert qube.run("dpkg-divert", "--list", "*qubes*") == ""
    assert qube.run("systemctl", "--failed", "--no-legend", "--plain") == ""
