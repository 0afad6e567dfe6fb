# SPDX-License-Identifier: GPL-2.0-or-later
"""Lists of the firewall, encoded as netlink messages, are those that nft would have loaded, however long they are."""

from __future__ import annotations

import itertools
import random
import subprocess
from pathlib import Path

import pytest

from qubes_guestnet.core.firewall import operations, ruleset
from qubes_guestnet.core.firewall.binding import Bound
from qubes_guestnet.core.firewall.plan import Wanted, plan
from qubes_guestnet.provider.ruleset_generation import Transactions
from qubes_guestnet.system import programs
from qubes_guestnet.system.nft import batch, encode
from qubes_guestnet.system.nft import program as nft
from tests.contract.netfilter.test_nft_encode import encoded, listed
from tests.core.firewall import made, naive, test_golden_firewall
from tests.support.judge.oracle import Oracle

TABLES = "".join(ruleset.tables(version, ruleset.own_rules(version)) for version in (4, 6))
# Of each condition all forms, in every order of the families.
DESTINATIONS = {
    4: ("", "dst4=192.0.2.1/32", "dst4=192.0.2.0/24", "dst4=192.0.0.0/20", "dst4=128.0.0.0/1", "dst4=0.0.0.0/0"),
    6: ("", "dst6=2001:db8::1/128", "dst6=2001:db8::/32", "dst6=2001:db8::/33", "dst6=8000::/1", "dst6=::/0"),
}
OTHERS = ("", "dsthost=example.org", "specialtarget=dns")
KINDS = (
    "", "proto=tcp", "proto=udp", "proto=icmp", "proto=icmp icmptype=8", "proto=icmp icmptype=128",
    "proto=tcp dstports=443-443", "proto=udp dstports=0-1023", "dstports=1-65535", "proto=tcp dstports=0-65535",
)  # fmt: skip
QUBES = {4: "10.137.0.5", 6: "fd09:24ef:4179::a89:5"}


def every(version: int) -> Bound:
    """A list with a rule for every combination of conditions."""
    entries = []
    for action, destination, other, kind in itertools.product(("accept", "drop"), DESTINATIONS[version], OTHERS, KINDS):
        if not (destination and "dsthost" in other):
            entries.append(" ".join(word for word in (f"action={action}", destination, kind, other) if word))
    found = made.bound(*entries, address=QUBES[version], example_org=("192.0.2.7", "2001:db8::7"))
    assert not found.ruleset.blocked
    assert len(found.rules) > 200
    return found


def texts() -> dict[str, list[str]]:
    found = {
        f"every rule of IPv{version}": [TABLES + _names(version) + ruleset.qube(every(version))] for version in (4, 6)
    }
    for case in test_golden_firewall.CASES:
        lists, dns = test_golden_firewall.lists(case)
        servers = {version: frozenset(each for each in dns if each.version == version) for version in (4, 6)}
        found[case.name] = [operations.transaction(plan({}, Wanted(lists, servers)))]
    qube = made.bound("action=accept proto=tcp", address=QUBES[4])
    other = made.bound("action=accept", address=QUBES[6])
    found["the whole life of a qube"] = [
        TABLES,
        ruleset.qube(qube) + ruleset.qube(other),
        ruleset.qube(made.bound("action=drop", address=QUBES[4], policy=b"accept")),
        ruleset.qube(qube),
        f"add chain ip qubes-firewall mine\ndelete element ip qubes-firewall qubes {{ {QUBES[4]} }}\n"
        f"add element ip qubes-firewall qubes {{ {QUBES[4]} : jump mine }}\n",
        ruleset.qube(qube, displaces=True),
        ruleset.without_element(qube.ruleset.address),
        ruleset.without_chain(4, ruleset.chain_of(qube.ruleset.address), keep=False),
        ruleset.without_chain(6, ruleset.chain_of(other.ruleset.address), keep=True),
        TABLES,
    ]
    return found


def _names(version: int) -> str:
    return ruleset.name(version, "example.org", every(version).of("example.org").addresses, make=True)


@pytest.mark.behaviour("B88", "B91")
@pytest.mark.parametrize("name", texts())
def test_messages_load_what_nft_loads(oracle: Oracle, name: str) -> None:
    seen = []
    for load in (nft.run, lambda text: encoded(text).commit()):
        nft.run("flush ruleset\n")
        stages = []
        for text in texts()[name]:
            load(text)
            stages.append((listed(), in_bytecode()))
        seen.append(stages)
    assert seen[0] == seen[1]


def in_bytecode() -> str:
    """The expressions of all rules, as the kernel has them."""
    words = ["nft", "--debug=netlink", "list", "ruleset"]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return "\n".join(line for line in said.splitlines() if line.startswith(("  [", "  userdata")))


def test_drawn_lists_are_encoded_and_no_rule_is_left_to_nft(oracle: Oracle) -> None:
    draw = random.Random(13)
    for version in (4, 6):
        for _ in range(20):
            bound = made.of(naive.drawn(draw, version))
            text = TABLES + "".join(
                ruleset.name(version, host, bound.of(host).addresses, make=True) for host in bound.hosts
            )
            text += ruleset.qube(bound)
            nft.run("flush ruleset\n")
            encoded(text).commit()
            ours = listed(), in_bytecode()
            assert ours[1]
            nft.run(f"flush ruleset\n{text}")
            assert ours == (listed(), in_bytecode())


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "accept nonsense",
        'accept comment "0001" accept',
        'accept comment "a b"',
        'accept comment ""',
        f'accept comment "{"x" * 200}"',
        "ip daddr 192.0.2.256 accept",
        "ip daddr 192.0.2.1/33 accept",
        "ip daddr 192.0.2.1/0 accept",
        "ip daddr 192.0.2.1/08 accept",
        "ip daddr @ accept",
        "ip protocol tcp accept",
        "ip6 daddr 2001:db8::1 accept",
        "meta l4proto sctp accept",
        "meta l4proto { } accept",
        "meta l4proto { tcp, udp",
        "meta l4proto { tcp, udp } meta l4proto { tcp, udp } accept",
        "meta mark 1 accept",
        "th dport 65536 accept",
        "th dport 080 accept",
        "th sport 80 accept",
        "icmp type 8 accept",
        "meta l4proto icmp icmpv6 type 8 accept",
        "meta l4proto icmp icmp type 256 accept",
        "ct state new accept",
        "iifgroup 2 accept",
        "iifgroup != 4294967296 accept",
        "iifgroup != -1 accept",
        'iifname "vif*" accept',
        'iifname != "vif" accept',
        "reject",
        "reject with icmpv6 admin-prohibited",
        "reject with icmp host-unreachable",
        "ip daddr",
    ],
)
def test_a_rule_with_any_other_word_is_nfts(rule: str) -> None:
    assert encode.transaction(f"add rule ip qubes-firewall qbs-10-137-0-5 {rule}\n") is None


@pytest.mark.parametrize(
    "line",
    [
        'add element ip qubes-firewall qubes { 10.137.0.5 comment "a"b" : jump x }',
        "add element ip qubes-firewall qubes { 10.137.0.5 : accept }",
        "add element ip qubes-firewall qubes { fd09::5 : jump x }",
        "add element ip qubes-firewall mine { 10.137.0.5 : jump x }",
        "add element ip6 qubes-firewall qubes { 10.137.0.5 : jump x }",
        "add map ip qubes-firewall qubes { type ipv6_addr : verdict; }",
        "add chain ip qubes-firewall forward { type filter hook forward priority nonsense; policy drop; }",
        "add chain ip qubes-firewall forward { type filter hook forward priority 0; policy queue; }",
    ],
)
def test_other_elements_maps_and_chains_are_nfts(line: str) -> None:
    assert encode.transaction(f"{line}\n") is None


def long(rules: int, address: str = QUBES[4]) -> Bound:
    """A list with so many different rules."""
    return made.bound(
        *(
            f"action=accept proto=tcp dst4=198.18.{n // 250}.{n % 250}/32 dstports={n + 1}-{n + 2}"
            for n in range(rules)
        ),
        address=address,
    )


@pytest.mark.behaviour("B89")
def test_a_thousand_rules_are_one_transaction_without_nft(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as root of a user namespace, where nft cannot enlarge its buffer; as far as net.core.wmem_max lets us."""
    nft.run(TABLES)
    most = 2 * int(Path("/proc/sys/net/core/wmem_max").read_text()) if _is_limited() else 1 << 30
    rules = 1000 if most > 500_000 else 800
    transactions = Transactions()
    before = transactions.mark()
    with monkeypatch.context() as away:
        away.setattr(programs, "SEARCHED", ())
        away.setenv("PATH", "")
        transactions.run(ruleset.qube(long(rules)))
    assert transactions.mark()[0] == before[0] + 1
    assert listed().count(" dport ") == rules


def _is_limited() -> bool:
    """Whether this process is root of a user namespace that is not the first one."""
    return Path("/proc/self/uid_map").read_text().split()[2] != str((1 << 32) - 1)


def test_what_is_too_long_for_the_socket_is_refused_with_its_remedy(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    nft.run(TABLES)
    before = listed()
    with monkeypatch.context() as away:
        away.setattr(batch, "_make_room", lambda *_: None)
        with pytest.raises(nft.Refused, match=r"Message too long; .*raise net\.core\.wmem_max") as refused:
            encoded(ruleset.qube(long(4000))).commit()
    assert refused.value.refused
    assert listed() == before
    encoded(ruleset.qube(long(3))).commit()
    assert listed().count(" dport ") == 3


def test_a_refused_list_is_named_and_leaves_all_as_it_was(oracle: Oracle) -> None:
    nft.run(TABLES)
    before = listed()
    wrong = ruleset.qube(made.bound("action=accept dsthost=missing.org", address=QUBES[4], missing_org=("192.0.2.1",)))
    with pytest.raises(
        nft.Refused, match="No such file or directory: add rule ip qubes-firewall qbs-10-137-0-5 "
    ) as why:
        encoded(ruleset.qube(long(50, "10.137.0.6")) + wrong).commit()
    assert "n-missing.org" in str(why.value)
    assert listed() == before


def test_of_more_refusals_than_the_socket_can_hold_the_first_is_named(oracle: Oracle) -> None:
    """Without the table each of the rules is refused, and the kernel answers each one (ENOBUFS)."""
    chain = "ip qubes-firewall qbs-10-137-0-5"
    with pytest.raises(nft.Refused, match=f"^nft: No such file or directory: add chain {chain}$"):
        encoded(ruleset.qube(long(700))).commit()
    assert listed() == ""
    encoded(TABLES + ruleset.qube(long(3))).commit()
    assert listed().count(" dport ") == 3
