# SPDX-License-Identifier: GPL-2.0-or-later
"""The table for ARP is made anew while qubes are connected: it knows them from its first moment on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from tests.support.eventually import eventually
from tests.support.faults.lacking_arp import lacking
from tests.support.packets.arp import ASKS, Speaker
from tests.support.packets.losses import every_packet_returns
from tests.support.qubes.provider import ENTRIES6, GATEWAY, VIF_MAC, WORLD, Client, Provider

pytestmark = pytest.mark.behaviour("B114")

GONE = "delete table arp qubes"
ASKED_EVERY_S = 0.002


@contextlib.contextmanager
def asking(behind: Client) -> Iterator[None]:
    """Ask by ARP all the time, as a qube with a device route does for each new destination."""
    speaker, ended = Speaker(behind.qube, "eth0", VIF_MAC), threading.Event()

    def ask() -> None:
        while not ended.wait(ASKED_EVERY_S):
            speaker.say(ASKS, behind.ip, behind.mac, WORLD, broadcast=True)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def is_heard(host: Provider, behind: Client) -> None:
    """All it asked since the table was made was heard, and it still is."""
    Speaker(behind.qube, "eth0", VIF_MAC).must_be_answered(behind.ip, behind.mac, GATEWAY)
    assert host.elements("allowed", "arp") == {f"{behind.vif} {behind.ip} {behind.mac}"}
    assert host.drops("input", "arp") == 0


def upgraded(*, release_without_arp: bool) -> tuple[Provider, Client]:
    """A provider whose agent was stopped for an upgrade, with a qube that goes on."""
    host = Provider(ENTRIES6, rules=False, agent=False)
    environment = lacking(host.qube)  # loads just what a former release loaded
    if not release_without_arp:
        host.qube.run("umount", "/usr/sbin/nft")
        environment = {}
    host.qube.guestnet("rules", "load", env=environment)
    host.qube.start_agent(env=environment)
    behind = host.plug(4)
    host.online(behind, **environment)
    eventually(lambda: host.forwards(), trouble=host.trouble)
    host.agent.stop()
    if release_without_arp:
        host.qube.run("umount", "/usr/sbin/nft")
    return host, behind


@pytest.mark.parametrize("first", ["rules", "agent"])
def test_an_upgrade_from_a_release_without_it_loses_no_packet(first: str) -> None:
    host, behind = upgraded(release_without_arp=True)
    with (
        every_packet_returns(("nsenter", "-t", str(behind.qube.pid), "-n"), WORLD, "upgrade"),
        asking(behind),
    ):
        if first == "rules":
            host.qube.guestnet("rules", "load")
            is_heard(host, behind)
        host.qube.start_agent()
        is_heard(host, behind)


def test_it_was_deleted_while_no_agent_ran() -> None:
    host, behind = upgraded(release_without_arp=False)
    host.nft(GONE)
    with asking(behind):
        host.qube.guestnet("rules", "load")
        is_heard(host, behind)
        host.nft(GONE)
        host.qube.start_agent()
        eventually(lambda: host.elements("allowed", "arp"), trouble=host.trouble)
        is_heard(host, behind)


@pytest.mark.parametrize("store", [True, False], ids=["with QubesDB", "without QubesDB"])
def test_it_is_deleted_while_the_agent_runs(store: bool) -> None:
    host = Provider(ENTRIES6)
    behind = host.attach(4)
    if not store:
        host.qube.stop_store()
        eventually(lambda: "QubesDB" in host.trouble(), trouble=host.trouble)
    with asking(behind):
        for _ in range(3):
            host.nft(GONE)
            eventually(lambda: host.elements("allowed", "arp"), trouble=host.trouble)
            is_heard(host, behind)


def test_another_device_of_the_name_is_not_let_in_with_the_rules() -> None:
    """Its predecessor's record is still there (behaviour B117)."""
    host, behind = upgraded(release_without_arp=True)
    host.unplug(behind)
    host.wire(behind)
    host.qube.guestnet("rules", "load")
    assert host.elements("allowed", "arp") == set()
