# SPDX-License-Identifier: GPL-2.0-or-later
"""The base rules know an uplink from its first moment, also when another program brings it up before the agent does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.machines.machine import Machine, Mounts
from tests.system.test_boot import ENTRIES, UNIT, configured

OURS = (UNIT, "qubes-network-uplink@eth0.service")  # what gives the group besides udev
# Of a user: udev runs it once the rules of all files were read, as it tells NetworkManager then.
RULE = 'ACTION=="add", SUBSYSTEM=="net", RUN+="/bin/sh -c \'ip link set %k up; ip -json link show %k >/run/seen-%k\'"'


@pytest.fixture(scope="module")
def qube(mounts: Mounts, base: Path, plain: Path, installed: Path) -> Iterator[Machine]:
    root = mounts.root(base, plain, installed)
    mounts.run(f"""cat >{root}/tree/etc/udev/rules.d/10-user.rules <<'END'\n{RULE}\nEND""")
    machine = Machine(mounts, root, "group-first", ENTRIES, plugged=False)
    try:
        yield machine
    finally:
        machine.close()


def seen(machine: Machine, name: str) -> tuple[str, bool]:
    """Group of an interface, and whether it was up, when udev told of it."""
    text = eventually(lambda: machine.run("cat", f"/run/seen-{name}", check=False).startswith("[") and "seen", 20)
    assert text
    (link,) = json.loads(machine.run("cat", f"/run/seen-{name}"))
    return str(link["group"]), "UP" in link["flags"]


@pytest.mark.behaviour("B115")
@pytest.mark.behaviour("B116")
@pytest.mark.behaviour("B121")
def test_an_uplink_has_its_group_before_anybody_brings_it_up(qube: Machine) -> None:
    machine = qube
    machine.run("systemctl", "mask", "--runtime", "--now", *OURS)
    machine.plug()
    assert seen(machine, "eth0") in (("1", True), ("uplink", True))
    # An interface of a qube behind this one is none, and nor is what has another driver.
    machine.inside.run("ip", "link", "add", "vif9.0", "type", "veth", "peer", "name", "vif9.1")
    machine.inside.run("ip", "link", "add", "br0", "type", "bridge")
    for name in ("vif9.0", "br0"):
        assert seen(machine, name) in (("0", True), ("default", True)), name
    assert machine.property(UNIT, "ActiveState") == "inactive"
    # A group of another program stays, and the agent makes its own interface what it has to be.
    machine.run("udevadm", "settle")  # what udev has to do yet is over
    machine.inside.run("ip", "link", "set", "eth0", "group", "7")
    machine.run("udevadm", "trigger", "--action=add", "/sys/class/net/eth0")
    machine.run("udevadm", "settle")
    (link,) = json.loads(machine.inside.run("ip", "-json", "link", "show", "eth0").stdout)
    assert str(link["group"]) == "7"
    machine.run("systemctl", "unmask", "--runtime", *OURS)
    machine.run("systemctl", "start", UNIT)
    eventually(lambda: configured(machine), 20, "network", lambda: machine.journal(UNIT))
    (link,) = json.loads(machine.inside.run("ip", "-json", "link", "show", "eth0").stdout)
    assert str(link["group"]) in ("1", "uplink")
