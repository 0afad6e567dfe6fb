# SPDX-License-Identifier: GPL-2.0-or-later
"""The flowtable's text, and what is against one: judged from what nft 1.0.6 printed of the rules of others."""

from __future__ import annotations

import pytest

from qubes_guestnet.core import flowtable
from qubes_guestnet.core.shadows import Chain

pytestmark = pytest.mark.behaviour("B62", "B134")

FORWARD = Chain("inet", "filter", "FORWARD", "filter", "forward", 0)
CUSTOM = Chain("ip", "qubes", "custom-forward", "filter", "forward", 0)
CUSTOM6 = CUSTOM._replace(family="ip6")
JUDGES = "chain inet filter FORWARD also judges established connections"


def table(name: str, *chains: str) -> str:
    """`nft list chains` of one table."""
    return f"table {name} {{\n" + "".join(chains) + "}\n"


def chain(name: str, head: str = "", *rules: str) -> str:
    lines = ([head] if head else []) + list(rules)
    return f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"


def hooked(hook: str, priority: str = "filter", policy: str = "accept", kind: str = "filter") -> str:
    return f"type {kind} hook {hook} priority {priority}; policy {policy};"


def ingress(priority: str, devices: str = 'device "eth0"') -> str:
    return f"type filter hook ingress {devices} priority {priority}; policy accept;"


def shown(*rules: str, policy: str = "accept", head: str = "") -> str:
    """`nft -s list chain`."""
    return table("inet filter", chain("FORWARD", head or hooked("forward", policy=policy), *rules)).strip()


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
    "a priority nobody knows": ("ip mangle", hooked("postrouting", "strange"), True),
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


# --- what their rules do --------------------------------------------------------------------------------------------

HARMLESS = {
    "nothing": (),
    "accepted first": ("ct state established,related accept", "drop"),
    "the other way round": ("ct state related,established accept", "drop"),
    "as a set, with a counter": ("ct state { established, related } counter accept", "jump x", "drop"),
    "established alone": ("ct state established accept", "drop"),
    "new ones too": ("ct state established,related,new accept", "drop"),
    "a comment": ('ct state established,related accept comment "keep them"', "drop"),
    "a map": ("ct state vmap { invalid : drop, established : accept, related : accept }", "drop"),
    "invalid ones first, as we do": ("ct state invalid counter drop", "ct state established accept", "drop"),
    "only new ones are judged": ('iifname "eth0" tcp dport 22 ct state new counter accept', "ct state new drop"),
    "several states that are none of them": ("ct state invalid,untracked drop",),
    # What follows refuses what a qube sends; that is asked before its connection is offloaded.
    "a VPN's kill switch": ("oifgroup 1 counter drop",),
    "the same by name": ('oifname "eth0" drop comment "kill switch"',),
    "the same by index": ('oif "eth0" counter reject with icmp admin-prohibited',),
    "all but the tunnel": ('iifname "vif*" oifname != "tun0" drop',),
    "all but the tunnel, by group": ('iifgroup 2 oif != "tun0" counter drop',),
    "the LAN": (
        "oifgroup != 2 ip daddr { 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 }"
        " ct original ip daddr != { 10.139.1.1, 10.139.1.2 } counter reject",
    ),
    "a port": ('oifname != "vif*" tcp dport { 25, 465 } drop',),
    # Of the packets of a connection these see the first ones, or change nothing (B134).
    "counted": ("counter",),
    "counted on the way out": ('oifname "eth0" tcp dport 443 counter comment "web"',),
    "the MSS clamped": ("tcp flags syn / syn,rst tcp option maxseg size set rt mtu",),
    "the MSS clamped to a number": ("tcp flags syn tcp option maxseg size set 1360",),
    "the MSS clamped, as older nft says it": (
        "tcp flags & (syn | rst) == syn counter tcp option maxseg size set rt mtu",
    ),
    "a port opened": (
        'iifname "ens6" ip saddr 192.168.0.0/24 ip daddr 10.137.0.4 tcp dport 443 '
        "ct state established,related,new counter accept",
    ),
    "a way from qube to qube": ("ip saddr 10.137.0.4 ip daddr 10.137.0.5 tcp dport 22 accept",),
    "a qube": ("iifgroup 2 ip saddr 10.137.0.5 udp dport != 53 counter reject",),
}
JUDGING = {
    "what comes from the uplink": ("iifgroup 1 drop",),
    "the same by name": ('iifname "eth0" drop',),
    "what goes to the qubes": ("oifgroup 2 drop",),
    "the same by names": ('oifname "vif*" drop',),
    "what goes to one": ('oifname "vif4.0" drop',),
    "whatever does not go to the tunnel, answers too": ('oifname != "tun0" drop',),
    "whatever does not come from there": ('iifname != "tun0" drop',),
    "whatever does not come from a qube": ("iifgroup != 2 drop",),
    "what leaves by one of several": ('oifname { "eth0", "vif4.0" } drop',),
    "what leaves by a pattern": ('oifname "v*" drop',),
    "a group by its name": ("oifgroup uplinks drop",),
    "a limit on what leaves": ("oifgroup 1 limit rate over 1 mbytes/second drop",),
    "a set that may change": ("oifgroup 1 ip daddr @blocked drop",),
    "the length of a packet": ("oifgroup 1 meta length 1000-1500 drop",),
    "packets with a flag": ("oifgroup 1 tcp flags ack drop",),
    "accepted on the way out, in front of others": ("oifgroup 1 accept", "drop"),
    "logged on the way out": ('oifgroup 1 log prefix "out " drop',),
    "a condition and no verdict": ("oifgroup 1",),
    "packets without SYN": ("tcp flags != syn drop",),
    "one of several flags": ("tcp flags syn,ack drop",),
    "a mask that lets others through": ("tcp flags rst / syn,rst drop",),
    "a mask that is not whole": ("tcp flags & (syn | rst) drop",),
    "any packet of a mark": ("meta mark set 1 accept",),
    "a set that may change, counted": ("ip daddr @x counter",),
    "a mark, counted": ("ip saddr 10.137.0.5 meta mark set 1 counter",),
    "a number of packets": ("limit rate 1/second counter",),
    "all": ("drop",),
    "a rule in front": ("ip saddr 10.137.0.5 drop", "ct state established,related accept"),
    "accepted on one interface only": ('iifname "vif4.0" ct state established,related accept', "drop"),
    "accepted within a limit": ("ct state established,related limit rate 10/second accept", "drop"),
    "related alone": ("ct state related accept", "drop"),
    "dropped": ("ct state established,related drop",),
    "all but": ("ct state != established accept", "drop"),
    "all but the new ones": ("ct state != new drop",),
    "a map that drops": ("ct state vmap { established : drop, related : accept }",),
    "a map that is not whole": ("ct state vmap { established : accept, new : jump x } counter drop",),
    "a jump": ("jump DOCKER-USER", "ct state established,related accept"),
    "said in a comment": ('tcp dport 25 drop comment "ct state new"',),
    "new and established ones": ("ct state established,new drop",),
}


@pytest.mark.parametrize("rules", HARMLESS.values(), ids=HARMLESS.keys())
def test_what_accepts_them_is_harmless(rules: tuple[str, ...]) -> None:
    assert flowtable.obstacle([(FORWARD, shown(*rules))]) == ""


@pytest.mark.parametrize("rules", JUDGING.values(), ids=JUDGING.keys())
def test_what_judges_them_is_not(rules: tuple[str, ...]) -> None:
    assert flowtable.obstacle([(FORWARD, shown(*rules))]).startswith(JUDGES)


def test_the_policy_is_a_judgement_too() -> None:
    strict = FORWARD._replace(policy="drop")
    assert flowtable.obstacle([(strict, shown(policy="drop"))]).startswith(JUDGES)
    assert flowtable.obstacle([(strict, shown("ct state new accept", policy="drop"))]).startswith(JUDGES)
    assert flowtable.obstacle([(strict, shown("ct state established accept", policy="drop"))]) == ""


def test_users_chains_are_asked_like_those_of_others() -> None:
    empty = table("ip qubes", chain("custom-forward")).strip()
    switch = table("ip qubes", chain("custom-forward", "", "iifgroup 1 counter drop")).strip()
    assert flowtable.obstacle([(CUSTOM, empty)]) == ""
    assert flowtable.obstacle([(FORWARD, shown()), (CUSTOM, switch)]) == (
        "chain ip qubes custom-forward also judges established connections: its rule `iifgroup 1 counter drop`; "
        "put `ct state established,related accept` before it, or let it fit `ct state new` alone"
    )


@pytest.mark.parametrize("head", ["type filter hook forward priority filter", 'comment "the owner\'s"'])
def test_what_a_chain_says_of_itself_is_no_rule(head: str) -> None:
    listing = shown("policy accept;", "ct state established accept", "drop", head=head)
    assert flowtable.obstacle([(FORWARD, listing)]) == ""


def test_a_long_set_is_one_rule() -> None:
    rule = "ct state new ip saddr { 192.0.2.1, 192.0.2.2,\n\t\t\t\t\t 192.0.2.3 } drop"
    assert flowtable.obstacle([(FORWARD, shown(rule))]) == ""
    assert flowtable.obstacle([(FORWARD, shown("drop"))]).startswith(JUDGES)


def test_what_is_asked_behind_the_forward_hook_is_asked_too_late() -> None:
    late = FORWARD._replace(hook="postrouting", name="POSTROUTING")
    listing = table("inet filter", chain("POSTROUTING", hooked("postrouting"), "oifgroup 1 counter drop")).strip()
    assert flowtable.obstacle([(late, listing)]).startswith("chain inet filter POSTROUTING also judges")


UNREADABLE = ("", shown("ct state new drop")[:-2], "table inet filter {\n}")


@pytest.mark.parametrize("listing", UNREADABLE, ids=["not there", "cut off", "no chain in it"])
def test_what_cannot_be_read_is_an_obstacle(listing: str) -> None:
    assert flowtable.obstacle([(FORWARD, listing)]).startswith("chain inet filter FORWARD cannot be read: ")


def firewalls(hook: str, *rules: str, family: str = "ip", table_name: str = "qubes-firewall") -> tuple[Chain, str]:
    """A chain of qubes-firewall, as qubes-core-agent-networking makes it."""
    listing = table(f"{family} {table_name}", chain(hook, hooked(hook), *rules)).strip()
    return Chain(family, table_name, hook, "filter", hook, 0, "drop" if hook == "forward" else "accept"), listing


def test_the_firewall_of_the_qubes_is_none() -> None:
    both = "{ 10.137.0.5, 10.137.0.6 }"
    chains = (
        firewalls("forward", "ct state established,related accept", 'iifname != "vif*" accept', "jump qubes-forward"),
        firewalls("prerouting", f'iifname != "vif*" ip saddr {both} drop'),
        firewalls("postrouting", f'oifname != "vif*" ip daddr {both} drop'),
        firewalls("prerouting", 'iifname != "vif*" ip6 saddr fd09::5 drop', family="ip6"),
        firewalls("postrouting", 'oifname != "vif*" ip6 daddr fd09::5 drop', family="ip6"),
    )
    assert flowtable.obstacle(chains) == ""


@pytest.mark.parametrize(
    "judging",
    [
        firewalls("prerouting", "ip saddr 10.137.0.5 drop"),
        firewalls("prerouting", 'iifname != "vif*" ip saddr 10.137.0.5 limit rate 1/second accept'),
        firewalls("postrouting", 'iifname != "vif*" ip saddr 10.137.0.5 drop'),
        firewalls("forward", 'oifname != "vif*" ip daddr 10.137.0.5 drop'),
        firewalls("prerouting", 'iifname != "vif*" ip saddr 10.137.0.5 drop', table_name="mine"),
    ],
    ids=["another rule", "not a drop", "another hook", "forward", "another table"],
)
def test_what_somebody_adds_to_it_is_judged_like_all_else(judging: tuple[Chain, str]) -> None:
    assert " also judges established connections" in flowtable.obstacle([judging])


@pytest.mark.parametrize(("tables", "judge"), [((), ""), (("nat",), ""), (("nat", "raw"), "raw")])
def test_the_former_iptables(tables: tuple[str, ...], judge: str) -> None:
    expected = f"the table {judge} of iptables-legacy may judge established connections" if judge else ""
    assert flowtable.obstacle((), tables) == expected


WG = "wg-quick-wg0"
WG_RULES = {
    "what is for its address": ("prerouting", 'iifname != "wg0" ip daddr 10.64.9.2 fib saddr type != local drop', True),
    "what comes back": ("prerouting", "meta l4proto udp meta mark set ct mark", True),
    "what goes out": ("postrouting", "meta l4proto udp meta mark 0x0000ca6c ct mark set meta mark", True),
    "what comes back, without netbase": ("prerouting", "meta l4proto 17 meta mark set ct mark", True),
    "what goes out, without netbase": ("postrouting", "meta l4proto 17 meta mark 0xca6c ct mark set meta mark", True),
    "of another protocol": ("prerouting", "meta l4proto 6 meta mark set ct mark", False),
    "at another hook": ("forward", "meta l4proto udp meta mark set ct mark", False),
    "another rule": ("prerouting", 'iifname != "wg0" ip daddr 10.64.9.2 drop', False),
    "one of its owner": ("postrouting", "oifgroup 1 drop", False),
}


@pytest.mark.behaviour("B134")
@pytest.mark.parametrize(("hook", "rule", "known"), WG_RULES.values(), ids=WG_RULES.keys())
@pytest.mark.parametrize("name", [WG, "mine"])
def test_the_table_of_wg_quick_is_known_by_its_name_and_its_rules(name: str, hook: str, rule: str, known: bool) -> None:
    listing = table(f"ip {name}", chain("pre", hooked(hook), rule)).strip()
    found = flowtable.obstacle([(Chain("ip", name, "pre", "filter", hook, 0), listing)])
    assert (found == "") is (known and name == WG)
    assert found == "" or f"its rule `{rule}`" in found


@pytest.mark.behaviour("B134")
def test_a_long_rule_is_named_by_its_beginning() -> None:
    rule = f"ip saddr {{ {', '.join(f'192.0.2.{n}' for n in range(99))} }} drop"
    assert f"its rule `{rule[:100]}…`; put" in flowtable.obstacle([(FORWARD, shown(rule))])
