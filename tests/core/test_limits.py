# SPDX-License-Identifier: GPL-2.0-or-later
"""The limits of each qube: what the file may say, the text for nft, and what nft's listing means."""

from __future__ import annotations

import ipaddress

import pytest

from qubes_guestnet.core.nft import limits
from qubes_guestnet.core.nft.limits import Count, Counts, InForce, Kept, Limits
from qubes_guestnet.core.provider.provider_report import ProviderReport
from qubes_guestnet.core.provider.settings import ProviderSettings
from qubes_guestnet.core.provider.vif import Vif
from qubes_guestnet.core.provider.vif_order import VifReport
from qubes_guestnet.core.render import provider as render_provider
from qubes_guestnet.core.values import Link
from qubes_guestnet.core.vif_name import parse_name

VIF = Vif(parse_name("vif4.0"), "00:16:3e:5e:6c:05", "vif", (ipaddress.IPv4Address("10.137.0.5"),))
LINK = Link(7, "vif4.0", "fe:ff:ff:ff:ff:ff", up=True, group=2, driver="vif")

USUAL = "kept for 30, 120, 300, 600, 432000 s"
LISTING = """table ip qubes-limits {
    map qubes {
        type ifname : verdict
        elements = { "vif4.0" comment "1000 names, 6000 connections, USUAL" : goto vif4.0,
                 "vif5.0" comment "50 names, 500 connections, USUAL" : goto vif5.0 }
    }

    set vif4.0-names {
        typeof ct id
        size 1000
        flags dynamic,timeout
        timeout 30s
        elements = { 435462487 timeout 31s expires 29s1ms, 2019661100 timeout 5m1s expires 1m,
                 17 timeout 31s expires 1ms }
    }

    set vif4.0-connections {
        size 6000
        elements = { 3 timeout 31s expires 3s }
    }

    chain vif4.0 {
        meta l4proto { icmp, udp } update @vif4.0-connections { ct id timeout 31s } accept
        counter packets 5 bytes 300 drop
    }

    chain vif4.0-names {
        ct state established ct expiration <= 30s update @vif4.0-connections { ct id timeout 31s } accept
        ct id != @vif4.0-names counter packets 9 bytes 9 drop
    }

    chain forward {
        type filter hook forward priority filter + 10; policy accept;
    }
}
table ip6 qubes-limits {
    map qubes {
        elements = { "vif4.0" comment "1000 names, 6000 connections, USUAL" : goto vif4.0 }
    }

    set vif4.0-names {
        size 1000
        elements = { 5 timeout 31s expires 1ms }
    }

    chain vif4.0 {
        counter packets 1 bytes 300 drop
    }
}
""".replace("USUAL", USUAL)


@pytest.mark.behaviour("B112")
def test_defaults_and_what_the_file_says() -> None:
    assert limits.parse({}) == Limits() == (1000, 6000)
    assert limits.parse({"unanswered_names": 200, "hold_after_flush": True}) == (200, 6000)
    assert limits.parse({"unanswered_connections": 20000}) == (1000, 20000)
    assert str(Limits(50, 500)) == "50 names, 500 connections"


@pytest.mark.parametrize("value", ["1000", 1000.0, True, None, -1, 0, 49, 10**9, [1000], {}])
@pytest.mark.parametrize("key", limits.KEYS)
def test_a_value_that_is_not_valid_is_named_with_its_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"\[provider\] {key}: .* is not a whole number from \d+ to \d+"):
        limits.parse({key: value})


@pytest.mark.behaviour("B112")
def test_no_qube_may_have_more_than_a_quarter_of_conntrack() -> None:
    assert limits.possible(Limits(), 262144) == Limits()
    assert limits.possible(Limits(), 8000) == (1000, 2000)
    assert limits.possible(Limits(), 3) == (1000, 500), "the least that there may be"
    assert limits.possible(Limits(1000, 9000), 0) == (1000, 9000), "not known"


@pytest.mark.parametrize("name", ["", "eth0", 'vif4.0" : goto x', "vif4.0 }\nflush ruleset", "vif4.0-names"])
def test_no_name_carries_a_command(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a vif"):
        limits.attach(name, (4,), Limits())
    with pytest.raises(ValueError, match="not the name of a vif"):
        limits.detach(name)


def test_each_text_concerns_the_table_of_the_limits_alone() -> None:
    both, one = limits.attach("vif4.0", (6, 4, 4), Limits(50, 600)), limits.attach("vif4.0", [4], Limits())
    assert "size 50;" in both
    assert "size 600;" in both
    assert limits.attach("vif4.0", (), Limits()) == ""
    assert " ip6 " not in one
    for text in (both, one, limits.detach("vif4.0")):
        assert text.endswith("\n")
        assert all(line.split()[3] == "qubes-limits" for line in text.splitlines() if line.split()[1] != "table")
        assert {line.split()[0] for line in text.splitlines()} <= {"add", "flush", "delete"}
        assert "delete table" not in text


def made(*vifs: tuple[str, tuple[int, ...]], kept: Kept = limits.USUAL) -> dict[tuple[str, str], int]:
    """How many rules the kernel has in each chain once these were attached, one after the other."""
    found: dict[tuple[str, str], int] = {}
    for name, versions in vifs:
        for line in limits.attach(name, versions, Limits(), kept).splitlines():
            verb, what, family, _table, chain, *_ = (*line.split(), "")
            if (verb, what) == ("add", "rule"):
                found[family, chain] += 1
            elif (verb, what) == ("flush", "chain"):
                found[family, chain] = 0
    return found


@pytest.mark.behaviour("B112")
def test_what_is_in_force() -> None:
    words = limits.in_force(LISTING)
    assert words == {
        "vif4.0": {4: f"1000 names, 6000 connections, {USUAL}", 6: f"1000 names, 6000 connections, {USUAL}"},
        "vif5.0": {4: f"50 names, 500 connections, {USUAL}"},
    }
    assert limits.in_force("") == {}
    assert limits.in_force('elements = { "vif4.0" : goto vif4, "vif5.0" : goto vif5 }') == {}, "no comment"
    present = InForce(words, made(("vif4.0", (4, 6)), ("vif5.0", (4, 6))), {})
    for name, versions, wanted, expected in (
        ("vif4.0", (4, 6), Limits(), False),
        ("vif4.0", (4, 6), None, False),
        ("vif4.0", (4, 6), Limits(999), True),
        ("vif5.0", (4,), Limits(50, 500), False),
        ("vif5.0", (4, 6), Limits(50, 500), True),
        ("vif5.0", (4, 6), None, True),
        ("vif6.0", (4,), None, True),
        ("vif6.0", (), Limits(), False),
    ):
        assert limits.missing(name, versions, wanted, present) is expected, (name, versions, wanted)
    # Conntrack keeps them longer now, or it is by another release.
    longer = Kept(datagrams=60)
    assert limits.missing("vif4.0", (4, 6), Limits(), present, longer)
    assert limits.missing("vif4.0", (4, 6), None, present, longer)
    former = present._replace(words={"vif4.0": {4: "1000 names, 6000 connections"}})
    assert limits.missing("vif4.0", (4,), None, former)


@pytest.mark.behaviour("B112")
@pytest.mark.behaviour("B125")
@pytest.mark.parametrize("kept", [Kept(), Kept(30, 30, 30)])
def test_a_chain_that_lost_a_rule_is_not_in_force(kept: Kept) -> None:
    """The map and its words stay when another program flushes a chain, or deletes one rule of it."""
    words = {"vif4.0": dict.fromkeys((4, 6), f"1000 names, 6000 connections, {kept}")}
    rules = made(("vif4.0", (4, 6)), ("vif5.0", (4, 6)), kept=kept)
    assert not limits.missing("vif4.0", (4, 6), None, InForce(words, rules, {}), kept)
    chains = {chain for _, chain in rules}
    assert chains == {"prerouting", "forward", "input", *(f"vif{n}.0{end}" for n in (4, 5) for end in ("", "-names"))}
    for chain in chains:
        for number in (0, rules["ip6", chain] - 1, rules["ip6", chain] + 1):
            lost = InForce(words, {**rules, ("ip6", chain): number}, {})
            concerned = not chain.startswith("vif5")
            assert limits.missing("vif4.0", (4, 6), None, lost, kept) is concerned, (chain, number)
            assert not limits.missing("vif4.0", (4,), None, lost, kept), (chain, number)


@pytest.mark.behaviour("B112")
def test_an_element_lasts_longer_than_its_connection() -> None:
    """By this kernel's settings, the longest of those that it has."""
    assert limits.kept(lambda _name: None) == Kept() == (30, 120, 300, 600, 432000)
    set_here = {
        "nf_conntrack_udp_timeout": "20", "nf_conntrack_icmp_timeout": "50", "nf_conntrack_icmpv6_timeout": "40",
        "nf_conntrack_tcp_timeout_syn_sent": "7", "nf_conntrack_tcp_timeout_close_wait": "900",
        "nf_conntrack_generic_timeout": "8", "nf_conntrack_gre_timeout": "no number",
        "nf_conntrack_tcp_timeout_established": "86400",
    }  # fmt: skip
    kept = limits.kept(set_here.get)
    assert kept == (50, 7, 900, 8, 86400)
    text = limits.attach("vif4.0", (4,), Limits(), kept)
    assert "ct expiration <= 7s update @vif4.0-connections { ct id timeout 8s } accept" in text
    for protocol in ("udp", "icmp"):
        assert f"meta l4proto {protocol} update @vif4.0-connections {{ ct id timeout 51s }} accept" in text
    assert "kept for 50, 7, 900, 8, 86400 s" in text


@pytest.mark.behaviour("B112")
def test_what_is_counted() -> None:
    assert limits.counted(LISTING) == {"vif4.0": Counts(Count(4, 1000, 9), Count(1, 6000, 6))}
    assert limits.counted("") == {}


def provider(vif: VifReport) -> ProviderReport:
    return ProviderReport(ProviderSettings(True), True, vifs=(vif,), ruled=True)


@pytest.mark.behaviour("B112")
def test_what_a_qube_has_without_an_answer() -> None:
    counts = Counts(Count(3, 1000, 0), Count(70, 6000, 12))
    limited = VifReport(VIF, LINK, limits="add rule …\n", counts=counts)
    assert limited.todo == ("nft -f: limits of vif4.0",)
    lines = list(map(str, render_provider.as_text(provider(limited._replace(limits="")))))
    assert lines[-1].endswith("configured, unanswered: 3 of 1000 names, 70 of 6000 connections (12 packets refused)")
    quiet = VifReport(VIF, LINK, counts=Counts(Count(0, 1000, 0), Count(0, 6000, 0)))
    assert str(list(render_provider.as_text(provider(quiet)))[-1]).endswith("configured")
    data = render_provider.as_data(provider(limited), {})
    assert data is not None
    assert data["vifs"][0]["unanswered"] == {
        "names": {"unanswered": 3, "limit": 1000, "refused": 0},
        "connections": {"unanswered": 70, "limit": 6000, "refused": 12},
    }
