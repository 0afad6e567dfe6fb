# SPDX-License-Identifier: GPL-2.0-or-later
"""The examples and dom0's own lists in the kernel, by packets; and plans from any state to any other, with damage."""

from __future__ import annotations

import ipaddress
import random
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest

from qubes_guestnet.core.firewall import operations, ruleset
from qubes_guestnet.core.firewall.binding import Bound, bind
from qubes_guestnet.core.firewall.lines import FAMILIES
from qubes_guestnet.core.firewall.parsing import parse
from qubes_guestnet.core.firewall.plan import Wanted, plan
from tests.core.firewall import made, naive, test_dom0, test_golden_firewall
from tests.core.firewall.naive import Asked
from tests.core.firewall.test_plan import DAMAGE
from tests.netns.test_firewall_verdicts import Sent, apply, blast, free, listed, load, nft
from tests.support.qubes.forwarder import Peers


def put(lists: dict[str, Bound], dns: frozenset[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> None:
    """One transaction, with these name servers."""
    servers = {version: frozenset(each for each in dns if each.version == version) for version in FAMILIES}
    want = Wanted({each.ruleset.address: each for each in lists.values()}, servers)
    load(operations.transaction(plan(listed(), want)))
    assert plan(listed(), want) == ()


def packet_of(line: str) -> tuple[Sent, str] | None:
    """A line of verdicts.txt; None for a destination that is never forwarded."""
    source, protocol, destination, detail, answer, _ = line.split()
    target = ip_address(destination)
    if target.is_loopback or destination == "255.255.255.255":
        return None
    numbers = {"tcp": 6, "udp": 17, "icmp": naive.ICMP[target.version]}
    number = numbers.get(protocol) or int(protocol)
    return Sent(source, Asked(destination, number, int(detail) if detail.isdecimal() else 0)), answer


@pytest.mark.behaviour("B79", "B82")
def test_the_27_examples_hold_in_the_kernel() -> None:
    peers = Peers()
    judged = 0
    for case in test_golden_firewall.CASES:
        lists, dns = test_golden_firewall.lists(case)
        put({**{str(address): each for address, each in lists.items()}, **free()}, dns)
        found = [each for line in verdicts(case) if (each := packet_of(line)) is not None]
        passed = blast(peers, [sent for sent, _ in found])
        for number, (sent, answer) in enumerate(found):
            assert (number in passed) == (answer == "accept"), (case.name, sent)
        judged += len(found)
    assert judged > 80


def verdicts(case: Path) -> list[str]:
    return (case / "verdicts.txt").read_text().splitlines()


def test_lists_as_dom0_writes_them_hold_in_the_kernel() -> None:
    peers = Peers()
    chance = random.Random(0)
    apply(free())
    for place, found in enumerate(test_dom0.LISTS):
        known = bool(place % 2)
        lists, packets, words = free(), list[Sent](), {}
        for version in (4, 6):
            address = naive.QUBE[version]
            words[address] = test_dom0.drawn(found, version, known=known)
            lists[address] = bind(
                parse(ip_address(address), words[address].raw), made.answers(version, words[address].names)
            )
            every = [each for each in test_dom0.packets(words[address]) if is_forwarded(each)]
            packets += [Sent(address, each) for each in chance.sample(every, min(60, len(every)))]
        apply(lists)
        passed = blast(peers, packets)
        for number, (source, asked) in enumerate(packets):
            assert (number in passed) == naive.passes(words[source], asked), (found["note"], source, asked)


def is_forwarded(asked: Asked) -> bool:
    """Whether a packet for this destination is one for others: no router passes on the rest."""
    target = ip_address(asked.destination)
    mapped = isinstance(target, ipaddress.IPv6Address) and target.ipv4_mapped is not None
    never = target.is_loopback or target.is_multicast or target.is_unspecified or target.is_link_local or mapped
    return not never and target.packed[0] not in (0, 255) and int(target) not in (0, 1)


@pytest.mark.behaviour("B91", "B88")
@pytest.mark.parametrize("seed", range(3))
def test_any_state_becomes_any_other_in_one_transaction(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(8):
        lists = {}
        for version in (4, 6):
            names = naive.drawn(chance, version).names
            for number in chance.sample(range(2, 9), chance.randrange(7)):
                address = f"10.137.0.{number}" if version == 4 else f"fd09::{number}"
                parsed = parse(ip_address(address), naive.drawn(chance, version).raw if chance.randrange(6) else {})
                lists[address] = bind(parsed, made.answers(version, names))
        apply(lists)


@pytest.mark.behaviour("B90")
def test_what_another_program_does_to_ours_is_undone() -> None:
    lists = {made.FOUR: made.bound("action=accept dsthost=a.org", a_org=["192.0.2.1"])}
    for damage in (*DAMAGE, "add table ip qubes-firewall { flags dormant; }\n"):
        apply(lists)
        before = nft("-s", "list", "ruleset")
        done = subprocess.run(["nft", "-f", "-"], input=damage, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert nft("-s", "list", "ruleset") != before
        apply(lists)
        if "mine" in damage:
            load("delete chain ip qubes-firewall mine\n")
        assert sorted(nft("-s", "list", "ruleset").split()) == sorted(before.split()), damage


def test_a_users_rule_that_leads_to_a_qube_that_left_stays() -> None:
    lists = {made.FOUR: made.bound("action=accept")}
    apply(lists)
    load("add rule ip qubes-firewall qubes-forward ip saddr 10.9.9.9 jump qbs-10-137-0-5\n")
    apply({})
    assert "ip saddr 10.9.9.9 jump qbs-10-137-0-5" in nft("-s", "list", "ruleset")
    apply(lists)
    apply({})


def test_the_longest_name_has_a_set() -> None:
    host = ".".join(["a" * 63] * 3 + ["b" * 61])
    lists = {made.FOUR: bind(made.ruleset(f"action=accept dsthost={host}"), made.answers(4, {host: ["192.0.2.1"]}))}
    apply(lists)
    assert f"set {ruleset.set_of(host)} {{" in nft("list", "table", "ip", "qubes-firewall")
    apply({})
