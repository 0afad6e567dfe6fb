# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent is killed between making a part of a vif, or of a profile, and recording it; the next one goes on."""

from __future__ import annotations

import json

import pytest

from qubes_guestnet.lab.daemons import Daemons
from tests.netns.test_networkmanager import FOLDER, PROFILE, UUID, soon_managed, start
from tests.support.eventually import eventually
from tests.support.faults.thrown import killing, throw, thrown
from tests.support.qubes.appvm import IP, AppVm
from tests.support.qubes.provider import ENTRIES6, Client, Provider

pytestmark = pytest.mark.behaviour("B148")

SYSTEM = "qubes_guestnet.system"
MADE = [
    (f"{SYSTEM}.vif_records:Folder.save", False),
    (f"{SYSTEM}.vif_records:Folder.save", True),
    (f"{SYSTEM}.procfs_sysctl:write", True),
    (f"{SYSTEM}.netlink.rtnl:Kernel.apply", False),
    (f"{SYSTEM}.netlink.rtnl:Kernel.apply", True),
    (f"{SYSTEM}.nft.encode:Transaction.commit", False),
    (f"{SYSTEM}.nft.encode:Transaction.commit", True),
    (f"{SYSTEM}.conntrack:purge", False),
]
UNMADE = [
    (f"{SYSTEM}.vif_records:Folder.remove", False),
    (f"{SYSTEM}.vif_records:Folder.remove", True),
    (f"{SYSTEM}.netlink.rtnl:Kernel.apply", True),
    (f"{SYSTEM}.nft.encode:Transaction.commit", False),
    (f"{SYSTEM}.nft.encode:Transaction.commit", True),
    (f"{SYSTEM}.conntrack:purge", True),
]


def ids(cases: list[tuple[str, bool]]) -> list[str]:
    return [f"{'after' if after else 'before'} {place.rpartition(':')[2]}" for place, after in cases]


def agent(host: Provider, place: str, after: bool) -> Client:
    """An agent that can be killed, and a qube behind it that has nothing to do with it."""
    host.hook('echo "$@" >>/run/lab/hooks')
    host.qube.start_agent(env=killing(host.qube, place, after=after))
    other = host.attach(9)
    eventually(lambda: host.works(other), trouble=host.trouble)
    return other


def restarted(host: Provider) -> None:
    assert thrown(host.qube, 10.0), "it does not come by this place"
    eventually(lambda: not host.agent.running, trouble=host.trouble)
    host.qube.start_agent()


def traces(host: Provider, behind: Client) -> list[str]:
    """Where a vif is still known."""
    sets = [(name, family) for family in ("ip", "ip6") for name in ("allowed", "downstream")]
    found = [f"{family} {name}" for name, family in sets if any(
        behind.vif in element or element in (behind.ip, behind.ip6) for element in host.elements(name, family)
    )]  # fmt: skip
    found += [behind.vif] if behind.vif in host.qube.run("ls", "-R", "/run/qubes-guestnet").stdout.split() else []
    routes = host.oracle.run("ip", "route").stdout + host.oracle.run("ip", "-6", "route").stdout
    return found + (["routes"] if behind.vif in routes else [])


def hooked(host: Provider, action: str, behind: Client) -> int:
    """How often the user's hook was called for its first address."""
    lines = host.qube.read("/run/lab/hooks").splitlines()
    return sum(line.startswith(f"{action} {behind.vif} ") and line.endswith(f" {behind.ip}") for line in lines)


@pytest.mark.parametrize(("place", "after"), MADE, ids=ids(MADE))
def test_a_vif_is_made_whole_whenever_its_agent_was_killed(place: str, after: bool) -> None:
    host = Provider(ENTRIES6, agent=False)
    other = agent(host, place, after)
    behind = host.plug(5)
    throw(host.qube)
    host.call("online", behind)
    restarted(host)
    host.online(behind)  # as a toolstack that was told of a failure
    eventually(lambda: host.works(behind) and host.works(behind, version=6), trouble=host.trouble)
    assert host.works(other)
    assert hooked(host, "online", behind) <= 1
    found = json.loads(host.qube.guestnet("status", "--json", check=False).stdout)["provider"]
    assert [(vif["name"], vif["configured"]) for vif in found["vifs"]] == [(behind.vif, True), (other.vif, True)]
    host.offline(behind)
    host.unplug(behind)
    eventually(lambda: not traces(host, behind), trouble=lambda: str(traces(host, behind)) + host.trouble())


@pytest.mark.parametrize(("place", "after"), UNMADE, ids=ids(UNMADE))
def test_nothing_of_a_vif_is_left_whenever_its_agent_was_killed(place: str, after: bool) -> None:
    host = Provider(ENTRIES6, agent=False)
    other = agent(host, place, after)
    behind = host.attach(5)
    eventually(lambda: host.works(behind), trouble=host.trouble)
    throw(host.qube)
    host.call("offline", behind)
    host.unplug(behind)
    restarted(host)
    eventually(lambda: not traces(host, behind), trouble=lambda: str(traces(host, behind)) + host.trouble())
    assert host.works(other)
    assert hooked(host, "offline", behind) <= 1
    host.attach(5)
    eventually(lambda: host.works(other), trouble=host.trouble)


@pytest.mark.parametrize(
    ("place", "after"),
    [
        (f"{SYSTEM}.networkmanager:publish", False),
        (f"{SYSTEM}.networkmanager:publish", True),
        (f"{SYSTEM}.networkmanager:load", True),
    ],
)
def test_a_first_profile_is_in_force_once_whenever_its_agent_was_killed(place: str, after: bool) -> None:
    appvm, daemons = start()
    daemons.networkmanager()
    throw(appvm.qube)
    running = appvm.qube.start_agent(wait=False, env=killing(appvm.qube, place, after=after))
    assert thrown(appvm.qube, 10.0), running.output()
    eventually(lambda: not running.running)
    appvm.agent()
    in_force_once(appvm, daemons, IP)


@pytest.mark.parametrize(
    ("place", "after"),
    [
        (f"{SYSTEM}.networkmanager:publish", False),
        (f"{SYSTEM}.networkmanager:publish", True),
        (f"{SYSTEM}.networkmanager:load", True),
        (f"{SYSTEM}.networkmanager:reapply", False),
        (f"{SYSTEM}.networkmanager:reapply", True),
    ],
)
def test_a_changed_profile_is_in_force_whenever_its_agent_was_killed(place: str, after: bool) -> None:
    appvm, daemons = start()
    daemons.networkmanager()
    running = appvm.qube.start_agent(env=killing(appvm.qube, place, after=after))
    soon_managed(appvm, daemons)
    throw(appvm.qube)
    appvm.write("/qubes-ip", "10.137.0.88")
    assert thrown(appvm.qube, 10.0), running.output()
    eventually(lambda: not running.running)
    appvm.agent()
    in_force_once(appvm, daemons, "10.137.0.88")


def in_force_once(appvm: AppVm, daemons: Daemons, ip: str) -> None:
    """There is one profile of ours, and the uplink is what it says."""
    soon_managed(appvm, daemons, ip=ip)
    listed = appvm.qube.run("ls", FOLDER).stdout.split()
    assert listed == [PROFILE.rpartition("/")[2]]
    active = daemons.nmcli("-g", "UUID,DEVICE", "connection", "show", "--active").splitlines()
    assert [line for line in active if line.endswith(":eth0")] == [f"{UUID}:eth0"]
