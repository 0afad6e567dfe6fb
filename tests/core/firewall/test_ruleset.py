# SPDX-License-Identifier: GPL-2.0-or-later
"""The texts for nft: what a rule becomes, and that nothing else gets into one."""

from __future__ import annotations

import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet.core.firewall import ruleset
from qubes_guestnet.core.firewall.parsing import parse
from tests.core.firewall import made, naive
from tests.core.firewall.made import FOUR, SIX, A, bound

REJ, REJ6 = "counter reject with icmp admin-prohibited", "counter reject with icmpv6 admin-prohibited"


@pytest.mark.parametrize(
    ("address", "entry", "rule"),
    [
        (FOUR, "action=accept", "counter accept"),
        (FOUR, "action=drop", REJ),
        (SIX, "action=drop", REJ6),
        (FOUR, "action=accept dst4=10.0.0.1/24", "ip daddr 10.0.0.0/24 counter accept"),
        (FOUR, "action=accept dst4=0.0.0.0/0", "counter accept"),
        (SIX, "action=accept dst6=2001:db8::/32", "ip6 daddr 2001:db8::/32 counter accept"),
        (FOUR, "action=accept proto=tcp dstports=443-443", "meta l4proto tcp th dport 443 counter accept"),
        (FOUR, "action=accept dstports=22-23", "meta l4proto { tcp, udp } th dport 22-23 counter accept"),
        (FOUR, "action=accept proto=udp dstports=0-65535", "meta l4proto udp counter accept"),
        (FOUR, "action=accept proto=icmp icmptype=8", "meta l4proto icmp icmp type 8 counter accept"),
        (SIX, "action=accept proto=icmp icmptype=128", "meta l4proto icmpv6 icmpv6 type 128 counter accept"),
        (
            FOUR,
            "action=accept specialtarget=dns",
            "ip daddr @dns-addr meta l4proto { tcp, udp } th dport 53 counter accept",
        ),
        (
            FOUR,
            "action=drop specialtarget=dns proto=tcp dstports=50-60",
            f"ip daddr @dns-addr meta l4proto tcp th dport 53 {REJ}",
        ),
        (
            FOUR,
            "action=accept specialtarget=dns dst4=1.1.1.1/32",
            "ip daddr 1.1.1.1/32 ip daddr @dns-addr meta l4proto { tcp, udp } th dport 53 counter accept",
        ),
        (
            SIX,
            "action=accept dsthost=example.org proto=tcp",
            "ip6 daddr @n-example.org meta l4proto tcp counter accept",
        ),
    ],
)
def test_an_entry_becomes_one_rule(address: str, entry: str, rule: str) -> None:
    refused = REJ if address == FOUR else REJ6
    assert bound(entry, address=address).rules == (
        f'{rule} comment "0000"',
        f'{refused} comment "policy"',
    )


def test_the_last_rule_is_the_policy_or_the_refusal() -> None:
    assert bound(policy=b"accept").rules == ('counter accept comment "policy"',)
    assert bound("foo", policy=b"accept").rules == (f'{REJ} comment "blocked"',)
    assert bound("action=accept", "action=accept specialtarget=dns proto=icmp").comments == ("0000", "policy")
    assert bound("foo").comments == ("blocked",)


@pytest.mark.behaviour("B82")
@pytest.mark.parametrize(
    ("address", "name"),
    [(FOUR, "qbs-10-137-0-5"), (SIX, "qbs-fd09-24ef-4179--a89-5"), ("192.168.1.1", "qbs-192-168-1-1")],
)
def test_the_name_of_a_chain_is_public(address: str, name: str) -> None:
    assert ruleset.chain_of(A(address)) == name
    ruleset.check_chain(name)


@pytest.mark.parametrize("name", ["forward", "qubes-forward", "qbs-x y", "qbs-1 }\nflush ruleset", "xqbs-1"])
def test_another_chain_is_never_removed(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a qube's chain"):
        ruleset.without_chain(4, name, keep=False)


@pytest.mark.parametrize("host", ["", "a..b", "x }\nflush ruleset", "X", 'x"', "dns addr"])
def test_what_is_no_host_name_gets_into_no_text(host: str) -> None:
    with pytest.raises(ValueError, match="is not a host name"):
        ruleset.name(4, host, (), ())
    with pytest.raises(ValueError, match="is not a host name"):
        ruleset.without_name(4, host)


@pytest.mark.behaviour("B90")
def test_no_text_flushes_or_deletes_what_is_not_the_qubes() -> None:
    text = "".join(
        (
            *(ruleset.tables(version, ruleset.CHAINS) for version in (4, 6)),
            *(ruleset.qube(each) for each in (bound("action=accept"), bound("foo", address=SIX))),
            ruleset.without_element(A(FOUR)),
            ruleset.without_chain(4, "qbs-1-2-3-4", keep=False),
            ruleset.name(4, "a.org", [A(FOUR)], make=True),
            ruleset.without_name(4, "a.org"),
        )
    )
    for line in text.splitlines():
        if line.startswith(("flush", "delete")):
            assert re.fullmatch(r"(flush|delete) (chain|element|set) ip6? qubes-firewall (qbs-|qubes |n-).*", line), (
                line
            )


@pytest.mark.behaviour("B84")
def test_errors_about_what_is_allowed_pass_before_anything_is_judged() -> None:
    for version in (4, 6):
        assert ruleset.own_rules(version)["forward"][0] == "ct state established,related accept"


def test_many_addresses_of_a_name_are_several_lines() -> None:
    addresses = [A(f"10.0.0.{number}") for number in range(1, 100)]
    assert "set" not in ruleset.name(4, "a.org", addresses, addresses[:1]).replace("element", "").split()
    text = ruleset.name(4, "a.org", addresses, addresses[:1], make=True)
    assert [line.split()[0] for line in text.splitlines()] == ["add", "add", "add", "delete"]
    assert ruleset.name(6, "a.org", [], make=True) == "add set ip6 qubes-firewall n-a.org { type ipv6_addr; }\n"


def test_a_signature_tells_lists_apart_but_for_addresses_of_names() -> None:
    lists = [
        bound("action=accept"),
        bound("action=accept dst4=192.0.2.1"),
        bound("action=accept dst4=192.0.2.2"),
        bound("foo"),
        bound(),
    ]
    assert len({each.signature for each in lists}) == len(lists)
    named = "action=accept dsthost=a.org"
    assert bound(named).signature == bound(named, a_org=["192.0.2.1"]).signature


WORDS = frozenset(
    [
        "ip",
        "ip6",
        "daddr",
        "meta",
        "l4proto",
        "tcp",
        "udp",
        "icmp",
        "icmpv6",
        "th",
        "dport",
        "type",
        "counter",
        "accept",
        "reject",
        "with",
        "admin-prohibited",
        "comment",
    ]
)
VALUE = re.compile(
    r'@dns-addr|@n-[a-z0-9_.-]+|[0-9a-f.:]+/[0-9]+|[0-9]+(-[0-9]+)?|\{|\}|(tcp|udp),|"([0-9]{4,5}|policy|blocked)"'
)
ENTRY = st.lists(
    st.one_of(
        st.sampled_from(
            ["action=accept", "action=drop", "proto=tcp", "dstports=1-2", "specialtarget=dns", "dst4=1.2.3.4/5"]
        ).map(str.encode),
        st.binary(max_size=8).map(b"dsthost=".__add__),
        st.sampled_from([b"dsthost=a.b", b"dsthost=a;b", b"dsthost=a}b", b"dst4=1.2.3.4}", b"proto=tcp}"]),
    ),
    min_size=1,
    max_size=4,
).map(b" ".join)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.dictionaries(st.from_regex(r"[0-9]{1,5}", fullmatch=True), ENTRY, max_size=3))
def test_no_byte_of_qubesdb_reaches_nft_unparsed(entries: dict[str, bytes]) -> None:
    from qubes_guestnet.core.firewall.binding import bind

    for rule in bind(parse(A(FOUR), {"policy": b"drop", **entries}), {}).rules:
        for word in rule.split(" "):
            assert word in WORDS or VALUE.fullmatch(word), rule


@pytest.mark.parametrize("seed", range(10))
def test_every_drawn_list_has_one_rule_a_line(seed: int) -> None:
    found = made.of(naive.drawn(Random(seed), 6, most=20))
    assert len(found.rules) == len(found.lines) + 1 == len(found.comments)
