# SPDX-License-Identifier: GPL-2.0-or-later
"""The flowtable's text, and which chains of others are looked at, from what nft 1.0.6 printed of them."""

from __future__ import annotations

import pytest

from qubes_guestnet.core.nft import flowtable
from qubes_guestnet.core.nft.foreign_chains import Chain
from tests.support.judge.nft_words import chain, hooked, ingress, table

pytestmark = pytest.mark.behaviour("B62", "B134")

CUSTOM = Chain("ip", "qubes", "custom-forward", "filter", "forward", 0)
CUSTOM6 = CUSTOM._replace(family="ip6")


# --- the text ----------------------------------------------------------------------------------------------------


def test_the_text_of_one() -> None:
    assert flowtable.load(("eth0", "vif4.0"), ipv6=True) == (
        "add table inet qubes-offload\n"
        "delete table inet qubes-offload\n"
        "table inet qubes-offload {\n"
        '  flowtable qubes { hook ingress priority 300; devices = { "eth0", "vif4.0" }; }\n'
        "  chain forward { type filter hook forward priority 2147483647; policy accept; }\n"
        "}\n"
        "add rule inet qubes-offload forward iifgroup 2 oifgroup != 2 ct state established "
        "meta l4proto { tcp, udp } th dport != 53 flow add @qubes\n"
    )


def test_without_ipv6_it_is_for_ipv4_alone() -> None:
    both, one = (flowtable.load(("eth0",), ipv6=ipv6) for ipv6 in (True, False))
    assert one == both.replace(" ct state", " meta nfproto ipv4 ct state")


def test_devices_are_given_in_messages_that_the_kernel_takes() -> None:
    names = [f"vif{number}.0" for number in range(1, 452)]
    lines = [line for line in flowtable.load(names, ipv6=True).splitlines() if "flowtable qubes" in line]
    given = [line.partition("devices = { ")[2].partition(" }")[0].split(", ") for line in lines]
    assert [len(each) for each in given] == [200, 200, 51]
    assert [name for each in given for name in each] == [f'"{name}"' for name in names]


@pytest.mark.parametrize("devices", [(), ("eth0", 'x"; flush ruleset; #'), ("",), ("ä0",), ("a b",), ("eth*",)])
def test_what_is_no_list_of_devices_makes_no_text(devices: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no devices"):
        flowtable.load(devices, ipv6=True)


@pytest.mark.parametrize("name", ["eth0", "vif4.0", "wg-home", "br_lan", "ens6f0np0"])
def test_usual_names_are_usable(name: str) -> None:
    assert flowtable.usable(name)


# --- which chains are looked at ------------------------------------------------------------------------------------

OURS = "".join(
    table(
        f"{family} qubes",
        chain("prerouting", hooked("prerouting", "raw")),
        chain("antispoof"),
        chain("egress", hooked("postrouting", "300")),
        chain("postrouting", hooked("postrouting", "srcnat", kind="nat")),
        chain("input", hooked("input", policy="drop")),
        chain("forward", hooked("forward")),
        chain("dnat-dns", hooked("prerouting", "dstnat", kind="nat")),
        chain("custom-forward"),
    )
    for family in ("ip", "ip6")
) + table("inet qubes-offload", chain("forward", hooked("forward", "2147483647")))


@pytest.mark.parametrize(("ipv6", "expected"), [(True, (CUSTOM, CUSTOM6)), (False, (CUSTOM,))])
def test_of_ours_only_those_of_the_users_are_looked_at(ipv6: bool, expected: tuple[Chain, ...]) -> None:
    assert flowtable.to_look_at(OURS.strip(), ipv6=ipv6) == expected
    assert flowtable.to_look_at("", ipv6=ipv6) == expected


LOOKED_AT = {
    "forward": ("inet filter", hooked("forward"), True),
    "prerouting": ("ip raw", hooked("prerouting", "raw"), True),
    "postrouting": ("ip mangle", hooked("postrouting", "mangle - 5"), True),
    "an unknown priority": ("ip mangle", hooked("postrouting", "strange"), True),
    "a policy of drop": ("ip filter", hooked("forward", policy="drop"), True),
    "what the qube itself sends": ("ip mangle", hooked("output", kind="route"), False),
    "what is for the qube itself": ("inet filter", hooked("input", policy="drop"), False),
    "first packets": ("ip nat", hooked("postrouting", "srcnat", kind="nat"), False),
    "bridges": ("bridge filter", hooked("forward"), False),
    "arp": ("arp filter", hooked("input"), False),
    "one that a user added to our table": ("ip qubes", hooked("forward", "filter + 1"), True),
    "ingress": ("netdev filter", ingress("0"), False),
    "ingress by name": ("netdev filter", ingress("filter + 5"), False),
    "late ingress": ("netdev filter", ingress("300", 'devices = { "a", "b" }'), True),
    "late inet ingress": ("inet x", ingress("security + 250"), True),
    "early inet ingress": ("inet x", ingress("filter - 10"), False),
    "egress": ("netdev filter", 'type filter hook egress device "eth0" priority 300; policy drop;', False),
}


@pytest.mark.parametrize(("name", "head", "looked_at"), LOOKED_AT.values(), ids=LOOKED_AT.keys())
def test_chains_of_others(name: str, head: str, looked_at: bool) -> None:
    listing = OURS + table(name, chain("before"), chain("theirs", head), chain("behind"))
    found = [each for each in flowtable.to_look_at(listing.strip(), ipv6=True) if each.name != "custom-forward"]
    assert [(f"{each.family} {each.table}", each.name) for each in found] == [(name, "theirs")] * looked_at
    assert [each.policy for each in found] == ["drop" if "policy drop" in head else "accept"] * looked_at


def test_chains_of_ipv6_count_only_where_the_qubes_have_it() -> None:
    listing = table("ip6 filter", chain("theirs", hooked("forward"))).strip()
    assert [each.table for each in flowtable.to_look_at(listing, ipv6=True)] == ["qubes", "qubes", "filter"]
    assert [each.table for each in flowtable.to_look_at(listing, ipv6=False)] == ["qubes"]


NOT_UNDERSTOOD = {
    "cut off": "table inet filter {\n\tchain FORWARD {\n",
    "a name that is more than one": "table inet fil ter {\n}",
    "a chain's name that nft would take for more": table("inet x", chain("a;b", hooked("forward"))).strip(),
    "a table's name that nft would take for more": table("inet x;y", chain("a", hooked("forward"))).strip(),
    "a priority of a netdev chain": table("netdev x", chain("a", ingress("strange"))).strip(),
}


@pytest.mark.parametrize("listing", NOT_UNDERSTOOD.values(), ids=NOT_UNDERSTOOD.keys())
def test_what_is_not_understood_is_told(listing: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        flowtable.to_look_at(listing, ipv6=True)
