# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of others in `dnat-dns`: what people and guides write there, and where the virtual addresses end by it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import pytest

from qubes_guestnet.core.dns import foreign_redirection
from qubes_guestnet.core.dns.foreign_redirection import judge, refreshed, unfinished
from qubes_guestnet.core.nft import listing as nft_listing

V = (ipaddress.IPv4Address("10.139.1.1"), ipaddress.IPv4Address("10.139.1.2"))
OURS = tuple(
    f"ip daddr {address} {protocol} dport 53 dnat to 192.168.0.1" for address in V for protocol in ("udp", "tcp")
)
PROXYS = tuple(rule.replace("192.168.0.1", rule.split()[2]) for rule in OURS)


def table(rules: Iterable[str], **chains: Iterable[str]) -> str:
    """As `nft -s list table ip qubes` prints it."""
    text = "table ip qubes {\n\tset allowed {\n\t\ttype ifname . ipv4_addr\n"
    text += '\t\telements = { "vif4.0" . 10.137.0.4 }\n\t}\n\n'
    blocks = {"dnat-dns": ("type nat hook prerouting priority dstnat; policy accept;", *rules), **chains}
    for name, lines in blocks.items():
        text += f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n\n"
    return text.rstrip("\n") + "\n}\n"


def both(*rules: str) -> list[str]:
    """A rule for each virtual address, of texts with {} in them."""
    return [rule.format(address) for address in V for rule in rules]


KEPT: dict[str, tuple[list[str], list[str]]] = {
    "Tailscale": (
        both("ip daddr {} udp dport 53 dnat to 100.100.100.100", "ip daddr {} tcp dport 53 dnat to 100.100.100.100"),
        ["100.100.100.100"],
    ),
    "a VPN guide, by interface": (
        ['iifname "vif*" udp dport 53 dnat to 10.2.0.1', 'iifname "vif*" tcp dport 53 dnat to 10.2.0.1'],
        ["10.2.0.1"],
    ),
    "by group, with a counter": (["iifgroup 2 udp dport 53 counter dnat to 10.2.0.1"], ["10.2.0.1"]),
    "both protocols at once": (["meta l4proto { tcp, udp } th dport 53 dnat to 10.2.0.1:5353"], ["10.2.0.1:5353"]),
    "a set of addresses": (["ip daddr { 10.139.1.1, 10.139.1.2 } udp dport 53 dnat to 10.2.0.1"], ["10.2.0.1"]),
    "a net of addresses": (["ip daddr 10.139.1.0/24 udp dport domain dnat to 10.2.0.1"], ["10.2.0.1"]),
    "a range of addresses": (
        ["ip daddr 10.139.1.1-10.139.1.2 udp dport { 53, 853 } dnat ip to 10.2.0.1"],
        ["10.2.0.1"],
    ),
    "ports in a range": (["udp dport 50-60 dnat to 10.2.0.1 random"], ["10.2.0.1"]),
    "a map": (["dnat ip to ip daddr map { 10.139.1.1 : 10.2.0.1, 10.139.1.2 : 10.2.0.2 }"], ["10.2.0.1", "10.2.0.2"]),
    "in turn": (["udp dport 53 dnat to numgen inc mod 2 map { 0 : 9.9.9.9, 1 : 1.1.1.1 }"], ["9.9.9.9", "1.1.1.1"]),
    "a map by name": (["udp dport 53 dnat to ip daddr map @servers"], []),
    "a range of servers": (["udp dport 53 dnat to 10.2.0.1-10.2.0.4"], ["10.2.0.1"]),
    "dnscrypt in this qube": (["udp dport 53 redirect to :5300"], []),
    "the same by its address": (["udp dport 53 dnat to 127.0.0.1:5300"], []),
    "names are forbidden": (["udp dport 53 drop"], []),
    "a strange target": (["udp dport 53 dnat to 1.2.3.4.5"], []),
    "no target": (["udp dport 53 dnat 10.2.0.1"], []),
    "a program decides": (["udp dport 53 queue to 1"], []),
    "a comment that says dnat": (['udp dport 53 dnat to 10.2.0.1 comment "not dnat to 10.139.1.1"'], ["10.2.0.1"]),
    "logged first": (['udp dport 53 log prefix "dnat to nowhere: " level debug dnat to 10.2.0.1'], ["10.2.0.1"]),
    "marked first": (["udp dport 53 meta mark set 0x1", "udp dport 53 ct state new dnat to 10.2.0.1"], ["10.2.0.1"]),
    "in front of ours": (['iifname "vif*" udp dport 53 dnat to 10.2.0.1', *PROXYS], ["10.2.0.1"]),
    "for one qube only": (["ip saddr 10.137.0.7 udp dport 53 dnat to 10.2.0.1", *OURS], ["10.2.0.1", "192.168.0.1"]),
    "one vif only": (['iifname "vif7.0" udp dport 53 dnat to 10.2.0.1', *OURS], ["10.2.0.1", "192.168.0.1"]),
    "not for that address": (["ip daddr != 10.137.0.9 udp dport 53 dnat to 10.2.0.1"], ["10.2.0.1"]),
    "for others first": (
        [
            'iifname "eth0" accept',
            "ip daddr 10.137.0.9 accept",
            "tcp dport 53 accept",
            "udp dport 5353 accept",
            "ip protocol tcp accept",
            "udp dport != 53 accept",
            "meta nfproto ipv4 udp dport 53 dnat to 10.2.0.1",
        ],
        ["10.2.0.1"],
    ),
    "a named counter": (['udp dport 53 counter name "x" dnat to 10.2.0.1'], ["10.2.0.1"]),
    "a mark of the connection": (["ct mark set meta mark udp dport 53 dnat to 10.2.0.1"], ["10.2.0.1"]),
    "every interface of that kind": (['iifname "v*" udp dport 53 dnat to 10.2.0.1'], ["10.2.0.1"]),
    "a map of pairs": (
        [
            "udp dport 53 dnat to ip daddr . udp dport map "
            "{ 10.139.1.1 . 53 : 10.2.0.1 . 5353, 10.139.1.2 . 53 : 10.2.0.2 . 53 }"
        ],
        ["10.2.0.1:5353", "10.2.0.2"],
    ),
    "a map of verdicts": (["ip daddr vmap { 10.139.1.1 : jump mine, 10.139.1.2 : accept }"], []),
    "by TCP it is refused": (both("ip daddr {} udp dport 53 dnat to 10.2.0.1"), ["10.2.0.1"]),
}


@pytest.mark.behaviour("B123")
@pytest.mark.parametrize("what", KEPT)
def test_what_leads_elsewhere_is_kept(what: str) -> None:
    rules, servers = KEPT[what]
    found = judge(table(rules), V)
    assert (found.kept, [str(server) for server in found.servers]) == (True, servers)
    assert "10.139.1.1 -> " in found.words
    assert "10.139.1.2 -> " in found.words


NOT_KEPT: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "is empty"),
    "ours of a proxy": ([*PROXYS], "ends at 10.139.1.1"),
    "one address only": (["ip daddr 10.139.1.1 udp dport 53 dnat to 10.2.0.1"], "10.139.1.2 ends at itself"),
    "TCP only": (["tcp dport 53 dnat to 10.2.0.1"], "ends at itself"),
    "to the other virtual address": (["udp dport 53 dnat to 10.139.1.2"], "ends at 10.139.1.2"),
    "behind ours of a proxy": ([*PROXYS, "udp dport 53 dnat to 10.2.0.1"], "ends at 10.139.1.1"),
    "let through": (["udp dport 53 accept", "udp dport 53 dnat to 10.2.0.1"], "ends at itself"),
    "one qube is refused, and nothing else said": (["ip saddr 10.137.0.7 drop"], "ends at itself"),
    "perhaps to itself": (["ip saddr 10.137.0.7 udp dport 53 dnat to 10.139.1.2"], "ends at 10.139.1.2"),
    "a port by name": (["udp dport mdns-something dnat to 10.2.0.1"], "ends at itself"),
    "counted only": (["udp dport 53 counter"], "ends at itself"),
    "returned": (["udp dport 53 return", "udp dport 53 dnat to 10.2.0.1"], "ends at itself"),
    "a map with itself in it": (
        ["udp dport 53 dnat to numgen inc mod 2 map { 0 : 9.9.9.9, 1 : 10.139.1.1 }"],
        "ends at 10.139.1.1",
    ),
    "a jump to nowhere": (["jump gone"], "ends at itself"),
    "in a circle": (["jump dnat-dns"], "ends at itself"),
    "an empty set": (["ip daddr { } udp dport 53 dnat to 10.2.0.1"], "ends at itself"),
}


PERHAPS: dict[str, list[str]] = {
    "all but the Pi-hole": ["ip saddr != 10.137.0.20 udp dport 53 dnat to 10.2.0.1"],
    "the Pi-hole goes by": ["ip saddr 10.137.0.20 accept", "udp dport 53 dnat to 10.2.0.1"],
    "one qube": ["ip saddr 10.137.0.7 udp dport 53 dnat to 10.2.0.1"],
    "a net of sources": ["ip saddr 10.137.0.0/16 udp dport 53 dnat to 10.2.0.1"],
    "sources": ["ip saddr { 10.137.0.0/16, 10.138.0.0/16 } udp dport 53 dnat to 10.2.0.1"],
    "protocol and port at once": ["meta l4proto . th dport { tcp . 53, udp . 53 } dnat to 10.2.0.1"],
    "address and port at once": ["ip daddr . udp dport { 10.139.1.1 . 53, 10.139.1.2 . 53 } dnat to 10.2.0.1"],
    "one pair at once": ["meta l4proto . th dport udp . 53 dnat to 10.2.0.1"],
    "a port of theirs": ["udp sport 1024-65535 udp dport 53 dnat to 10.2.0.1"],
    "not this qube's own": ["fib daddr type != local udp dport 53 dnat to 10.2.0.1"],
    "this qube's own first": ["fib daddr type local return", "udp dport 53 dnat to 10.2.0.1"],
    "one vif": ['iif "vif4.0" udp dport 53 dnat to 10.2.0.1'],
    "so many a second": ["udp dport 53 limit rate 100/second burst 5 packets dnat to 10.2.0.1"],
    "addresses in a set by name": ["ip daddr @dns udp dport 53 dnat to 10.2.0.1"],
    "ports in a set by name": ["udp dport @mine dnat to 10.2.0.1"],
    "by a mark": ["meta mark != 0x00000001 udp dport 53 dnat to 10.2.0.1"],
    "in front of ours": ['iifname "vif7.0" udp dport 53 dnat to 10.2.0.1', *PROXYS],
}


@pytest.mark.behaviour("B123")
@pytest.mark.parametrize("what", PERHAPS)
def test_what_perhaps_leads_elsewhere_is_kept_and_the_rest_refused(what: str) -> None:
    found = judge(table(PERHAPS[what]), V)
    assert found.kept, found.words
    assert str(found.servers[0]) == "10.2.0.1"
    assert "10.2.0.1 or " in found.words or "refused or 10.2.0.1" in found.words


@pytest.mark.behaviour("B123")
@pytest.mark.parametrize("what", NOT_KEPT)
def test_what_leads_nowhere_is_not(what: str) -> None:
    rules, words = NOT_KEPT[what]
    found = judge(table(rules), V)
    assert not found.kept
    assert words in found.words


@pytest.mark.behaviour("B123")
@pytest.mark.parametrize(
    ("rules", "mine", "kept"),
    [
        pytest.param(["udp dport 53 jump mine"], ["dnat to 10.2.0.1"], True, id="a chain of their own"),
        pytest.param(["udp dport 53 goto mine"], ["dnat to 10.2.0.1"], True, id="and not back"),
        pytest.param(["jump mine", "udp dport 53 dnat to 10.3.0.1"], ["ip saddr 10.137.0.7 accept", "return"], True,
                     id="one qube goes by, and is refused"),
        pytest.param(["jump mine", "udp dport 53 dnat to 10.3.0.1"], ["tcp dport 53 accept"], True, id="back again"),
        pytest.param(["goto mine", "udp dport 53 dnat to 10.3.0.1"], ["tcp dport 53 accept"], False, id="to the end"),
        pytest.param(["ip saddr 10.137.0.7 goto mine", "udp dport 53 dnat to 10.3.0.1"], ["dnat to 10.2.0.1"], True,
                     id="one qube's own"),
        pytest.param(["ip daddr vmap { 10.139.1.1 : jump mine, 10.139.1.2 : jump mine }", *OURS], ["dnat to 10.2.0.1"],
                     True, id="a map of verdicts, which is not understood"),
        pytest.param([], ["dnat to 10.2.0.1"], False, id="a chain that is not called"),
    ],
)  # fmt: skip
def test_chains_that_are_jumped_to(rules: list[str], mine: list[str], *, kept: bool) -> None:
    assert judge(table(rules, mine=mine), V).kept is kept


@pytest.mark.parametrize("listing", ["", "table ip qubes {\n}\n", table([]).replace("dnat-dns", "other"), "table ip"])
def test_no_chain_no_rules(listing: str) -> None:
    assert not judge(listing, V).kept
    assert foreign_redirection.rules(listing) == ()


def test_a_long_set_goes_on_in_the_next_line() -> None:
    listing = table(["ip daddr { 10.139.1.1,", "\t     10.139.1.2 } udp dport 53 dnat to 10.2.0.1", "tcp dport 1 drop"])
    assert nft_listing.chains(listing)["dnat-dns"] == (
        "ip daddr { 10.139.1.1, 10.139.1.2 } udp dport 53 dnat to 10.2.0.1", "tcp dport 1 drop",
    )  # fmt: skip
    assert judge(listing, V).kept
    with pytest.raises(ValueError, match="incomplete"):
        nft_listing.chains(listing.rstrip("}\n"))


@pytest.mark.behaviour("B123")
def test_ours_beside_theirs_follow_the_servers() -> None:
    theirs = "ip saddr 10.137.0.7 udp dport 53 dnat to 10.2.0.1"
    fresh = tuple(rule.replace("192.168.0.1", "192.168.7.1") for rule in OURS)
    assert refreshed([theirs, *OURS, "counter"], OURS, fresh) == (theirs, *fresh, "counter")
    assert refreshed([theirs, *OURS], OURS, ()) == (theirs,)
    assert refreshed([theirs], OURS, fresh) == (theirs,), "theirs alone stay alone"


@pytest.mark.behaviour("B123")
def test_a_script_that_runs_nft_for_each_rule_is_given_time() -> None:
    assert unfinished(10.0, 10.0, 10.0)
    assert unfinished(10.0, 11.5, 12.4)
    assert not unfinished(10.0, 11.5, 12.5)
    assert not unfinished(10.0, 14.9, 15.0), "a program that changes it all the time is not waited for"
