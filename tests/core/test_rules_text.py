# SPDX-License-Identifier: GPL-2.0-or-later
"""The text of the rules: what is in it whatever goes in. Whether the kernel takes it is for tests/netns."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_guestnet.core.endpoint import Endpoint, of
from qubes_guestnet.core.nft import rules_text, tables
from qubes_guestnet.core.values import IPAddress

V = (ipaddress.IPv4Address("10.139.1.1"), ipaddress.IPv4Address("10.139.1.2"))
S = Endpoint(ipaddress.IPv4Address("9.9.9.9"))
OWN, OWN6 = ipaddress.ip_address("10.137.0.5"), ipaddress.ip_address("fd09::5")
MAC = "00:16:3e:5e:6c:05"
PASSES = "meta priority set meta priority & 0xf7ffffff"  # what tells the guard so
addresses4 = st.integers(0, 0xFFFFFFFF).map(ipaddress.IPv4Address)
addresses = st.lists(st.ip_addresses(), max_size=5)


def commands(text: str) -> Iterator[str]:
    """The lines that are no block."""
    return (line for line in text.splitlines() if line.startswith(("add ", "delete ", "flush ")))


@pytest.mark.parametrize(("ipv6", "refuse6"), [(True, False), (False, False), (False, True)])
def test_no_text_takes_away_what_others_put_there(ipv6: bool, refuse6: bool) -> None:
    text = rules_text.base(ipv6=ipv6, refuse6=refuse6)
    assert not [line for line in commands(text) if line.startswith("delete")]
    flushed = {tuple(line.split()[2:]) for line in commands(text) if line.startswith("flush")}
    assert flushed == {(family, "qubes", chain) for family, chain in rules_text.CHAINS}
    assert not [chain for _, _, chain in flushed if chain.startswith("custom-")]
    assert not flushed & {(family, "qubes", chain) for family, chain in rules_text.DNS_CHAINS}
    assert "flush set" not in text
    assert "flush table" not in text


@pytest.mark.behaviour("B160")
def test_ipv6_that_is_refused_differs_from_ipv6_that_is_off_in_two_chains_only() -> None:
    on, off, refusing = (
        [line for line in commands(text) if line.startswith("add rule")]
        for text in (rules_text.base(ipv6=True), rules_text.base(ipv6=False), rules_text.base(ipv6=False, refuse6=True))
    )

    def chain(lines: list[str], name: str) -> list[str]:
        return [line.partition(f" ip6 qubes {name} ")[2] for line in lines if f" ip6 qubes {name} " in line]

    own = "iifname . ip6 saddr @allowed"
    assert chain(refusing, "prerouting") == chain(on, "prerouting")
    assert chain(refusing, "antispoof") == [
        "meta pkttype other meta pkttype set host",
        f"{own} meta l4proto tcp counter reject with tcp reset",
        f"{own} counter reject with icmpv6 admin-prohibited",
        "counter drop",
    ]
    changed = ("prerouting", "antispoof")
    before, after = ([line for line in lines if line.split()[4] not in changed] for lines in (off, refusing))
    assert before == after
    for lines in (on, off):
        assert [line for line in lines if " ip qubes " in line] == [line for line in refusing if " ip qubes " in line]


@pytest.mark.parametrize("ipv6", [True, False])
def test_each_text_ends_its_last_line_so_that_they_can_be_joined(ipv6: bool) -> None:
    texts = [
        rules_text.base(ipv6=ipv6),
        rules_text.attach("vif4.0", [OWN, OWN6], MAC),
        rules_text.detach("vif4.0", [OWN, OWN6], [], MAC),
        rules_text.downstream([OWN], [OWN6]),
        rules_text.dnat([(V[0], S)], V, [S]),
        rules_text.redirection(["udp dport 53 drop"]),
        rules_text.refusal(V, [S]),
        rules_text.unload(),
    ]
    assert all(text.endswith("\n") and not text.startswith("\n") for text in texts)


def test_a_vif_in_the_sets() -> None:
    assert rules_text.attach("vif4.0", iter([OWN, OWN6, OWN]), MAC).splitlines() == [
        'add element ip qubes allowed { "vif4.0" . 10.137.0.5 }',
        'add element ip6 qubes allowed { "vif4.0" . fd09::5 }',
        'add element arp qubes allowed { "vif4.0" . 10.137.0.5 . 00:16:3e:5e:6c:05 }',
        "add element ip qubes downstream { 10.137.0.5 }",
        "add element ip6 qubes downstream { fd09::5 }",
    ]
    assert rules_text.attach("vif4.0", [], MAC) == ""
    assert "arp" not in rules_text.attach("vif4.0", [OWN, OWN6], "")


def test_a_vif_out_of_the_sets() -> None:
    assert rules_text.detach("vif4.0", iter([OWN, OWN6]), iter([OWN]), MAC).splitlines() == [
        'add element ip qubes allowed { "vif4.0" . 10.137.0.5 }',
        'add element ip6 qubes allowed { "vif4.0" . fd09::5 }',
        'add element arp qubes allowed { "vif4.0" . 10.137.0.5 . 00:16:3e:5e:6c:05 }',
        'delete element ip qubes allowed { "vif4.0" . 10.137.0.5 }',
        'delete element ip6 qubes allowed { "vif4.0" . fd09::5 }',
        'delete element arp qubes allowed { "vif4.0" . 10.137.0.5 . 00:16:3e:5e:6c:05 }',
        "add element ip6 qubes downstream { fd09::5 }",
        "delete element ip6 qubes downstream { fd09::5 }",
    ]


@pytest.mark.parametrize("name", ["", "eth0", "vif4.*", 'vif4.0" . 10.0.0.1, "vif5.0', "vif4.0 }\nflush ruleset"])
def test_no_name_carries_a_command(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a vif"):
        rules_text.attach(name, [OWN], MAC)
    with pytest.raises(ValueError, match="not the name of a vif"):
        rules_text.detach(name, [OWN], [], MAC)


@pytest.mark.parametrize("mac", ["00:16:3e:5e:6c", "00:16:3e:5e:6c:05 }\nflush ruleset", "vif4.0"])
def test_no_mac_address_carries_a_command(mac: str) -> None:
    with pytest.raises(ValueError, match="no MAC address"):
        rules_text.attach("vif4.0", [OWN], mac)


@pytest.mark.behaviour("B114")
def test_a_kernel_without_nftables_for_arp_gets_all_the_rest() -> None:
    for ipv6 in (True, False):
        whole, without = (rules_text.base(ipv6=ipv6, arp=arp) for arp in (True, False))
        assert whole.startswith(without)
        assert "arp" not in without
    assert rules_text.chains(tables.FAMILIES) == rules_text.CHAINS
    assert set(rules_text.CHAINS) - set(rules_text.chains(["ip", "ip6"])) == {("arp", "input")}
    assert "arp" in rules_text.unload()
    assert "arp" not in rules_text.unload(arp=False)


@given(addresses, addresses, addresses)
def test_only_elements_and_only_of_their_own_family(
    add: list[IPAddress], remove: list[IPAddress], keep: list[IPAddress]
) -> None:
    text = rules_text.attach("vif4.0", add, MAC) + rules_text.detach("vif4.0", remove, keep, MAC)
    text += rules_text.downstream(add, remove)
    for line in text.splitlines():
        head, members = line.rstrip(" }").split(" { ")
        verb, kind, family, table, name = head.split()
        assert (verb in ("add", "delete"), kind, table) == (True, "element", "qubes")
        for member in members.split(", "):
            *vif, address = member.removesuffix(f" . {MAC}").split(" . ")
            assert vif == (['"vif4.0"'] if name == "allowed" else [])
            assert ipaddress.ip_address(address).version == {"ip": 4, "ip6": 6, "arp": 4}[family]
            assert member.endswith(MAC) == (family == "arp")


@pytest.mark.behaviour("B43")
@pytest.mark.parametrize(
    ("pairs", "virtual", "servers", "rules"),
    [
        ((), (), (), [f"dns-reject {PASSES}"]),
        (
            ((V[0], S), (V[1], S)),
            V,
            (S,),
            [
                "dnat-dns ip daddr 10.139.1.1 udp dport 53 dnat to 9.9.9.9",
                "dnat-dns ip daddr 10.139.1.1 tcp dport 53 dnat to 9.9.9.9",
                "dnat-dns ip daddr 10.139.1.2 udp dport 53 dnat to 9.9.9.9",
                "dnat-dns ip daddr 10.139.1.2 tcp dport 53 dnat to 9.9.9.9",
                "dns-reject ip daddr { 10.139.1.1, 10.139.1.2 } meta l4proto tcp counter reject with tcp reset",
                "dns-reject ip daddr { 10.139.1.1, 10.139.1.2 } counter reject with icmp port-unreachable",
                f"dns-reject ip daddr != {{ 10.139.1.1, 10.139.1.2 }} {PASSES}",
            ],
        ),
        (
            (),
            V[:1],
            (),
            [
                "dns-reject ip daddr { 10.139.1.1 } meta l4proto tcp counter reject with tcp reset",
                "dns-reject ip daddr { 10.139.1.1 } counter reject with icmp port-unreachable",
                f"dns-reject ip daddr != {{ 10.139.1.1 }} {PASSES}",
            ],
        ),
        (
            ((V[0], V[0]),),
            V[:1],
            of(V),
            [
                "dnat-dns ip daddr 10.139.1.1 udp dport 53 dnat to 10.139.1.1",
                "dnat-dns ip daddr 10.139.1.1 tcp dport 53 dnat to 10.139.1.1",
                f"dns-reject ip daddr {{ 10.139.1.1 }} meta l4proto {{ tcp, udp }} th dport 53 {PASSES} return",
                "dns-reject ip daddr { 10.139.1.1 } meta l4proto tcp counter reject with tcp reset",
                "dns-reject ip daddr { 10.139.1.1 } counter reject with icmp port-unreachable",
                f"dns-reject ip daddr != {{ 10.139.1.1 }} {PASSES}",
            ],
        ),
    ],
)
def test_dns(
    pairs: tuple[tuple[ipaddress.IPv4Address, Endpoint], ...],
    virtual: tuple[ipaddress.IPv4Address, ...],
    servers: tuple[Endpoint, ...],
    rules: list[str],
) -> None:
    lines = rules_text.dnat(iter(pairs), iter(virtual), iter(servers)).splitlines()
    for chain in ("dnat-dns", "dns-reject"):
        own = [line for line in lines if f" qubes {chain}" in line]
        assert own[0] == f"flush chain ip qubes {chain}"
        assert own[1:] == [f"add rule ip qubes {rule}" for rule in rules if rule.startswith(chain)]


@pytest.mark.behaviour("B127")
def test_a_port_of_a_server_is_kept_and_only_by_it_a_proxys_questions_leave() -> None:
    servers = (Endpoint(V[0], 5353), Endpoint(V[1]))
    text = rules_text.dnat(zip(V, servers, strict=True), V, servers)
    assert text.count("10.139.1.1 udp dport 53 dnat to 10.139.1.1:5353\n") == 1
    assert f"{{ 10.139.1.1 }} meta l4proto {{ tcp, udp }} th dport 5353 {PASSES} return" in text
    assert f"{{ 10.139.1.2 }} meta l4proto {{ tcp, udp }} th dport 53 {PASSES} return" in text


@pytest.mark.behaviour("B43")
@given(st.lists(addresses4, min_size=1, unique=True), st.lists(addresses4))
def test_every_virtual_address_has_both_protocols_and_a_refusal(
    virtual: list[ipaddress.IPv4Address], addresses: list[ipaddress.IPv4Address]
) -> None:
    servers = of(tuple(addresses))
    pairs = [(address, server) for address, server in zip(virtual, servers, strict=False)]
    lines = rules_text.dnat(pairs, virtual, servers).splitlines()
    for address, server in pairs:
        for protocol in ("udp", "tcp"):
            assert (
                lines.count(f"add rule ip qubes dnat-dns ip daddr {address} {protocol} dport 53 dnat to {server}") == 1
            )
    assert sum("dnat to" in line for line in lines) == 2 * len(pairs)
    refusals = [line for line in lines if " reject with " in line]
    assert len(refusals) == 2
    assert all(str(address) in line for address in virtual for line in refusals)


@pytest.mark.behaviour("B125")
def test_only_a_refusal_that_tells_the_guard_what_passes_is_left_as_it_is() -> None:
    listing = "table ip qubes {{\n\tchain dns-reject {{\n\t\t{}\n\t}}\n}}\n"
    assert rules_text.lets_pass(
        listing.format("ip daddr != { 10.139.1.1 } meta priority set meta priority & f7ff:ffff")
    )
    assert not rules_text.lets_pass(listing.format("ip daddr { 10.139.1.1 } counter reject"))
    assert not rules_text.lets_pass("")


def test_the_firewall_gets_the_servers_and_no_others() -> None:
    servers = tuple(map(ipaddress.IPv4Address, ("192.168.1.1", "9.9.9.9")))
    flush = "flush set ip qubes-firewall dns-addr\n"
    added = "add element ip qubes-firewall dns-addr { 192.168.1.1, 9.9.9.9 }\n"
    assert rules_text.firewall_servers(servers) == flush + added
    assert rules_text.firewall_servers(()) == flush
