# SPDX-License-Identifier: GPL-2.0-or-later
"""Conditions as nft prints them in JSON: met, not met, or not understood."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from qubes_guestnet.core.packet import match
from qubes_guestnet.core.packet.match import Packet, Unclear
from tests.core.packet.made import OUT, QUBE6, WORLD, ct, loaded, meta, packet, payload
from tests.core.packet.made import match as made

TCP, PING, PING6 = packet(), packet(protocol=1, port=None, icmp_type=8), packet("2001:db8::1", 58, None, 128)
LED = packet(destination=ip_address("192.0.2.53"), port=53)  # was sent to WORLD
SETS = loaded(
    set_allowed=[{"concat": ["vif4.0", "10.137.0.4"]}],
    set_nets=[{"prefix": {"addr": "192.0.2.0", "len": 24}}, {"elem": {"val": "198.51.100.1", "comment": "x"}}],
    set_odd=["no address"],
)
PAIR = {"concat": [meta("iifname"), payload("ip", "saddr")]}


@pytest.mark.parametrize(
    ("condition", "sent", "met"),
    [
        (made(meta("iifname"), "vif4.0"), TCP, True),
        (made(meta("iifname"), "vif*"), TCP, True),
        (made(meta("iif"), "lo"), TCP, False),
        (made(meta("iifname"), {"set": ["vif3.0", "vif4.0"]}, "!="), TCP, False),
        (made(meta("iifgroup"), {"set": [1, 2]}), TCP, True),
        (made(meta("iifgroup"), "default"), TCP, False),
        (made(meta("oifname"), "eth0"), TCP, False),  # not known yet
        (made(meta("oifname"), "eth0", "!="), TCP, False),
        (made(meta("oifname"), "eth0"), packet(oif=OUT), True),
        (made(meta("oif"), "eth0"), packet(oif=OUT), True),
        (made(meta("oifgroup"), 2, "!="), packet(oif=OUT), True),
        (made(meta("l4proto"), "tcp"), TCP, True),
        (made(meta("l4proto"), {"set": ["udp", 17]}), TCP, False),
        (made(meta("l4proto"), "ipv6-icmp"), PING6, True),
        (made(meta("nfproto"), "ipv6"), PING6, True),
        (made(meta("protocol"), "ip"), TCP, True),
        (made(meta("protocol"), "ip6"), PING6, True),
        (made(meta("pkttype"), "other"), TCP, False),
        (made(meta("mark"), 0), TCP, True),
        (made(meta("mark"), "0x5"), packet(mark=5), True),
        (made({"&": [meta("priority"), "4000:0"]}, "none", "!="), packet(priority=0x40000001), True),
        (made({"|": [meta("priority"), 1]}, "0:1"), TCP, True),
        (made({"^": [meta("priority"), ":2"]}, 3), packet(priority=1), True),
        (made(payload("ip", "daddr"), WORLD), TCP, True),
        (made(payload("ip", "daddr"), {"prefix": {"addr": "192.0.2.0", "len": 31}}), TCP, True),
        (made(payload("ip", "daddr"), {"range": ["192.0.2.2", "192.0.2.9"]}), TCP, False),
        (made(payload("ip", "daddr"), "@nets"), TCP, True),
        (made(payload("ip6", "daddr"), WORLD, "!="), TCP, False),  # it has none
        (made(payload("ip6", "saddr"), QUBE6), PING6, True),
        (made(payload("ip", "protocol"), "icmp"), PING, True),
        (made(payload("ip6", "nexthdr"), 58), PING6, True),
        (made(payload("tcp", "dport"), {"range": [400, 500]}), TCP, True),
        (made(payload("tcp", "dport"), {"set": [22, {"range": [80, 90]}]}), TCP, False),
        (made(payload("udp", "dport"), 443, "!="), TCP, False),
        (made(payload("th", "dport"), [443]), TCP, True),
        (made(payload("th", "dport"), 443), PING, False),
        (made(payload("th", "dport"), 443, "<"), TCP, False),
        (made(payload("th", "dport"), 444, "<"), TCP, True),
        (made(payload("th", "dport"), 442, "<="), TCP, False),
        (made(payload("th", "dport"), 443, ">="), TCP, True),
        (made(payload("th", "dport"), 442, ">"), TCP, True),
        (made(payload("tcp", "flags"), "syn", "in"), TCP, True),
        (made(payload("icmp", "type"), "echo-request"), PING, True),
        (made(payload("icmp", "type"), 13), PING, False),
        (made(payload("icmpv6", "type"), {"set": ["echo-request", "nd-redirect"]}), PING6, True),
        (made(payload("icmp", "type"), "echo-request"), TCP, False),
        (made(payload("icmpv6", "type"), "echo-request"), PING, False),
        (made(ct("state"), ["established", "related"], "in"), TCP, False),
        (made(ct("state"), {"set": ["established", "new"]}), TCP, True),
        (made(ct("state"), "invalid", "in"), TCP, False),
        (made(ct("direction"), "original"), TCP, True),
        (made(ct("status"), "assured", "in"), TCP, False),
        (made(ct("status"), "confirmed", "!"), TCP, True),
        (made(ct("status"), ["dnat", "snat"], "in"), LED, True),
        (made(ct("ip daddr", "original"), WORLD), LED, True),
        (made(ct("ip6 daddr", "original"), "::", "!="), LED, False),
        (made(ct("proto-dst", "original"), 53), LED, True),
        (made(ct("proto-dst", "original"), 443, "!="), PING, False),
        (made(ct("ip saddr", "reply"), "192.0.2.53"), LED, True),
        (made(ct("id"), "@added"), TCP, False),
        (made(ct("id"), "@added", "!="), packet(added=frozenset({"@added"})), False),
        (made(PAIR, "@allowed"), TCP, True),
        (made(PAIR, "@allowed"), packet(iif=OUT), False),
    ],
)
def test_conditions(condition: dict[str, Any], sent: Packet, met: bool) -> None:
    assert match.met(condition["match"], sent, "ip", "t", SETS) is met


@pytest.mark.parametrize(
    "condition",
    [
        made(meta("skuid"), 0),
        made(meta("mark"), 1),
        made(meta("iifname"), 4),
        made(meta("iifgroup"), "lan"),
        made(meta("iifgroup"), None),
        made(meta("iifname"), "a", "<"),
        made(meta("iifname"), "a", "~"),
        made({"&": [meta("iifname"), 1]}, 1),
        made({"&": [payload("tcp", "flags"), ["syn", "ack"]]}, "syn"),
        made({"fib": {"result": "oifname", "flags": ["daddr"]}}, "eth0"),
        made("lo", "lo"),
        made(payload("ip", "ttl"), 64),
        made(payload("ether", "saddr"), "02:00:00:00:00:01"),
        made(payload("tcp", "sport"), 1),
        made(payload("tcp", "flags"), 2, "in"),
        made(payload("ip", "daddr"), "@missing"),
        made(payload("ip", "daddr"), "@odd"),
        made(payload("ip", "daddr"), {"prefix": {"addr": "192.0.2.0"}}),
        made(payload("ip", "daddr"), 5),
        made(ct("mark"), 0),
        made(ct("zone", "original"), 0),
        made(ct("id"), 5),
        made(PAIR, "vif4.0"),
        made(PAIR, {"concat": ["vif4.0"]}),
        made(ct("status"), "assured", "=="),
        made(payload("tcp", "dport"), "domain"),
        made(payload("ip", "protocol"), True),
    ],
)
def test_what_is_not_understood_is_said_so(condition: dict[str, Any]) -> None:
    sent = packet(mark=None) if condition["match"]["left"] == meta("mark") else packet()
    with pytest.raises(Unclear):
        match.met(condition["match"], sent, "ip", "t", SETS)


@pytest.mark.parametrize(
    ("key", "new", "changed"),
    [
        (meta("pkttype"), "host", {"pkttype": "host"}),
        (meta("mark"), 7, {"mark": 7}),
        (meta("mark"), {"map": {}}, {"mark": None}),
        (meta("mark"), {"ct": {"key": "mark"}}, {"mark": None}),
        (meta("priority"), {"|": [{"&": [meta("priority"), "c7ff:ffff"]}, "4000:0"]}, {"priority": 0x40000000}),
        (meta("priority"), meta("oifname"), {}),
        (meta("nftrace"), 1, {}),
        ({"payload": {"protocol": "ip", "field": "dscp"}}, 4, {}),
        ("odd", 4, {}),
    ],
)
def test_changes(key: Any, new: Any, changed: dict[str, Any]) -> None:
    assert match.changed(key, new, packet(pkttype="other"), "ip") == packet(pkttype="other")._replace(**changed)


def test_a_map_has_a_value_for_some() -> None:
    key = match.value(meta("iifname"), packet(), "ip")
    assert match.looked_up(key, [["vif3.0", 1], [{"elem": {"val": "vif4.0", "comment": "c"}}, {"goto": 2}]]) == {
        "goto": 2
    }
    assert match.looked_up(key, ()) is None
    for odd in (None, ["vif4.0"], [["vif4.0"]]):
        with pytest.raises(Unclear):
            match.looked_up(key, odd)
