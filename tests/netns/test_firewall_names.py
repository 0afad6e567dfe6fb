# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules by name: a provider's agent beside the real look-up and a real name server."""

from __future__ import annotations

import ast
import signal

import pytest

from tests.support.eventually import eventually, never
from tests.support.programs.name_lookup import KNOWN, SECOND, NameServer, NamesUnit
from tests.support.qubes.firewall import Enforcing
from tests.support.qubes.provider import WORLD, WORLD6

RULES = ("action=accept dsthost=www.example.org proto=udp", "action=drop")


@pytest.mark.behaviour("B73")
@pytest.mark.behaviour("B78")
@pytest.mark.parametrize(("version", "addresses"), [(4, {WORLD, "192.0.2.1"}), (6, {WORLD6})])
def test_a_rule_by_name_is_for_the_addresses_that_the_name_has(version: int, addresses: set[str]) -> None:
    host = Enforcing()
    server, _unit = NameServer(host), NamesUnit(host)
    server.says(www=[WORLD, WORLD6, "192.0.2.1"])
    behind = host.attach()
    address = behind.ip if version == 4 else behind.ip6
    host.applied(address, *RULES)
    eventually(lambda: host.named("www.example.org", version) == addresses, trouble=host.trouble)
    assert host.passes(behind, 9, version), host.trouble()
    length = 32 if version == 4 else 128
    eventually(lambda: exported(host, address) == {f"{each}/{length}" for each in addresses}, trouble=host.trouble)
    assert host.agent.output().count("woken by the name look-up") == 1
    assert "names in firewall rules" not in host.agent.output()


def exported(host: Enforcing, address: str, name: str = "www.example.org") -> set[str]:
    """What scripts read in QubesDB, as they read it."""
    with host.dom0() as store:
        value = store.read(f"/dns/{address}/{name}")
    return ast.literal_eval(value.decode()) if value else set()


def test_another_network_or_name_server_is_asked_in_the_same_pass() -> None:
    host = Enforcing()
    first, second, _unit = NameServer(host), NameServer(host, SECOND), NamesUnit(host)
    first.says(www=[WORLD])
    second.says(www=["192.0.2.2"])
    behind = host.attach()
    host.applied(behind.ip, *RULES)
    eventually(lambda: host.named("www.example.org") == {WORLD}, trouble=host.trouble)
    host.resolv_conf(SECOND)
    eventually(lambda: "192.0.2.2" in host.named("www.example.org"), trouble=host.trouble)
    assert host.passes(behind), "an address that left the answer stays for a while"
    host.resolv_conf("192.168.0.1")
    before = first.asked
    eventually(lambda: first.asked > before, trouble=host.trouble)


def test_a_restart_of_the_agent_keeps_what_is_known() -> None:
    host = Enforcing()
    server, unit = NameServer(host), NamesUnit(host)
    server.says(www=[WORLD])
    behind = host.attach()
    host.applied(behind.ip, *RULES)
    eventually(lambda: host.named("www.example.org") == {WORLD}, trouble=host.trouble)
    server.pause()
    unit.stop()
    host.agent.signal(signal.SIGTERM)
    host.agent.wait()
    asked = server.asked
    host.qube.start_agent()
    never(lambda: host.named("www.example.org") != {WORLD}, 0.5)
    assert host.passes(behind)
    assert server.asked == asked
    host.agent.kill()
    host.qube.write(KNOWN, host.qube.read(KNOWN).replace(WORLD, "192.0.2.999"))
    host.qube.start_agent()
    eventually(lambda: host.named("www.example.org") == set(), trouble=host.trouble)
    assert host.agent.output().count("damaged") == 1
    NamesUnit(host)
    server.resume()
    eventually(lambda: host.named("www.example.org") == {WORLD}, 30, trouble=host.trouble)
