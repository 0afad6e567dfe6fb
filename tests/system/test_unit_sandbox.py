# SPDX-License-Identifier: GPL-2.0-or-later
"""From within the sandbox of the unit: a user's hook as a unit of its own, and sysctl.d before the link goes up."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.machines.machine import MAC, Machine, Mounts

UNIT = "qubes-guestnet.service"
ENTRIES = {
    "/qubes-mac": MAC,
    "/qubes-ip": "10.137.0.7",
    "/qubes-gateway": "10.138.1.2",
    "/qubes-primary-dns": "10.139.1.1",
    "/qubes-netvm-network": "10.137.0.0",
}
# What the agent's sandbox forbids.
HOOK = "#!/bin/sh\necho ran > /usr/hook-ran\ncat /proc/self/cgroup >> /usr/hook-ran\n"

HOOK_PATH, MARK = "/rw/config/qubes-ip-change-hook", "/run/qubes-guestnet/ended-qubes-ip-change-hook"
VPN = "192.0.2.53"


@pytest.fixture(scope="module")
def qube(mounts: Mounts, base: Path, plain: Path, installed: Path, boot) -> Machine:
    return boot(mounts.root(base, plain, installed), "others", ENTRIES)


@pytest.mark.behaviour("B14")
def test_a_hook_runs_outside_the_sandbox(qube: Machine) -> None:
    qube.run("sh", "-c", f"mkdir -p /rw/config; printf '%s' '{HOOK}' > /rw/config/qubes-ip-change-hook")
    qube.run("chmod", "+x", "/rw/config/qubes-ip-change-hook")
    qube.write("/qubes-ip", "10.137.0.8")
    read = lambda: qube.run("sh", "-c", "cat /usr/hook-ran || :", check=False)  # noqa: E731
    eventually(lambda: "ran" in read(), trouble=lambda: qube.journal(UNIT))
    eventually(lambda: "qubes-guestnet-hook-" in read(), trouble=read)


@pytest.mark.behaviour("B124")
@pytest.mark.parametrize(
    ("address", "end"), [(21, "exit 0"), (22, "exit 1"), (23, "sleep 300 & exit 0")], ids=["well", "failed", "a daemon"]
)
def test_what_is_written_after_a_hook_has_ended_is_not_the_hooks(qube: Machine, address: int, end: str) -> None:
    """Systemd marks the end: of the hook, not of what it leaves behind."""
    named = lambda: qube.run("sed", "-n", "s/^nameserver //p", "/etc/resolv.conf").split()  # noqa: E731
    hook = f"#!/bin/sh\necho nameserver {VPN} >/etc/resolv.conf\nsleep 1.5\n{end}\n"
    qube.run("sh", "-c", f"mkdir -p /rw/config; printf '%s' '{hook}' >{HOOK_PATH}; chmod +x {HOOK_PATH}")
    qube.write("/qubes-ip", f"10.137.0.{address}")
    eventually(lambda: named() == [VPN], what="the hook", trouble=lambda: qube.journal(UNIT))
    eventually(lambda: qube.run("sh", "-c", f"ls {MARK} || :", check=False) == MARK, what="its end", trouble=qube.jobs)
    time.sleep(1.1)  # what is written within a second is taken for the hook's
    qube.run("systemctl", "reload", UNIT)
    assert named() == [VPN]
    qube.run("sh", "-c", "echo nameserver 9.9.9.9 >/etc/resolv.conf")
    eventually(lambda: named() == ["10.139.1.1"], what="dom0's server", trouble=lambda: qube.journal(UNIT))
    qube.run("rm", HOOK_PATH)


@pytest.mark.behaviour("B17")
def test_sysctl_d_is_applied_from_within_the_sandbox(qube: Machine) -> None:
    qube.run("sh", "-c", "mkdir -p /etc/sysctl.d; echo net.ipv4.conf.eth0.arp_announce=2 > /etc/sysctl.d/90-user.conf")
    qube.run("qubes-guestnet", "uplink", "remove", "eth0")
    qube.run("sh", "-c", "echo 0 > /proc/sys/net/ipv4/conf/eth0/arp_announce")
    qube.run("rm", "/run/qubes-guestnet/owned")  # as new, so that the agent and not the command takes it up
    qube.run("systemctl", "reload", UNIT)
    wanted = lambda: qube.run("cat", "/proc/sys/net/ipv4/conf/eth0/arp_announce").strip()  # noqa: E731
    eventually(lambda: wanted() == "2", trouble=lambda: qube.journal(UNIT))
    assert "systemd-sysctl" not in qube.journal(UNIT)
