# SPDX-License-Identifier: GPL-2.0-or-later
"""The servers of all links, as systemd-resolved gives them on the bus and as resolvectl prints them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_guestnet.core.dns.resolved_servers import (
    Answer,
    Ways,
    bus_answer,
    bus_ways,
    link_servers,
    printed_answer,
    printed_domains,
    printed_servers,
)
from qubes_guestnet.core.dns.upstream_servers import LinkServers
from qubes_guestnet.core.endpoint import Endpoint, of

DNS, DNS2, VPN, COMMON, COMMON6 = of(
    tuple(map(ip_address, ("10.139.1.1", "10.139.1.2", "10.8.0.1", "9.9.9.9", "2620:fe::9")))
)


@pytest.mark.behaviour("B37", "B38", "B127")
def test_link_by_link() -> None:
    servers = ((0, COMMON), (0, COMMON6), (2, DNS), (2, DNS2), (5, VPN))
    domains = ((2, "."), (5, "."), (5, "corp.example"), (9, "."))
    ways = {0: Ways(tls_only=True), 5: Ways(default_route=False)}
    assert link_servers(Answer(servers, domains, ways), frozenset({2})) == (
        LinkServers(0, (COMMON, COMMON6), tls_only=True),
        LinkServers(2, (DNS, DNS2), everything=True, uplink=True),
        LinkServers(5, (VPN,), everything=True, default_route=False),
    )
    assert link_servers(Answer((), domains), frozenset()) == ()


def test_only_the_root_is_every_name() -> None:
    for domain, everything in ((".", True), ("", True), ("corp.example", False)):
        (link,) = link_servers(Answer(((5, VPN),), ((5, domain),)), frozenset())
        assert link.everything is everything


DOMAINS = ("a(isb)", [(2, ".", True)])
EX = ("a(iiayqs)", [(2, 2, [10, 139, 1, 1], 0, ""), (0, 10, COMMON6.address.packed, 853, "dns.example")])


@pytest.mark.behaviour("B127")
def test_properties_of_the_bus() -> None:
    servers = ((2, DNS), (0, Endpoint(COMMON6.address, 853)))
    full = {"DNSEx": EX, "DNS": ("a(iiay)", []), "Domains": DOMAINS, "DNSOverTLS": ("s", "yes")}
    assert bus_answer(full) == Answer(servers, ((2, "."),), {0: Ways(tls_only=True)})
    old = {"DNS": ("a(iiay)", [(2, 2, b"\x0a\x8b\x01\x01")]), "Domains": DOMAINS}  # before systemd 246
    assert bus_answer(old) == Answer(((2, DNS),), ((2, "."),), {0: Ways()})
    for mode, only in (("no", False), ("opportunistic", False), ("yes", True)):
        assert bus_ways({"DefaultRoute": ("b", False), "DNSOverTLS": ("s", mode)}) == Ways(False, only)
    assert bus_ways({"DefaultRoute": ("b", True)}) == bus_ways({}) == Ways()


GOOD = {"DNSEx": EX, "Domains": DOMAINS}
NO_PROPERTIES: dict[str, Any] = {
    "null": None,
    "a list": [],
    "nothing": {},
    "null servers": {**GOOD, "DNSEx": ("a(iiayqs)", None)},
    "no pair": {**GOOD, "DNSEx": "DNS"},
    "no domains": {"DNSEx": EX},
    "no list": {**GOOD, "DNSEx": ("s", "10.139.1.1")},
    "a number for a server": {**GOOD, "DNSEx": ("a(iiayqs)", [1])},
    "other fields": {**GOOD, "DNSEx": ("a(ay)", [(b"\x0a\x8b\x01\x01",)])},
    "a text for a link": {**GOOD, "DNSEx": ("a(iiay)", [("2", 2, b"\x0a\x8b\x01\x01")])},
    "a text for octets": {**GOOD, "DNSEx": ("a(iiay)", [(2, 2, "10.1")])},
    "no octets": {**GOOD, "DNSEx": ("a(iiay)", [(2, 2, ["10"])])},
    "no address": {**GOOD, "DNSEx": ("a(iiay)", [(2, 2, b"\x0a\x8b")])},
    "octets too large": {**GOOD, "DNSEx": ("a(iiay)", [(2, 2, [300, 1, 1, 1])])},
    "a text for a port": {**GOOD, "DNSEx": ("a(iiayqs)", [(2, 2, b"\x0a\x8b\x01\x01", "53", "")])},
    "domains of another kind": {**GOOD, "Domains": ("as", ["."])},
    "a domain without a link": {**GOOD, "Domains": ("a(isb)", [(None, ".", True)])},
}


@pytest.mark.behaviour("B35")
@pytest.mark.parametrize("odd", NO_PROPERTIES)
def test_anything_else_on_the_bus_is_no_answer(odd: str) -> None:
    with pytest.raises(ValueError, match=r"no |octets|bytes|address"):
        bus_answer(NO_PROPERTIES[odd])


@pytest.mark.behaviour("B35")
@pytest.mark.parametrize("odd", [None, {"DefaultRoute": 1}, {"DefaultRoute": ("s", "no")}, {"DNSOverTLS": ("b", True)}])
def test_anything_else_of_a_link_is_no_answer(odd: object) -> None:
    with pytest.raises(ValueError, match="propert"):
        bus_ways(odd)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.binary(max_size=17),
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=5).map(tuple),
    max_leaves=12,
)


@pytest.mark.behaviour("B35")
@given(
    st.dictionaries(
        st.sampled_from(["DNS", "DNSEx", "Domains", "DNSOverTLS"]), anything | st.tuples(st.text(), anything)
    )
)
def test_whatever_comes_there_is_an_answer_or_a_value_error(properties: dict[str, Any]) -> None:
    try:
        answer = bus_answer(properties)
    except ValueError:
        return
    assert all(isinstance(server, Endpoint) for _, server in answer.servers)


@pytest.mark.behaviour("B127")
def test_what_resolvectl_prints_also_in_several_lines() -> None:
    dns = """Global: 9.9.9.9:853#dns.example [2620:fe::9]:853
             2620:fe::9%eth0
Link 2 (eth0): 10.139.1.1
               10.139.1.2%eth0
Link 5 (tun0):
"""
    tls = (Endpoint(COMMON.address, 853), Endpoint(COMMON6.address, 853))
    found = [(0, tls[0]), (0, tls[1]), (0, COMMON6), (2, DNS), (2, DNS2)]
    assert printed_servers(dns) == found
    assert printed_domains("Global:\nLink 2 (eth0): ~. corp.example\n") == [(2, "."), (2, "corp.example")]
    # As version 252 prints it: for the whole qube something else.
    default = "Global\n       Protocols: -LLMNR\nresolv.conf mode: foreign\nLink 2 (eth0): no\nLink 5 (tun0): yes\n"
    modes = "Global: opportunistic\nLink 2 (eth0): yes\nLink x: yes\n"
    answer = printed_answer(dns, "Global:\n", default, modes)
    assert answer == Answer(tuple(found), (), {0: Ways(), 2: Ways(default_route=False, tls_only=True)})


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
        "Global: 10.139.1.1:x",
        "   10.139.1.1",
    ],
)
def test_anything_else_is_no_answer(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        printed_servers(text)


def test_the_order_of_links_is_always_the_same() -> None:
    servers = ((7, DNS), (2, DNS2), (0, COMMON), (7, COMMON))
    found = link_servers(Answer(servers, ()), frozenset())
    assert [(each.ifindex, each.servers) for each in found] == [(0, (COMMON,)), (2, (DNS2,)), (7, (DNS, COMMON))]
    assert found == link_servers(Answer((servers[1], servers[0], servers[3], servers[2]), ()), frozenset())
