# SPDX-License-Identifier: GPL-2.0-or-later
"""What docs/provider.md tells users to write, with packets: a LAN block, a VPN that fails closed, own base chains."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from qubes_guestnet.lab import probes, world
from qubes_guestnet.lab.dom0 import Dom0
from qubes_guestnet.lab.qube import Qube
from tests.support.eventually import eventually
from tests.support.needs import needs

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "provider.md"
BLOCK = "ip daddr 192.168.0.0/16 counter drop"
# The one of docs/provider.md.
BUT_NAMES = (
    "oifgroup != 2 ip daddr { 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 }"
    " ct original ip daddr != { 10.139.1.1, 10.139.1.2 } counter reject"
)
BEFORE = "add table inet mine; add chain inet mine lan { type filter hook forward priority filter - 5; }"
PLACES = {
    "custom-forward": ("", "ip qubes custom-forward"),
    "a base chain of one's own": (BEFORE, "inet mine lan"),
}


@pytest.fixture(autouse=True)
def _tools() -> None:
    needs("ip", "nsenter", "nft", "dnsmasq")


def tree(proxy: bool = False) -> tuple[Qube, Qube]:
    """A qube and its provider: the one with the network card, or one behind that."""
    dom0 = Dom0()
    provider = dom0.create_provider("netvm")
    if proxy:
        provider = dom0.create("proxy", provider, provides_network=True)
        dom0.start(provider, agent=True)
    vm = dom0.create("vm", provider)
    dom0.start(vm, agent=True)
    eventually(lambda: reaches(vm.running), what="the qube reaches the world")
    assert resolves(vm.running)
    return vm.running, provider.running


def reaches(qube: Qube) -> bool:
    return probes.ping(qube, world.HOST, 0.5) is not None


def resolves(qube: Qube) -> bool:
    with qube.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        return probes.query(client, "10.139.1.1", world.NAME, timeout=0.5)


@pytest.mark.behaviour("B46")
@pytest.mark.parametrize("place", PLACES)
def test_a_block_of_the_lan_takes_the_names_along_unless_it_asks_for_the_original_address(place: str) -> None:
    qube, provider = tree()
    setup, chain = PLACES[place]
    provider.run("nft", f"{setup}; add rule {chain} {BLOCK}")
    assert not reaches(qube)
    assert not resolves(qube), "the server is in the LAN, and the rule sees the address it was redirected to"
    provider.run("nft", f"flush chain {chain}; add rule {chain} {BUT_NAMES}")
    assert resolves(qube)
    assert not reaches(qube)
    assert not probes.echo(qube, world.HOST, world.ECHO_PORTS[0], 0.5)
    documented = " ".join(DOCUMENT.read_text(encoding="utf-8").replace("\\\n", "").split())
    assert f"nft add rule ip qubes custom-forward {BUT_NAMES}" in documented


@pytest.mark.behaviour("B37")
def test_a_vpn_qube_whose_tunnel_is_not_there_lets_nothing_out() -> None:
    qube, proxy = tree(proxy=True)
    for family in ("ip", "ip6"):
        proxy.run("nft", f"add rule {family} qubes custom-forward oifgroup 1 counter drop")
    assert not reaches(qube)
    assert not resolves(qube)
    assert reaches(proxy), "what it sends itself, the VPN's own packets, goes on"


@pytest.mark.behaviour("B90")
def test_own_rules_survive_loading_and_a_restart_of_the_agent() -> None:
    qube, provider = tree()
    provider.run("nft", f"add rule ip qubes custom-forward {BLOCK}; {BEFORE}; add rule inet mine lan counter")
    before = provider.run("nft", "-s", "list", "chain", "ip", "qubes", "custom-forward").stdout
    mine = provider.run("nft", "-s", "list", "table", "inet", "mine").stdout
    provider.guestnet("rules", "load")
    assert provider.agent is not None
    provider.agent.stop()
    provider.start_agent()
    assert provider.run("nft", "-s", "list", "chain", "ip", "qubes", "custom-forward").stdout == before
    assert provider.run("nft", "-s", "list", "table", "inet", "mine").stdout == mine
    assert not reaches(qube)
