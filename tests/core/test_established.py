# SPDX-License-Identifier: GPL-2.0-or-later
"""What is against a flowtable: judged from what nft 1.0.6 printed of the rules of others."""

from __future__ import annotations

import pytest

from qubes_guestnet.core.firewall import ruleset
from qubes_guestnet.core.nft import established, flowtable
from qubes_guestnet.core.nft.foreign_chains import Chain
from tests.support.judge.nft_words import chain, hooked, shown, table

pytestmark = pytest.mark.behaviour("B62", "B134")

FORWARD = Chain("inet", "filter", "FORWARD", "filter", "forward", 0)
CUSTOM = Chain("ip", "qubes", "custom-forward", "filter", "forward", 0)
JUDGES = "chain inet filter FORWARD may refuse established connections"


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
    # Nothing is refused, whatever the conditions are: what is not accepted goes on (B134).
    "counted by name": ('tcp dport 443 counter name "web"',),
    "counted by name and accepted": ('iifgroup 2 counter name "out" accept',),
    "what is known, counted by name": ('ct state established counter name "known" accept', "drop"),
    "a set that may change, counted": ("ip daddr @x counter",),
    "a set that may change, accepted": ("ip daddr @x ip saddr . tcp dport @y accept",),
    "a limit, accepted": ("limit rate 10/minute burst 5 packets accept",),
    "a limit of bytes, accepted": ("oifgroup 1 limit rate over 1 mbytes/second burst 2 mbytes counter accept",),
    "a limit and a quota by name": ('limit name "slow" accept', 'quota name "month" return'),
    "a number of packets": ("limit rate 1/second counter",),
    "a condition and no verdict": ("oifgroup 1",),
    "a mark or a length, accepted": ("meta mark 0x1 accept", "meta length > 1000 accept", "ip ttl 1 return"),
    "logged": ('log prefix "forwarded: drop " level info flags all',),
    "logged with flags of a protocol": ("log flags tcp sequence,options snaplen 64 accept",),
    "logged within a limit": ('limit rate 5/minute log prefix "seen "',),
    "logged on the way out": ('oifgroup 1 log prefix "out " drop',),
    "everything returned": ("return", "drop"),
    "everything accepted": ("counter accept", "drop"),
    "a limit behind a kill switch": ("oifgroup 1 drop", "limit rate 10/minute accept"),
    # None of these fits a packet of an established TCP or UDP connection (B134).
    "all but what is known": ("ct state != { established, related } drop",),
    "all but what is established": ("ct state != established counter drop",),
    "all but what is known, by its flags": ("ct state ! established,related drop",),
    "a set of states that are none of them": ("ct state { invalid, new } drop",),
    "a map for others": ("ct state vmap { invalid : drop, new : jump x } counter",),
    "pings": ("icmp type echo-request drop", "icmpv6 type { echo-request, echo-reply } reject"),
    "other protocols": ("meta l4proto icmp drop", "ip protocol 47 drop", "meta l4proto { ah, esp } drop"),
    "multicast": (
        "ip daddr 224.0.0.0/4 drop",
        "ip6 daddr ff00::/8 drop",
        'oifname "eth0" ip daddr 255.255.255.255 drop',
    ),
    # What a qube sends.
    "one qube": ('iifname "vif4.0" drop',),
    "several qubes": ('iifname { "vif4.0", "vif5.0" } ip daddr 192.0.2.1 reject',),
    "all ways out but the tunnel": ('oifname { "eth0", "wlan0" } drop',),
    "all ways out of a kind": ('oifname "eth*" drop',),
    "groups": ("oifgroup { 1, 3 } drop", 'oifgroup "default" drop'),
    "all groups but the qubes'": ("oifgroup != { 2, 5 } tcp dport 25 drop",),
    "what else lets pass before a kill switch": ("ip daddr 192.0.2.1 accept", "ct state new accept", "oifgroup 1 drop"),
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
    "what leaves by one of several groups": ("oifgroup { 1, 2 } drop",),
    "a pattern that is the begin of another": ('oifname "vi*" drop', "accept"),
    "what comes from one of several": ('iifname { "vif4.0", "eth0" } drop',),
    "all but a set without the qubes": ("oifgroup != { 1, 5 } drop",),
    "all states but a sum of two, which is none": ("ct state != established | related drop",),
    "the same as a list": ("ct state != established,related drop",),
    "all states but others": ("ct state != { new, invalid } drop", "ct state ! new drop"),
    "all states but none": ("ct state !=",),
    "a map for all": ("ct state vmap { invalid : drop, * : drop }",),
    "a map by name": ("ct state vmap @verdicts",),
    "states and addresses": ("ct state . ip saddr { new . 192.0.2.1 } drop",),
    "TCP": ("meta l4proto tcp drop",),
    "TCP and other protocols": ("meta l4proto { tcp, icmp } drop",),
    "all but pings": ("meta l4proto != icmp drop",),
    "a protocol, and nothing": ("meta l4proto",),
    "an empty set of protocols": ("meta l4proto { } drop",),
    "refused by an error": ("reject with icmp type host-unreachable",),
    "a host": ("ip daddr { 192.0.2.1, 224.0.0.0/4 } drop",),
    "a set that may change": ("oifgroup 1 ip daddr @blocked drop",),
    "the length of a packet": ("oifgroup 1 meta length 1000-1500 drop",),
    "packets with a flag": ("oifgroup 1 tcp flags ack drop",),
    "accepted on the way out, in front of others": ("oifgroup 1 accept", "drop"),
    "packets without SYN": ("tcp flags != syn drop",),
    "one of several flags": ("tcp flags syn,ack drop",),
    "a mask that lets others through": ("tcp flags rst / syn,rst drop",),
    "a mask that is not whole": ("tcp flags & (syn | rst) drop",),
    "any packet of a mark": ("meta mark set 1 accept",),
    "a mark, counted": ("ip saddr 10.137.0.5 meta mark set 1 counter",),
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
    # Once accepted by the limit, a connection is refused later.
    "a limit in front of a kill switch": ("limit rate 10/minute accept", "oifgroup 1 drop"),
    "a set in front of a kill switch": ("ip daddr @friends accept", "oifgroup 1 drop"),
    "a status in front of a kill switch": ("ct status != assured return", "oifgroup 1 drop"),
    "logged to a program": ("log group 2",),
    "logged to a program, and accepted": ('log prefix "ids" group 2 accept',),
    "a limit that drops": ("limit rate over 10/second drop",),
    "a quota that is not understood": ("quota over 10 mbytes drop",),
    "a mark restored": ("meta mark set ct mark",),
    "a mark of the connection": ("ct mark set 0x1 accept",),
    "sent to a program": ("queue num 0",),
    "sent elsewhere too": ('dup to 192.0.2.1 device "eth0"',),
    "a set filled": ("update @seen { ip saddr }",),
    "a map of addresses": ("ip saddr vmap { 10.137.0.5 : drop }",),
    "nothing behind a condition": ("ip daddr",),
    "a jump without a chain": ("jump",),
    "a reject in front": ("ct direction reply reject with tcp reset", "accept"),
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
        "chain ip qubes custom-forward may refuse established connections: its rule `iifgroup 1 counter drop`; "
        "put `ct state established,related accept` before it, or restrict it with `ct state new`"
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
    assert flowtable.obstacle([(late, listing)]).startswith("chain inet filter POSTROUTING may refuse")


UNREADABLE = ("", shown("ct state new drop")[:-2], "table inet filter {\n}", shown('oifgroup 1 drop comment "x'))


@pytest.mark.parametrize("listing", UNREADABLE, ids=["not there", "cut off", "no chain in it", "half a comment"])
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
        firewalls("prerouting", 'iifname != "vif*" ip saddr 10.137.0.5 meta mark set 1 accept'),
        firewalls("postrouting", 'iifname != "vif*" ip saddr 10.137.0.5 drop'),
        firewalls("forward", 'oifname != "vif*" ip daddr 10.137.0.5 drop'),
        firewalls("prerouting", 'iifname != "vif*" ip saddr 10.137.0.5 drop', table_name="mine"),
    ],
    ids=["another rule", "a mark", "another hook", "forward", "another table"],
)
def test_what_somebody_adds_to_it_is_judged_like_all_else(judging: tuple[Chain, str]) -> None:
    assert " may refuse established connections" in flowtable.obstacle([judging])


@pytest.mark.parametrize(("tables", "judge"), [((), ""), (("nat",), ""), (("nat", "raw"), "raw")])
def test_the_former_iptables(tables: tuple[str, ...], judge: str) -> None:
    expected = (
        f"the table {judge} of iptables-legacy may judge established connections; "
        "create its rules with iptables-nft, which the agent can read"
        if judge
        else ""
    )
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


REMEDIES = {
    "before conntrack": ("prerouting", -300, "put it into a chain at hook forward, after"),
    "behind it": ("prerouting", -150, "put `ct state established,related accept` before it"),
    "ingress": ("ingress", 300, "give the chain a priority below 300"),
}


@pytest.mark.behaviour("B134")
@pytest.mark.parametrize(("hook", "priority", "remedy"), REMEDIES.values(), ids=REMEDIES.keys())
def test_the_remedy_is_one_that_works_there(hook: str, priority: int, remedy: str) -> None:
    head = FORWARD._replace(hook=hook, priority=priority)
    found = flowtable.obstacle([(head, shown("ip saddr 192.0.2.1 drop", head=hooked(hook)))])
    assert f"its rule `ip saddr 192.0.2.1 drop`; {remedy}" in found


@pytest.mark.behaviour("B134")
def test_what_a_qube_sends_may_be_refused_before_routing() -> None:
    early = FORWARD._replace(hook="prerouting", priority=-150)
    listing = shown('iifname "vif*" tcp dport 25 drop', head=hooked("prerouting", "mangle"))
    assert flowtable.obstacle([(early, listing)]) == ""


@pytest.mark.parametrize("version", [4, 6])
def test_the_table_of_the_firewall_of_single_qubes_judges_first_packets_alone(version: int) -> None:
    """By its own text, as loaded (F-41): what a refresh of names changes is no obstacle to an offloaded connection."""
    table_name = ruleset.FAMILIES[version].table
    family, name = table_name.split()
    texts = {
        each: table(table_name, chain(each, ruleset.HOOKS.get(each, ""), *rules)).strip()
        for each, rules in ruleset.own_rules(version).items()
    }
    regular = {(family, name, ruleset.QUBES_FORWARD): texts[ruleset.QUBES_FORWARD]}
    forward = Chain(family, name, "forward", "filter", "forward", 0)
    assert "policy drop" in texts["forward"]
    assert not established.judges(forward, texts["forward"], regular)
    later = texts["forward"].replace("ct state established,related accept", "ct state invalid accept")
    assert established.judges(forward, later, regular)
