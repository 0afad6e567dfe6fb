# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent is killed between making something and recording it: what it made is not taken for another program's."""

from __future__ import annotations

import pytest

from tests.netns.test_provider_dns import OF_A_PROXY, leads
from tests.netns.test_provider_dns_of_others import UP, VETH, codes
from tests.netns.test_provider_lost_rules import provider
from tests.support.eventually import eventually
from tests.support.faults.thrown import killing, throw
from tests.support.qubes.provider import DNS, DNS2, ENTRIES, ENTRIES6, ROUTER, UPLINK_MAC, Provider

pytestmark = pytest.mark.behaviour("B148")

FORMER, SECOND, THIRD = ROUTER, "198.51.100.52", "198.51.100.53"


def killed(host: Provider) -> None:
    eventually(lambda: not host.agent.running, trouble=host.trouble)


@pytest.mark.parametrize("later", [SECOND, THIRD, FORMER, ""])
@pytest.mark.parametrize(
    ("place", "after"),
    [
        ("qubes_guestnet.system.nft.program:begin", False),
        ("qubes_guestnet.system.nft.program:end", True),
        ("qubes_guestnet.system.conntrack:purge", True),
    ],
    ids=["before the load", "after the load", "before the record"],
)
def test_a_redirection_is_ours_whenever_its_agent_was_killed(place: str, after: bool, later: str) -> None:
    host = Provider(ENTRIES, agent=False)
    host.qube.start_agent(env=killing(host.qube, place, after=after))
    leads(host, FORMER)
    throw(host.qube)
    host.resolv_conf(SECOND)
    killed(host)
    host.resolv_conf(*([later] if later else []))
    host.qube.start_agent()
    if later:
        leads(host, later)
    else:
        eventually(lambda: host.rules("ip", "dnat-dns") == [], trouble=host.trouble)
    assert "of others" not in host.trouble()
    assert "another program" not in host.trouble()
    assert "dns-foreign" not in codes(host)


@pytest.mark.parametrize(
    ("place", "after"),
    [
        ("qubes_guestnet.system.procfs_sysctl:write", False),
        ("qubes_guestnet.system.procfs_sysctl:write", True),
        ("qubes_guestnet.system.nft.program:end", True),
        ("qubes_guestnet.provider.user_rules:untranslated", False),
        ("qubes_guestnet.provider.user_rules:keep", False),
        ("qubes_guestnet.provider.forwarding:open_wanted", False),
        ("qubes_guestnet.provider.forwarding:open_wanted", True),
    ],
)
def test_rules_that_come_back_are_ours_whenever_their_agent_was_killed(place: str, after: bool) -> None:
    host = Provider(ENTRIES6, agent=False)
    behind = host.attach()
    host.qube.start_agent(env=killing(host.qube, place, after=after))
    eventually(lambda: host.works(behind), trouble=host.trouble)
    host.nft("add rule ip qubes custom-forward ip daddr 198.51.100.9 drop")
    eventually(lambda: "198.51.100.9" in host.qube.read("/run/qubes-guestnet/users-rules"), trouble=host.trouble)
    whole = host.settled()
    throw(host.qube)
    host.nft("flush ruleset")
    killed(host)
    host.qube.start_agent()
    eventually(lambda: host.settled() == whole, trouble=host.trouble)
    eventually(lambda: host.works(behind), trouble=host.trouble)
    assert host.rules("ip", "custom-forward") == ["ip daddr 198.51.100.9 drop"]
    found = provider(host)
    assert (found["stopped"], found["hold"], found["lost"]) == ([], "", [])
    assert "by another program" not in host.trouble()


@pytest.mark.parametrize(
    ("place", "after"),
    [("qubes_guestnet.core.dns.resolv_conf:noted", False), ("qubes_guestnet.system.files:publish", False)],
    ids=["after the file", "before the record that says so"],
)
def test_a_resolv_conf_is_ours_whenever_its_agent_was_killed(place: str, after: bool) -> None:
    host = Provider({**ENTRIES, **OF_A_PROXY, "/qubes-mac": UPLINK_MAC}, agent=False)
    host.qube.start_agent(env=killing(host.qube, place, after=after))
    eventually(lambda: f"nameserver {DNS}\n" in host.qube.read("/etc/resolv.conf"), trouble=host.trouble)
    leads(host, DNS, DNS2)
    host.qube.wire(f"{VETH}; {UP}; ip route add {SECOND}/32 dev wg0")
    throw(host.qube)
    host.write("/qubes-primary-dns", SECOND)
    killed(host)
    host.write("/qubes-primary-dns", DNS2)
    host.write("/qubes-secondary-dns", DNS)
    host.qube.start_agent()
    wanted = f"nameserver {DNS2}\nnameserver {DNS}\n"
    eventually(lambda: wanted in host.qube.read("/etc/resolv.conf"), trouble=host.trouble)
