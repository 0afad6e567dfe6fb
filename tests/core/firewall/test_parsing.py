# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries of one address → rules: the grammar, every error by name, and arbitrary bytes."""

from __future__ import annotations

import ipaddress
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet.core.firewall.parsing import MOST_RULES, parse
from qubes_guestnet.core.firewall.rules import INVALID_HOST, Ports, Problem, Rule, Ruleset
from tests.core.firewall import naive
from tests.core.firewall.made import FOUR, SIX, A, ruleset

many = settings(max_examples=400, deadline=None, derandomize=True)
LONG = "a" * 63
NETWORK = ipaddress.ip_network


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        ("action=accept", Rule(0, True)),
        ("action=drop", Rule(0, False)),
        ("action=accept dst4=1.2.3.4/32", Rule(0, True, network=NETWORK("1.2.3.4/32"))),
        ("action=accept dst4=1.2.3.4", Rule(0, True, network=NETWORK("1.2.3.4/32"))),
        ("action=accept dst4=10.0.0.1/24", Rule(0, True, network=NETWORK("10.0.0.0/24"))),
        ("action=accept dst4=192.0.2.1/08", Rule(0, True, network=NETWORK("192.0.0.0/8"))),
        ("action=accept dst4=0.0.0.0/0", Rule(0, True, network=NETWORK("0.0.0.0/0"))),
        ("action=accept dsthost=example.org", Rule(0, True, host="example.org")),
        ("action=accept dsthost=Example.ORG.", Rule(0, True, host="example.org", spelling="Example.ORG.")),
        ("action=accept dsthost=_srv-1.x", Rule(0, True, host="_srv-1.x")),
        (f"action=accept dsthost={LONG}", Rule(0, True, host=LONG)),
        ("action=accept proto=tcp", Rule(0, True, protocol="tcp")),
        ("action=accept proto=tcp dstports=80-443", Rule(0, True, protocol="tcp", ports=Ports(80, 443))),
        ("action=accept dstports=22", Rule(0, True, ports=Ports(22, 22))),
        ("action=accept proto=icmp icmptype=8", Rule(0, True, protocol="icmp", icmp_type=8)),
        ("action=accept specialtarget=dns", Rule(0, True, dns=True)),
        (
            "specialtarget=dns dstports=53-53 proto=udp action=drop",
            Rule(0, False, protocol="udp", ports=Ports(53, 53), dns=True),
        ),
    ],
)
def test_an_entry(entry: str, rule: Rule) -> None:
    assert ruleset(entry) == Ruleset(A(FOUR), False, (rule,))


@pytest.mark.parametrize(
    "text",
    ["2001:db8::77/64", "2001:0DB8:0000:0000:0000:0000:0000:00AB/64", "2001:db8::/064"],
)
def test_an_ipv6_network_is_canonical(text: str) -> None:
    (rule,) = ruleset(f"action=accept dst6={text}", address=SIX).rules
    assert rule.network == NETWORK("2001:db8::/64")


def test_an_ipv4_address_in_ipv6() -> None:
    (rule,) = ruleset("action=accept dst6=::ffff:192.0.2.1/128", address=SIX).rules
    assert rule.network == NETWORK("::ffff:192.0.2.1/128")


@pytest.mark.behaviour("B66")
@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("", ["an empty option", "action is missing"]),
        ("action=accept ", ["an empty option"]),
        ("action=accept  proto=tcp", ["an empty option"]),
        ("proto=tcp", ["action is missing"]),
        ("action=reject", ["action is not accept or drop"]),
        ("action=accept foo=1", ["the option 'foo' is not known"]),
        ("action=accept expire=1", ["the option 'expire' is not known"]),
        ("action=accept proto", ["'proto' is not option=value"]),
        ("action=accept dsthost=a=b", ["'dsthost=a=b' is not option=value"]),
        ("action=accept proto=tcp proto=udp", ["proto is given twice"]),
        ("action=accept proto=sctp", ["proto is not tcp, udp or icmp"]),
        ("action=accept proto=TCP", ["proto is not"]),
        ("action=accept dst4=", ["dst4 is not an IPv4 network"]),
        ("action=accept dst4=1.2.3.4/33", ["dst4 is not"]),
        ("action=accept dst4=1.2.3.4/", ["dst4 is not"]),
        ("action=accept dst4=1.2.3/24", ["dst4 is not"]),
        ("action=accept dst4=1.2.3.4/255.255.255.0", ["dst4 is not"]),
        (b"action=accept dst4=\1\2\3\4", ["dst4 is not"]),
        ("action=accept dst4=::/0", ["dst4 is not"]),
        ("action=accept dst6=::/0", ["dst6 in the list of an IPv4 address"]),
        ("action=accept dst6=fe80::1%eth0/128", ["dst6 is not", "dst6 in the list"]),
        ("action=accept dst6=::/129", ["dst6 is not", "dst6 in the list"]),
        ("action=accept dst4=1.2.3.4 dsthost=x.org", ["dst4 and dsthost: a rule has one destination"]),
        ("action=accept dstports=65536-65536 proto=tcp", ["dstports is not a range of ports"]),
        ("action=accept dstports=80-70 proto=tcp", ["dstports is not"]),
        ("action=accept dstports=-80 proto=tcp", ["dstports is not"]),
        ("action=accept dstports=80- proto=tcp", ["dstports is not"]),
        ("action=accept dstports=80:90 proto=tcp", ["dstports is not"]),
        ("action=accept dstports=80-90 proto=icmp", ["dstports with proto=icmp"]),
        ("action=accept icmptype=8", ["icmptype without proto=icmp"]),
        ("action=accept icmptype=8 proto=tcp", ["icmptype without proto=icmp"]),
        ("action=accept icmptype=256 proto=icmp", ["icmptype is not a number from 0 to 255"]),
        ("action=accept specialtarget=dhcp", ["specialtarget is not dns"]),
        (b"action=accept proto=\xff", ["proto is not"]),
        (b"\xff\xfe=1", ["the option '\\\\xff\\\\xfe' is not known", "action is missing"]),
        (
            "action=accept; add rule ip x y accept",
            ["action is not", "'add' is not", "'rule'", "'ip'", "'x'", "'y'", "'accept'"],
        ),
        ("action=x proto=y dst4=z foo=1", ["action is not", "proto is not", "dst4 is not", "'foo' is not known"]),
    ],
)
def test_an_invalid_entry_refuses_everything_and_each_error_is_named(entry: str | bytes, words: list[str]) -> None:
    found = ruleset("action=accept", entry, policy=b"accept")
    assert (found.accept, found.rules, found.blocked) == (False, (), True)
    texts = list(map(str, found.problems))
    assert len(texts) == len(words)
    for text, word in zip(texts, words, strict=True):
        assert text.startswith(f"/qubes-firewall/{FOUR}/0001: ")
        assert word in text
        assert text.endswith("refused until it is corrected in dom0: qvm-firewall")


@pytest.mark.behaviour("B66", "B75")
@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "a..b", "a" * 64, "a.b" * 100, "\u00e4.org", "a\tb"),
        *("10", "127.1", "0x7f000001.1", "192.0.2", "192.0.2.1", "localhost", "printer.local."),
    ],
)
def test_what_is_no_host_name_is_named_and_the_rest_of_the_list_holds(name: str) -> None:
    found = ruleset(f"action=accept dsthost={name}", "action=accept proto=tcp")
    assert found.rules == (Rule(0, True, host=INVALID_HOST), Rule(1, True, protocol="tcp"))
    assert not found.blocked
    assert found.hosts == ()
    (problem,) = found.problems
    assert "dsthost has no addresses: " in str(problem)
    assert "an accept with it matches nothing, a drop every destination" in problem.remedy


@pytest.mark.parametrize(
    ("address", "entry", "word"),
    [
        (FOUR, "action=accept specialtarget=dns proto=icmp", "the rule matches nothing"),
        (FOUR, "action=accept specialtarget=dns dstports=80-90", "the rule matches nothing"),
        (FOUR, "action=accept proto=icmp icmptype=128", "128 is not the echo request of IPv4"),
        (SIX, "action=accept proto=icmp icmptype=8", "8 is not the echo request of IPv6"),
    ],
)
def test_what_is_valid_and_does_nothing_is_told(address: str, entry: str, word: str) -> None:
    found = ruleset(entry, address=address)
    assert len(found.rules) == 1
    assert not found.blocked
    assert word in str(found.problems[0])


@pytest.mark.behaviour("B79")
def test_numbers_have_gaps_and_one_to_five_digits_and_are_in_numerical_order() -> None:
    raw = {
        key: f"action=accept proto=tcp dstports={int(key) % 60000}".encode() for key in ("9", "0003", "10000", "00042")
    }
    found = parse(A(FOUR), {"policy": b"accept", **raw})
    assert [rule.number for rule in found.rules] == [3, 9, 42, 10000]
    assert found.accept


@pytest.mark.parametrize("key", ["", "000001", "1a", "٣", "²", "1/2", "policy2", "-1", "1\n", "\x1b[2J", "\ud800"])
def test_a_key_that_is_no_number_refuses_everything(key: str) -> None:
    found = parse(A(FOUR), {"policy": b"accept", "0000": b"action=accept", key: b"action=accept"})
    assert (found.accept, found.rules, len(found.problems)) == (False, (), 1)
    text = str(found.problems[0])
    assert "not the number of a rule" in text
    assert text.isprintable()
    assert text.isascii()


def test_one_number_twice_refuses_everything() -> None:
    found = parse(A(FOUR), {"policy": b"drop", "0001": b"action=accept", "1": b"action=drop"})
    assert [str(each).partition(":")[0] for each in found.problems] == [f"/qubes-firewall/{FOUR}/1"]


@pytest.mark.parametrize(
    ("policy", "word"), [(None, "missing"), (b"", "not a policy"), (b"Accept", "'Accept': not a policy")]
)
def test_without_a_valid_policy_everything_is_refused(policy: bytes | None, word: str) -> None:
    found = ruleset("action=accept", "bad", policy=policy)
    assert (found.accept, found.rules) == (False, ())
    assert word in str(found.problems[0])
    assert str(found.problems[0]).startswith(f"/qubes-firewall/{FOUR}/policy: ")
    assert len(found.problems) == 3  # and those of the entry


@pytest.mark.behaviour("B89")
def test_a_thousand_rules_are_accepted_and_more_than_the_limit_are_not() -> None:
    assert len(ruleset(*["action=drop"] * 1000).rules) == 1000
    assert len(ruleset(*["action=drop"] * MOST_RULES).rules) == MOST_RULES
    found = ruleset(*["action=accept"] * (MOST_RULES + 1), policy=b"accept")
    assert (found.accept, found.rules) == (False, ())
    (problem,) = found.problems
    assert str(problem).startswith(f"/qubes-firewall/{FOUR}/: 4097 rules; the limit is 4096")


# --- arbitrary bytes ---------------------------------------------------------------------------------------------

KEYS = st.one_of(st.just("policy"), st.from_regex(r"[0-9]{1,5}", fullmatch=True), st.text(max_size=6))
WORDS = st.sampled_from(
    [
        "action=accept",
        "action=drop",
        "proto=tcp",
        "proto=icmp",
        "dstports=1-2",
        "dst4=1.2.3.4/5",
        "dsthost=a.b",
        "icmptype=8",
    ]
)
PIECES = st.one_of(
    WORDS.map(str.encode), st.binary(max_size=12), st.sampled_from([b"action=", b"dst4=", b"dsthost=\xff"])
)
VALUES = st.one_of(
    st.binary(max_size=40), st.sampled_from([b"drop", b"accept"]), st.lists(PIECES, max_size=5).map(b" ".join)
)
GRAMMAR: dict[bytes, object] = {b"accept": True, b"drop": False}


def written(rule: Rule) -> dict[bytes, bytes]:
    """A rule as an entry, for comparison: no condition may be lost on the way."""
    found = {b"action": b"accept" if rule.accept else b"drop"}
    if rule.network is not None:
        found[f"dst{rule.network.version}".encode()] = str(rule.network).encode()
    if rule.host is not None:
        found[b"dsthost"] = rule.host.encode()
    if rule.protocol:
        found[b"proto"] = rule.protocol.encode()
    if rule.ports is not None:
        found[b"dstports"] = f"{rule.ports.first}-{rule.ports.last}".encode()
    if rule.icmp_type is not None:
        found[b"icmptype"] = str(rule.icmp_type).encode()
    if rule.dns:
        found[b"specialtarget"] = b"dns"
    return found


@many
@given(st.sampled_from((FOUR, SIX)), st.dictionaries(KEYS, VALUES, max_size=6))
def test_arbitrary_bytes_never_raise_and_never_loosen(address: str, entries: dict[str, bytes]) -> None:
    found = parse(A(address), entries)
    for problem in found.problems:
        assert str(problem).isprintable()

    if found.blocked:
        assert (found.accept, found.rules) == (False, ())
        return
    assert found.accept == GRAMMAR[entries["policy"]]
    assert len(found.rules) == len(entries) - 1
    for rule in found.rules:
        (value,) = (each for key, each in entries.items() if key.isdecimal() and int(key) == rule.number)
        given_words = dict(word.split(b"=") for word in value.split(b" "))
        assert len(given_words) == len(value.split(b" "))
        assert given_words.keys() == written(rule).keys()
        assert GRAMMAR[given_words[b"action"]] == rule.accept


@many
@given(st.randoms(use_true_random=False), st.sampled_from((4, 6)), st.binary(max_size=30))
def test_a_list_with_one_more_invalid_entry_refuses_everything(chance: Random, version: int, junk: bytes) -> None:
    found = naive.drawn(chance, version)
    address = A(naive.QUBE[version])
    assert not parse(address, found.raw).blocked
    broken = parse(address, {**found.raw, "0077": b"action=accept junk=" + junk})
    assert broken.blocked
    assert (broken.accept, broken.rules) == (False, ())


@pytest.mark.parametrize("seed", range(30))
def test_every_list_that_dom0_can_write_is_parsed_without_loss(seed: int) -> None:
    chance = Random(seed)
    found = naive.drawn(chance, chance.choice((4, 6)), most=20)
    rules = parse(A(naive.QUBE[found.version]), found.raw).rules
    assert [f"{rule.number:04}" for rule in rules] == sorted(found.entries)
    for rule, entry in zip(rules, (found.entries[key] for key in sorted(found.entries)), strict=True):
        words = dict(word.encode().split(b"=") for word in entry.split(" "))
        own = written(rule)
        assert own.keys() == words.keys()
        for option in own.keys() - {b"dst4", b"dst6", b"dsthost"}:
            assert own[option] == words[option]


def test_a_problem_is_printed_with_key_value_and_remedy() -> None:
    assert str(Problem("/k", "'v'", "wrong", "right it")) == "/k: 'v': wrong; right it"
    assert str(Problem("/k", "", "wrong", "right it")) == "/k: wrong; right it"
