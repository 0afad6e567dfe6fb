# SPDX-License-Identifier: GPL-2.0-or-later
"""What somebody else takes away of a provider's rules comes back; and the firewall has the redirection's servers."""

from __future__ import annotations

import json

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.provider import DNS, HALTED, ROUTER, Hosting

_FIREWALL = "add table ip qubes-firewall; add set ip qubes-firewall dns-addr { type ipv4_addr; }"


def _dns_addr(hosting: Hosting) -> set[str]:
    done = hosting.oracle.run("nft", "-j", "list", "set", "ip", "qubes-firewall", "dns-addr")
    sets = [entry["set"] for entry in json.loads(done.stdout)["nftables"] if "set" in entry]
    return {element for each in sets for element in each.get("elem", ())}


def _targets(hosting: Hosting) -> set[str]:
    return {rule.rpartition(" ")[2] for rule in hosting.rules("ip", "dnat-dns") if "dnat to" in rule}


def test_a_redirection_that_somebody_takes_away_comes_back() -> None:
    hosting = Hosting()
    eventually(lambda: _targets(hosting) == {ROUTER})
    hosting.nft("flush chain ip qubes dnat-dns")
    eventually(lambda: _targets(hosting) == {ROUTER}, what="the redirection is there again")
    hosting.nft("add rule ip qubes dns-reject accept")
    eventually(lambda: "accept" not in hosting.rules("ip", "dns-reject"), what="a foreign rule of the chain is gone")
    # 100 only if nothing changed since it last ran, and this is its first time (B135).
    assert hosting.qube.guestnet("dns", "sync", check=False).returncode == 0
    assert hosting.qube.guestnet("dns", "sync", check=False).returncode == 100


@pytest.mark.behaviour("B45")
def test_the_firewalls_set_holds_the_servers_of_the_redirection() -> None:
    hosting = Hosting()
    eventually(lambda: _targets(hosting) == {ROUTER})
    # The firewall's service comes later, and fills its set from a resolv.conf that names a stub.
    hosting.nft(f"{_FIREWALL}; add element ip qubes-firewall dns-addr {{ 127.0.0.53 }}")
    eventually(lambda: _dns_addr(hosting) == {ROUTER}, what="its set has the servers")
    hosting.resolv_conf("192.168.0.53", "192.168.0.54")
    eventually(lambda: _targets(hosting) == {"192.168.0.53", "192.168.0.54"}, what="the redirection follows")
    eventually(lambda: _dns_addr(hosting) == _targets(hosting), what="and the set with it")
    hosting.resolv_conf()
    eventually(lambda: not _targets(hosting) and not _dns_addr(hosting), what="none is known, and none is in the set")


def test_rules_are_not_taken_away_under_a_resident_agent() -> None:
    hosting = Hosting()
    done = hosting.qube.guestnet("rules", "unload", check=False)
    assert done.returncode == 1
    assert "systemctl stop qubes-guestnet" in done.stderr
    assert hosting.rules("ip", "antispoof")
    hosting.agent.stop()
    hosting.qube.guestnet("rules", "unload")
    assert not hosting.rules("ip", "antispoof")
    assert not hosting.forwards()
    assert DNS not in hosting.oracle.run("nft", "list", "ruleset").stdout


def test_an_element_that_somebody_deletes_comes_back() -> None:
    hosting = Hosting()
    behind = hosting.attach()
    hosting.nft(f'delete element ip qubes allowed {{ "{behind.vif}" . {behind.ip} }}')
    eventually(lambda: f"{behind.vif} {behind.ip}" in hosting.elements("allowed"), what="it may send again")
    hosting.nft("flush set ip qubes downstream")
    eventually(lambda: {behind.ip, HALTED} <= hosting.elements("downstream"), what="its address is protected again")
    assert hosting.works(behind)
