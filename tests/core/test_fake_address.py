# SPDX-License-Identifier: GPL-2.0-or-later
"""The texts of a fake address. That packets follow them is for tests/netns/test_fake_address.py."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from qubes_guestnet.core.provider import fake_address
from qubes_guestnet.core.provider.vif import Mapping, Vif
from qubes_guestnet.core.vif_name import parse_name

REAL, VISIBLE, GATEWAY, FAKE = map(IPv4Address, ("10.137.0.4", "192.168.1.128", "10.137.0.1", "192.168.1.1"))
NAME = parse_name("vif4.0")
VIF = Vif(NAME, "00:16:3e:5e:6c:04", "vif", (REAL,))


@pytest.mark.parametrize(
    ("vif", "namespace"),
    [("vif4.0", "vif4-nat"), ("vif32752.0", "vif32752-nat"), ("vif4.1", "vif4.1-nat"), ("vif4.10", "vif4.10-nat")],
)
def test_each_vif_has_a_namespace_of_its_own(vif: str, namespace: str) -> None:
    assert fake_address.namespace(parse_name(vif)) == namespace


@pytest.mark.behaviour("B30", "B60")
def test_what_takes_the_place_of_a_vif_looks_like_it_from_both_sides() -> None:
    assert fake_address.pair(VIF, 1400, "/proc/1/fd/3") == (
        "link add name provider address 00:16:3e:5e:6c:04 mtu 1400 type veth"
        " peer name vif4.0 address fe:ff:ff:ff:ff:ff mtu 1400 netns /proc/1/fd/3"
    )


WHOLE = fake_address.Facts(file=True, is_namespace=True, moved=True, joined=True, mtu=1400)
MADE = "netns add vif4-nat"
LEFT = "netns delete vif4-nat"
MOVED = "link set dev vif4.0 netns vif4-nat"
FREED = "link delete provider"


@pytest.mark.behaviour("B60")
@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (fake_address.Facts(mtu=1400), [MADE, MOVED, "pair"]),
        (fake_address.Facts(file=True, mtu=1400), [LEFT, MADE, MOVED, "pair"]),
        (WHOLE._replace(moved=False, joined=False), [MOVED, "pair"]),
        (WHOLE._replace(moved=False), [FREED, MOVED, "pair"]),
        (WHOLE._replace(joined=False), ["pair"]),
        (WHOLE, []),
    ],
)
def test_what_a_namespace_lacks_is_made_and_its_rules_come_before_its_links(
    facts: fake_address.Facts, expected: list[str]
) -> None:
    mapping = Mapping(REAL, VISIBLE, FAKE)
    steps = fake_address.build(facts, VIF, mapping, GATEWAY, "/proc/1/fd/3")
    last = fake_address.Ip(fake_address.commands(VIF, mapping, GATEWAY), inside=True)
    made = [step.commands[-1] for step in steps if isinstance(step, fake_address.Ip) and step != last]
    pair = fake_address.pair(VIF, 1400, "/proc/1/fd/3")
    assert ["pair" if words == pair else words for words in made] == expected
    load = fake_address.Load(fake_address.rules(NAME, mapping, GATEWAY), fake_address.inner_rules(mapping, GATEWAY))
    assert steps[-3:] == (load, fake_address.Tune(fake_address.vif_tunables(NAME)), last)


@pytest.mark.behaviour("B60")
@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (fake_address.Facts(), []),
        (fake_address.Facts(file=True), [LEFT]),
        (WHOLE._replace(joined=False), ["link set dev vif4.0 netns /proc/1/fd/3", LEFT]),
        (WHOLE._replace(moved=False), [FREED, LEFT]),
        (WHOLE, [FREED, "link set dev vif4.0 netns /proc/1/fd/3", LEFT]),
    ],
)
def test_the_end_of_a_namespace_gives_the_vif_back(facts: fake_address.Facts, expected: list[str]) -> None:
    steps = fake_address.demolish(facts, NAME, "/proc/1/fd/3")
    assert [step.commands[-1] for step in steps if isinstance(step, fake_address.Ip)] == expected


@pytest.mark.behaviour("B60")
def test_links_come_up_when_their_neighbours_are_known() -> None:
    commands = fake_address.commands(VIF, Mapping(REAL, VISIBLE, FAKE), GATEWAY)
    known = commands.index("neighbour replace 192.168.1.128 lladdr 00:16:3e:5e:6c:04 nud permanent dev vif4.0")
    up, reached = map(commands.index, ("link set dev vif4.0 up", "route replace 192.168.1.128/32 dev vif4.0"))
    assert known < up < reached
    assert "route replace default via 10.137.0.1 dev provider onlink" in commands


@pytest.mark.behaviour("B60")
def test_ipv6_is_off_before_anything_is_there() -> None:
    first, second, *rest = fake_address.tunables()
    assert {first, second} == {(("ipv6", "conf", scope, "disable_ipv6"), 1) for scope in ("all", "default")}
    assert rest[0] == (("ipv4", "ip_forward"), 1)
    assert fake_address.vif_tunables(NAME)[0] == (("ipv4", "conf", "vif4.0", "proxy_arp"), 1)


@pytest.mark.behaviour("B60")
@pytest.mark.parametrize("gateway", [None, GATEWAY])
def test_without_a_fake_gateway_the_real_one_is_nowhere_rewritten(gateway: IPv4Address | None) -> None:
    mapping = Mapping(REAL, VISIBLE, gateway)
    text = fake_address.rules(NAME, mapping, GATEWAY)
    assert "ip daddr 10.137.0.1" not in text
    assert f"{int(GATEWAY):08x}" not in text
    assert "leave-to-qube ip saddr 192.0.0.8 ip saddr set 10.137.0.1\n" in text
    assert [rule.chain for rule in fake_address.inner_rules(mapping, GATEWAY)] == [
        "inner-source-visible",
        "inner-destination-real",
    ]


@pytest.mark.behaviour("B60")
def test_each_chain_that_is_jumped_to_is_there_and_empty_ones_get_their_rule() -> None:
    mapping = Mapping(REAL, VISIBLE, FAKE)
    lines = fake_address.rules(NAME, mapping, GATEWAY).splitlines()
    added = {line.split()[4] for line in lines if line.startswith("add chain")}
    flushed = {line.split()[4] for line in lines if line.startswith("flush chain")}
    filled = {line.split()[4] for line in lines if line.startswith("add rule")}
    called = {words[-1] for words in map(str.split, lines) if words[-2] in ("jump", "goto")}
    raw = {rule.chain for rule in fake_address.inner_rules(mapping, GATEWAY)}
    hooked = {line.split()[4] for line in lines if " hook " in line}
    assert added == flushed == called | hooked
    assert raw.isdisjoint(filled)
    assert raw | filled | {"input"} == added
    assert all("policy drop" in line for line in lines if " hook " in line)


def test_inner_rules_write_where_the_quoted_header_has_it() -> None:
    rules = {rule.chain: rule for rule in fake_address.inner_rules(Mapping(REAL, VISIBLE, FAKE), GATEWAY)}
    assert rules["inner-source-visible"][1:] == (20, VISIBLE)
    assert rules["inner-destination-real"][1:] == (24, REAL)
    assert rules["inner-source-gateway"][1:] == (20, GATEWAY)
    assert rules["inner-destination-gateway"][1:] == (24, FAKE)
