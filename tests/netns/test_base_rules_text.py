# SPDX-License-Identifier: GPL-2.0-or-later
"""The texts of core/nft/rules_text in a real kernel: what they make, and above all what they leave alone."""

from __future__ import annotations

import ipaddress
import subprocess
from typing import Any

import pytest

from qubes_guestnet.core.endpoint import Endpoint
from qubes_guestnet.core.nft import rules_text
from tests.support.judge.oracle import Oracle

ORACLE = Oracle()
OWN, OTHER = ipaddress.ip_address("10.137.0.5"), ipaddress.ip_address("10.137.0.6")
OWN6 = ipaddress.ip_address("fd09:24ef:4179::a89:5")
MAC = "00:16:3e:5e:6c:05"
V = (ipaddress.IPv4Address("10.139.1.1"), ipaddress.IPv4Address("10.139.1.2"))
SERVERS = tuple(Endpoint(ipaddress.IPv4Address(text)) for text in ("192.168.1.1", "192.168.1.2"))
THEMSELVES = tuple(map(Endpoint, V))
FAMILIES = ("ip", "ip6")
PASSES = "meta priority set meta priority & f7ff:ffff"

# type, hook, priority and policy, as the design names them. None: a chain without a hook.
CHAINS = {
    "prerouting": ("filter", "prerouting", -300, "accept"),
    "egress": ("filter", "postrouting", 300, "accept"),
    "postrouting": ("nat", "postrouting", 100, "accept"),
    "input": ("filter", "input", 0, "drop"),
    "forward": ("filter", "forward", 0, "accept"),
    "dnat-dns": ("nat", "prerouting", -100, "accept"),
    "antispoof": None,
    "dns-reject": None,
    "custom-input": None,
    "custom-forward": None,
}
USERS = """
add rule ip qubes custom-input tcp dport 22 accept
add rule ip6 qubes custom-input tcp dport 22 accept
add rule ip qubes custom-forward ip daddr 10.137.0.6 accept
add rule ip6 qubes custom-forward ip6 daddr fd09:24ef:4179::a89:6 accept
add chain ip qubes mine
add rule ip qubes mine counter
add table inet theirs
add chain inet theirs forward { type filter hook forward priority 10; policy accept; }
add rule inet theirs forward tcp dport 25 drop
"""


def load(text: str) -> None:
    """One transaction."""
    done = subprocess.run(["nft", "-f", "-"], input=text, text=True, capture_output=True, timeout=20)
    assert done.returncode == 0, f"{done.stderr}\n{text}"


def listing(*what: str) -> str:
    """What nft says, without the counters."""
    return ORACLE.run("nft", "-s", "list", *what).stdout


def objects(kind: str) -> list[dict[str, Any]]:
    return [entry[kind] for entry in ORACLE.ruleset() if kind in entry]


def chains() -> dict[tuple[str, str], tuple[str, str, int, str] | None]:
    return {
        (chain["family"], chain["name"]): (chain["type"], chain["hook"], chain["prio"], chain["policy"])
        if "hook" in chain
        else None
        for chain in objects("chain")
        if chain["table"] == "qubes"
    }


def rules(family: str, chain: str) -> list[str]:
    """The rules of a chain as nft words them, without the counters."""
    lines = listing("chain", family, "qubes", chain).splitlines()
    return [line.strip() for line in lines[2:-2] if not line.strip().startswith("type ")]


def elements(family: str, name: str) -> set[str]:
    """The elements of a set, those with two parts as "vif4.0 10.137.0.5"."""
    (found,) = (one for one in objects("set") if (one["family"], one["table"], one["name"]) == (family, "qubes", name))
    parts = [one["concat"] if isinstance(one, dict) else [one] for one in found.get("elem", [])]
    return {" ".join(part) for part in parts}


@pytest.mark.parametrize("ipv6", [True, False])
def test_the_chains_and_their_policies(ipv6: bool) -> None:
    load(rules_text.base(ipv6=ipv6))
    found = chains()
    expected: dict[tuple[str, str], Any] = {
        (family, name): chain for family in FAMILIES for name, chain in CHAINS.items()
    }
    expected["arp", "input"] = ("filter", "input", 0, "accept")
    if not ipv6:
        expected["ip6", "forward"] = ("filter", "forward", 0, "drop")
    assert found == expected
    assert {*rules_text.CHAINS, *rules_text.DNS_CHAINS} <= set(found)
    assert {(own["family"], own["name"], str(own["type"])) for own in objects("set")} == {
        ("ip", "allowed", "['ifname', 'ipv4_addr']"),
        ("ip6", "allowed", "['ifname', 'ipv6_addr']"),
        ("ip", "downstream", "ipv4_addr"),
        ("ip6", "downstream", "ipv6_addr"),
        ("arp", "allowed", "['ifname', 'ipv4_addr', 'ether_addr']"),
    }


@pytest.mark.behaviour("B94")
def test_both_families_have_the_same_rules() -> None:
    load(rules_text.base(ipv6=True))
    for name in CHAINS:
        translated = [
            line.replace("icmpv6", "icmp")
            .replace("ip6 ", "ip ")
            .replace("nd-redirect", "redirect")
            # That names were asked about is a bit of IPv4 alone, as the virtual addresses are.
            .replace("| 1000:0", "| 1800:0")
            for line in rules("ip6", name)
            if "nd-neighbor" not in line and "nd-router" not in line and "dport 546" not in line
        ]
        assert translated == rules("ip", name)
    assert any(rule.endswith(" jump custom-forward") for rule in rules("ip6", "forward"))
    assert any(rule.endswith(" jump custom-input") for rule in rules("ip6", "input"))


@pytest.mark.behaviour("B86")
def test_invalid_packets_end_before_anything_is_accepted() -> None:
    load(rules_text.base(ipv6=True))
    for family in FAMILIES:
        assert rules(family, "forward")[0] == "ct state invalid counter drop"
        assert rules(family, "input")[:2] == ['iif "lo" accept', "ct state invalid counter drop"]
    load(rules_text.base(ipv6=False))
    assert rules("ip", "forward")[0] == "ct state invalid counter drop"
    accepting = [rule for rule in rules("ip6", "input") if "accept" in rule and '"lo"' not in rule]
    first = rules("ip6", "input").index("ct state invalid counter drop")
    assert all(rules("ip6", "input").index(rule) > first for rule in accepting)


@pytest.mark.behaviour("B93")
@pytest.mark.parametrize("ipv6", [True, False])
def test_a_dhcpv6_server_may_answer(ipv6: bool) -> None:
    load(rules_text.base(ipv6=ipv6))
    wanted = "ip6 saddr fe80::/64 ip6 daddr fe80::/64 udp dport 546 accept"
    assert [rule for rule in rules("ip6", "input") if wanted in rule] == [f"iifgroup != {{ 1, 2 }} {wanted}"]


@pytest.mark.behaviour("B92")
def test_where_ipv6_is_off_nothing_passes_and_users_rules_still_load() -> None:
    load(rules_text.base(ipv6=False))
    load(USERS)
    assert chains()["ip6", "forward"] == ("filter", "forward", 0, "drop")
    assert rules("ip6", "forward") == ["counter"]
    assert rules("ip6", "prerouting")[:2] == ['iif "lo" accept', "iifgroup 2 counter drop"]
    assert rules("ip6", "input")[:2] == ['iif "lo" accept', "iifgroup 2 counter drop"]
    # What the qube itself is asked over IPv6 is its user's to accept; what comes from qubes never gets so far.
    assert any(rule.endswith(" jump custom-input") for rule in rules("ip6", "input")[2:])
    assert "jump" not in listing("chain", "ip6", "qubes", "forward")
    assert rules("ip6", "custom-forward") == ["ip6 daddr fd09:24ef:4179::a89:6 accept"]
    assert any(rule.endswith(" jump custom-forward") for rule in rules("ip", "forward"))


@pytest.mark.behaviour("B90")
@pytest.mark.parametrize("before", ["on", "off", "refusing"])
@pytest.mark.parametrize("after", ["on", "off", "refusing"])
def test_a_second_load_changes_nothing_that_others_made(before: str, after: str) -> None:
    texts = {
        "on": rules_text.base(ipv6=True),
        "off": rules_text.base(ipv6=False),
        "refusing": rules_text.base(ipv6=False, refuse6=True),
    }
    load(texts[after])
    fresh = {chain: rules(*chain) for chain in rules_text.CHAINS}
    load(rules_text.unload())
    load(texts[before])
    load(rules_text.attach("vif4.0", [OWN, OWN6], MAC))
    load(rules_text.downstream([OTHER], []))
    load(rules_text.dnat(zip(V, SERVERS, strict=True), V, SERVERS))
    load(USERS)
    theirs = [("ip", "custom-input"), ("ip6", "custom-input"), ("ip", "custom-forward"), ("ip6", "custom-forward")]
    kept = {chain: rules(*chain) for chain in (*theirs, ("ip", "mine"), *rules_text.DNS_CHAINS)}
    assert all(kept.values())
    for _ in range(2):
        load(texts[after])
        assert {chain: rules(*chain) for chain in kept} == kept
        assert {chain: rules(*chain) for chain in rules_text.CHAINS} == fresh
        assert chains()["ip6", "forward"] == ("filter", "forward", 0, "accept" if after == "on" else "drop")
        assert "tcp dport 25 drop" in listing("table", "inet", "theirs")
        assert [elements(family, "allowed") for family in FAMILIES] == [{f"vif4.0 {OWN}"}, {f"vif4.0 {OWN6}"}]
        assert elements("arp", "allowed") == {f"vif4.0 {OWN} {MAC}"}
        assert [elements(family, "downstream") for family in FAMILIES] == [{str(OWN), str(OTHER)}, {str(OWN6)}]


@pytest.mark.behaviour("B58")
def test_vifs_come_and_go() -> None:
    load(rules_text.base(ipv6=True))
    load(rules_text.detach("vif4.0", [OWN, OWN6], [], MAC))
    # An HVM without drivers of its own has two, with the same address.
    load(rules_text.attach("vif4.0", [OWN, OWN6], MAC) + rules_text.attach("vif4.1", [OWN], MAC))
    load(rules_text.attach("vif4.0", [OWN, OWN6], MAC))
    assert elements("ip", "allowed") == {f"vif4.0 {OWN}", f"vif4.1 {OWN}"}
    load(rules_text.detach("vif4.0", [OWN, OWN6, OTHER], [OWN], MAC))
    assert elements("ip", "allowed") == {f"vif4.1 {OWN}"}
    assert elements("arp", "allowed") == {f"vif4.1 {OWN} {MAC}"}
    assert elements("ip", "downstream") == {str(OWN)}
    assert (elements("ip6", "allowed"), elements("ip6", "downstream")) == (set(), set())
    load(rules_text.downstream([OWN6], [OWN, OTHER]))
    assert (elements("ip", "downstream"), elements("ip6", "downstream")) == (set(), {str(OWN6)})


def test_one_transaction_moves_an_address_from_a_vif_to_another() -> None:
    load(rules_text.base(ipv6=True) + rules_text.attach("vif4.0", [OWN], MAC))
    load(rules_text.detach("vif4.0", [OWN], [], MAC) + rules_text.attach("vif5.0", [OWN], MAC))
    assert (elements("ip", "allowed"), elements("ip", "downstream")) == ({f"vif5.0 {OWN}"}, {str(OWN)})


@pytest.mark.behaviour("B33")
@pytest.mark.behaviour("B43")
def test_however_many_load_it_at_once_there_is_one_pair_for_each_address() -> None:
    load(rules_text.base(ipv6=False))
    orders = (SERVERS, SERVERS[::-1], SERVERS, THEMSELVES)
    texts = [rules_text.dnat(zip(V, order, strict=True), V, order) for order in orders]
    started = [subprocess.Popen(["nft", "-f", "-"], stdin=subprocess.PIPE, text=True) for _ in range(3) for _ in texts]
    for i, process in enumerate(started):
        assert process.stdin is not None
        process.stdin.write(texts[i % len(texts)])
        process.stdin.close()
    assert [process.wait(20) for process in started] == [0] * len(started)
    found = [rule.rpartition(" dnat to ")[0] for rule in rules("ip", "dnat-dns")]
    assert found == [f"ip daddr {address} {protocol} dport 53" for address in V for protocol in ("udp", "tcp")]
    # The refusal is of the same hand as the redirection.
    itself = rules("ip", "dnat-dns")[0].endswith(f"dnat to {V[0]}")
    passing = [rule for rule in rules("ip", "dns-reject") if rule.endswith("return")]
    assert len(passing) == (1 if itself else 0)


@pytest.mark.behaviour("B39")
def test_what_is_not_redirected_is_refused() -> None:
    load(rules_text.base(ipv6=False))
    load(rules_text.dnat((), V, ()))
    assert rules("ip", "dnat-dns") == []
    assert rules("ip", "dns-reject") == [
        "ip daddr { 10.139.1.1, 10.139.1.2 } meta l4proto tcp counter reject with tcp reset",
        "ip daddr { 10.139.1.1, 10.139.1.2 } counter reject",
        f"ip daddr != {{ 10.139.1.1, 10.139.1.2 }} {PASSES}",
    ]
    before = [rule for rule in rules("ip", "forward") if "jump" in rule or "drop" in rule]
    assert before.index("jump dns-reject") < before.index("oifgroup 2 counter drop")
    load(rules_text.dnat((), (), ()))
    assert rules("ip", "dns-reject") == [PASSES]


def test_unload_leaves_nothing_of_ours_and_all_of_others() -> None:
    load(rules_text.unload())
    assert objects("table") == []
    load(rules_text.base(ipv6=True) + rules_text.attach("vif4.0", [OWN, OWN6], MAC))
    load(rules_text.dnat(zip(V, THEMSELVES, strict=True), V, THEMSELVES))
    load(USERS)
    load(rules_text.unload())
    assert [(table["family"], table["name"]) for table in objects("table")] == [("inet", "theirs")]
    load(rules_text.unload())
