# SPDX-License-Identifier: GPL-2.0-or-later
"""What another program removes of a provider's rules comes back; and the firewall has the redirection's servers."""

from __future__ import annotations

import json

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.provider import DNS, HALTED, ROUTER, Provider

_FIREWALL = "add table ip qubes-firewall; add set ip qubes-firewall dns-addr { type ipv4_addr; }"


def _dns_addr(host: Provider) -> set[str]:
    done = host.oracle.run("nft", "-j", "list", "set", "ip", "qubes-firewall", "dns-addr")
    sets = [entry["set"] for entry in json.loads(done.stdout)["nftables"] if "set" in entry]
    return {element for each in sets for element in each.get("elem", ())}


def _targets(host: Provider) -> set[str]:
    return {rule.rpartition(" ")[2] for rule in host.rules("ip", "dnat-dns") if "dnat to" in rule}


def test_a_redirection_that_somebody_takes_away_comes_back() -> None:
    host = Provider()
    eventually(lambda: _targets(host) == {ROUTER})
    host.nft("flush chain ip qubes dnat-dns")
    eventually(lambda: _targets(host) == {ROUTER}, what="the redirection is there again")
    host.nft("add rule ip qubes dns-reject accept")
    eventually(lambda: "accept" not in host.rules("ip", "dns-reject"), what="a foreign rule of the chain is gone")
    # 100 only if nothing changed since it last ran, and this is its first time (B135).
    assert host.qube.guestnet("dns", "sync", check=False).returncode == 0
    assert host.qube.guestnet("dns", "sync", check=False).returncode == 100


@pytest.mark.behaviour("B45")
def test_the_firewalls_set_holds_the_servers_of_the_redirection() -> None:
    host = Provider()
    eventually(lambda: _targets(host) == {ROUTER})
    # The firewall's service comes later, and fills its set from a resolv.conf that names a stub.
    host.nft(f"{_FIREWALL}; add element ip qubes-firewall dns-addr {{ 127.0.0.53 }}")
    eventually(lambda: _dns_addr(host) == {ROUTER}, what="its set has the servers")
    host.resolv_conf("192.168.0.53", "192.168.0.54")
    eventually(lambda: _targets(host) == {"192.168.0.53", "192.168.0.54"}, what="the redirection follows")
    eventually(lambda: _dns_addr(host) == _targets(host), what="and the set with it")
    host.resolv_conf()
    eventually(lambda: not _targets(host) and not _dns_addr(host), what="none is known, and none is in the set")


def test_rules_are_not_taken_away_under_a_resident_agent() -> None:
    host = Provider()
    done = host.qube.guestnet("rules", "unload", check=False)
    assert done.returncode == 1
    assert "systemctl stop qubes-guestnet" in done.stderr
    assert host.rules("ip", "antispoof")
    host.agent.stop()
    host.qube.guestnet("rules", "unload")
    assert not host.rules("ip", "antispoof")
    assert not host.forwards()
    assert DNS not in host.oracle.run("nft", "list", "ruleset").stdout


def test_an_element_that_somebody_deletes_comes_back() -> None:
    host = Provider()
    behind = host.attach()
    host.nft(f'delete element ip qubes allowed {{ "{behind.vif}" . {behind.ip} }}')
    eventually(lambda: f"{behind.vif} {behind.ip}" in host.elements("allowed"), what="it may send again")
    host.nft("flush set ip qubes downstream")
    eventually(lambda: {behind.ip, HALTED} <= host.elements("downstream"), what="its address is protected again")
    assert host.works(behind)
