# SPDX-License-Identifier: GPL-2.0-or-later
"""The servers of all links, as systemd-resolved gives them on the bus and as resolvectl prints them."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from qubes_guestnet.core.nameservers import LinkServers
from qubes_guestnet.core.resolved_servers import bus_servers, link_servers, printed_domains, printed_servers

DNS, DNS2, VPN, COMMON, COMMON6 = map(ip_address, ("10.139.1.1", "10.139.1.2", "10.8.0.1", "9.9.9.9", "2620:fe::9"))


@pytest.mark.behaviour("B37", "B38")
def test_link_by_link() -> None:
    servers = [(0, COMMON), (0, COMMON6), (2, DNS), (2, DNS2), (5, VPN)]
    domains = [(2, "."), (5, "."), (5, "corp.example"), (9, ".")]
    assert link_servers(servers, domains, frozenset({2})) == (
        LinkServers(0, (COMMON, COMMON6)),
        LinkServers(2, (DNS, DNS2), everything=True, uplink=True),
        LinkServers(5, (VPN,), everything=True),
    )
    assert link_servers((), domains, frozenset()) == ()


def test_only_the_root_is_every_name() -> None:
    for domain, everything in ((".", True), ("", True), ("corp.example", False)):
        (link,) = link_servers([(5, VPN)], [(5, domain)], frozenset())
        assert link.everything is everything


def test_octets_of_the_bus() -> None:
    entries = [(2, 2, [10, 139, 1, 1]), (0, 10, COMMON6.packed)]
    assert bus_servers(entries) == [(2, DNS), (0, COMMON6)]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="address"):
        bus_servers([(2, 2, b"10")])


def test_what_resolvectl_prints_also_in_several_lines() -> None:
    dns = """Global: 9.9.9.9:853#dns.example [2620:fe::9]:853
             2620:fe::9%eth0
Link 2 (eth0): 10.139.1.1
               10.139.1.2%eth0
Link 5 (tun0):
"""
    found = [(0, COMMON), (0, COMMON6), (0, COMMON6), (2, DNS), (2, DNS2)]
    assert printed_servers(dns) == found
    assert printed_domains("Global:\nLink 2 (eth0): ~. corp.example\n") == [(2, "."), (2, "corp.example")]


@pytest.mark.behaviour("B35")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "Failed to get global data: Unit dbus-org.freedesktop.resolve1.service not found.",
        "Global",
        "Link eth0: 10.139.1.1",
        "Link: 10.139.1.1",
        "Global: 10.139.1",
        "   10.139.1.1",
    ],
)
def test_anything_else_is_no_answer(text: str) -> None:
    with pytest.raises((ValueError, IndexError)):
        printed_servers(text)
