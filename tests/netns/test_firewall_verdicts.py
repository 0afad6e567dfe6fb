# SPDX-License-Identifier: GPL-2.0-or-later
"""The firewall of single qubes in the kernel, judged by packets: what a list says is what passes.

A namespace forwards between a vif and the outside, with the firewall's tables alone. Packet sockets at both ends send
as hundreds of qubes and hear what comes out. What passes is compared with our evaluator and with a second one, and what
each rule has counted with the entry that decides.
"""

from __future__ import annotations

import random
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import pytest

from qubes_guestnet.core.firewall import listing, operations, plan, ruleset
from qubes_guestnet.core.firewall.binding import Bound, bind
from qubes_guestnet.core.firewall.lines import BLOCKED, FAMILIES, POLICY, Line
from qubes_guestnet.core.firewall.parsing import parse
from qubes_guestnet.core.firewall.rules import number_of
from qubes_guestnet.provider.ruleset_generation import Transactions
from tests.core.firewall import made, naive
from tests.core.firewall.naive import Asked, Drawn
from tests.support.eventually import eventually
from tests.support.packets import icmp
from tests.support.packets.ports import MARK, packet_of, udp
from tests.support.qubes.forwarder import OWN, Peers, body

# As many rules as an unprivileged transaction has room for (net.core.wmem_max).
QUBES, PACKETS, MANY = 25, 170, 850


def nft(*arguments: str, text: str = "") -> str:
    done = subprocess.run(["nft", *arguments], input=text, text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, f"{done.stderr[:2000]}\n{text[:2000]}"
    return done.stdout


def load(text: str) -> None:
    """As the agent does it: by messages of its own where it can."""
    Transactions().run(text)


def listed() -> dict[int, listing.Listed]:
    there = nft("list", "tables")
    tables = {version: family.table for version, family in FAMILIES.items()}
    return {
        v: listing.parse(nft("-s", "list", "table", *table.split())) for v, table in tables.items() if table in there
    }


def wanted(lists: dict[str, Bound]) -> plan.Wanted:
    servers = {version: frozenset(map(ip_address, each)) for version, each in naive.DNS.items()}
    return plan.Wanted({each.ruleset.address: each for each in lists.values()}, servers)


def apply(lists: dict[str, Bound]) -> None:
    """One transaction, after which there is nothing to do."""
    done = plan.plan(listed(), wanted(lists))
    if done:
        load(operations.transaction(done))
    assert plan.plan(listed(), wanted(lists)) == ()


# --- packets -----------------------------------------------------------------------------------------------------


# Of these qubes everything passes: their packets come last, and tell that the others have come or never will.
FREE = {4: "10.137.255.1", 6: "fd09:1::ffff"}


def free() -> dict[str, Bound]:
    return {address: made.bound("action=accept", address=address) for address in FREE.values()}


class Sent(NamedTuple):
    """A packet, and what becomes of it."""

    qube: str
    asked: Asked


def blast(peers: Peers, packets: list[Sent]) -> set[int]:
    """Send all; return the numbers of those that came out."""
    peers.outside.forget()
    for number, (source, asked) in enumerate(packets):
        packet = packet_of(source, asked.destination, body(source, *asked, number), asked.protocol)
        peers.qube.send_packet(packet)
        if number % 50 == 0:
            peers.outside.drain()
    # What was sent last comes last: it is of a qube that may send anything.
    for version, source in FREE.items():
        word = f"last{version}"
        target = naive.DESTINATIONS[version][0]
        peers.qube.send_packet(packet_of(source, target, udp(source, target, 9, 9, MARK + word.encode()), 17))
        eventually(lambda word=word: any(each.word == word for each in peers.outside.heard()), 20)
    heard = [each for each in peers.outside.heard() if each.word.isdecimal()]
    return {int(each.word) for each in heard if each.source == packets[int(each.word)].qube}


# --- what is expected --------------------------------------------------------------------------------------------


def deciding(bound: Bound, asked: Asked) -> str:
    """The comment of the rule that decides, by the lines as they are in force."""
    version = bound.ruleset.address.version
    for line in bound.lines:
        if is_match(bound, line, asked, version):
            return f"{line.number:04}"
    return BLOCKED if bound.refused else POLICY


def is_match(bound: Bound, line: Line, asked: Asked, version: int) -> bool:
    target = ip_address(asked.destination)
    protocols = {number_of(each, version) for each in line.protocols}
    return (
        (line.network is None or target in line.network)
        and (line.host is None or target in bound.of(line.host).addresses)
        and (not line.dns or asked.destination in naive.DNS[version])
        and (not protocols or asked.protocol in protocols)
        and (line.ports is None or asked.detail in line.ports)
        and (line.icmp_type is None or asked.detail == line.icmp_type)
    )


def counters() -> dict[tuple[str, str], int]:
    """Packets that each rule of each qube's chain has counted, by chain and comment."""
    found: dict[tuple[str, str], int] = {}
    for family in FAMILIES.values():
        chain = ""
        for line in nft("list", "table", *family.table.split()).splitlines():
            words = line.split()
            chain = words[1] if words[:1] == ["chain"] else chain
            match = re.search(r'counter packets (\d+) bytes \d+ .*comment "([^"]+)"', line)
            if match is not None and ruleset.is_chain(chain):
                found[chain, match[2]] = int(match[1])
    return found


def address_of(version: int, number: int) -> str:
    return f"10.137.1.{number}" if version == 4 else f"fd09:1::{number:x}"


def round_of(chance: random.Random) -> tuple[dict[str, Bound], dict[str, Drawn]]:
    """Lists of many qubes of both families; a name has one answer for all."""
    lists, words = {}, {}
    for version in (4, 6):
        names = naive.drawn(chance, version).names
        for number in range(1, QUBES + 1):
            address = address_of(version, number)
            words[address] = naive.drawn(chance, version, most=10)._replace(names=names)
            parsed = parse(ip_address(address), words[address].raw)
            lists[address] = bind(parsed, made.answers(version, names))
    return lists | free(), words


def drawn_packets(chance: random.Random, words: dict[str, Drawn]) -> Iterator[Sent]:
    for address, each in words.items():
        for _ in range(PACKETS):
            yield Sent(address, naive.packet(chance, each.version))


@pytest.mark.behaviour("B71", "B82", "B88")
def test_what_passes_is_what_two_evaluators_say() -> None:
    """102,000 packets of 600 lists, half of each family."""
    peers = Peers()
    for seed in range(12):
        chance = random.Random(seed)
        lists, words = round_of(chance)
        apply({})
        apply(lists)
        packets = list(drawn_packets(chance, words))
        passed = blast(peers, packets)
        expected: Counter[tuple[str, str]] = Counter()
        for number, (source, asked) in enumerate(packets):
            passes = naive.passes(words[source], asked)
            told = (source, asked, words[source])
            assert made.judge(lists[source], made.packet(asked), DNS).passes == passes, told
            assert (number in passed) == passes, told
            expected[ruleset.chain_of(ip_address(source)), deciding(lists[source], asked)] += 1
        expected += Counter({(ruleset.chain_of(ip_address(free)), "0000"): 1 for free in FREE.values()})
        assert {rule: count for rule, count in counters().items() if count} == dict(expected)
        listed: dict[tuple[str, str], int] = {}
        for family in FAMILIES.values():
            for chain, counts in listing.packets(nft("list", "table", *family.table.split())).items():
                listed |= {(chain, comment): count for comment, count in counts.items() if count}
        assert listed == dict(expected)
        assert 0.1 < len(passed) / len(packets) < 0.9


DNS = frozenset(ip_address(each) for servers in naive.DNS.values() for each in servers)


@pytest.mark.behaviour("B80")
def test_before_a_list_nothing_passes_and_nothing_is_answered() -> None:
    peers = Peers()
    apply(free())
    packets = [Sent(address_of(version, 1), each) for version in (4, 6) for each in naive.every_packet(version)[::7]]
    assert blast(peers, packets) == set()
    assert peers.qube.heard() == []


@pytest.mark.behaviour("B85")
def test_what_is_refused_is_answered_at_once() -> None:
    peers = Peers()
    apply({address_of(version, 1): made.bound("action=drop", address=address_of(version, 1)) for version in (4, 6)})
    for version, kind in ((4, (3, 13)), (6, (1, 1))):
        source, target = address_of(version, 1), naive.DESTINATIONS[version][0]
        for number, protocol in enumerate((naive.UDP, naive.TCP)):
            peers.qube.forget()
            asked = Asked(target, protocol, 443)
            begin = time.monotonic()
            peers.qube.send_packet(packet_of(source, target, body(source, *asked, number), protocol))
            answer = lambda: [each for each in peers.qube.heard() if each.word == str(number)]  # noqa: B023, E731
            eventually(answer, 5)
            assert time.monotonic() - begin < 5
            (error,) = answer()
            assert (error.source, error.target, error.protocol) == (OWN[version], source, naive.ICMP[version])
            (packet,) = (each for each in peers.qube.packets if MARK in each)
            assert tuple(packet[20:22] if version == 4 else packet[40:42]) == kind


@pytest.mark.behaviour("B85")
@pytest.mark.parametrize("version", [4, 6])
def test_one_refused_connection_a_second_is_answered_however_many_were_refused_before(version: int) -> None:
    """The limit of the kernel is 1000 ms: of a storm it answers the first few, then one a second (F-13)."""
    peers, path = Peers(), {4: "ipv4/icmp_ratelimit", 6: "ipv6/icmp/ratelimit"}[version]
    Path("/proc/sys/net", path).write_text("1000")
    source, target = address_of(version, 1), naive.DESTINATIONS[version][0]
    apply({source: made.bound("action=drop", address=source)})

    def refuse(number: int) -> None:
        asked = Asked(target, naive.UDP, 443)
        peers.qube.send_packet(packet_of(source, target, body(source, *asked, number), naive.UDP))

    answers = lambda: {each.word for each in peers.qube.heard()}  # noqa: E731
    for number in range(100):  # within a second
        refuse(number)
    eventually(lambda: "0" in answers(), 5)
    for number in range(100, 103):
        time.sleep(1.1)  # what the limit is about
        refuse(number)
        eventually(lambda: str(number) in answers(), 5)  # noqa: B023
    assert len(answers()) < 30


@pytest.mark.behaviour("B84")
def test_answers_and_errors_about_what_is_allowed_come_back() -> None:
    peers = Peers()
    source, target = address_of(4, 1), naive.DESTINATIONS[4][0]
    apply({source: made.bound("action=accept proto=udp dstports=443-443", address=source)})
    asked = packet_of(source, target, udp(source, target, 5000, 443, MARK + b"asked"), 17)
    peers.qube.send_packet(asked)
    assert peers.outside.hears(lambda packet: packet.word == "asked", 5)
    peers.outside.send_packet(packet_of(target, source, udp(target, source, 443, 5000, MARK + b"answer"), 17))
    assert peers.qube.hears(lambda packet: packet.word == "answer", 5)
    peers.qube.forget()
    # Of a router on the way.
    peers.outside.send_packet(icmp.error("198.51.100.1", source, icmp.ERRORS[4]["fragmentation needed"], asked))
    assert peers.qube.hears(lambda packet: packet.source == "198.51.100.1", 5)


@pytest.mark.behaviour("B89")
def test_many_rules_are_one_transaction_and_the_last_one_counts() -> None:
    peers = Peers()
    lists = {}
    for number, rules in ((1, MANY), (2, 10)):
        address = address_of(4, number)
        entries = [f"action=drop dst4=198.18.{each // 250}.{each % 250}" for each in range(rules - 1)]
        lists[address] = made.bound(*entries, f"action=accept dst4=192.0.2.{number}", address=address)
    begin = time.monotonic()
    apply(lists | free())
    assert time.monotonic() - begin < 30
    packets = [Sent(address_of(4, number), Asked(f"192.0.2.{last}", 6, 80)) for number in (1, 2) for last in (1, 2)]
    assert blast(peers, packets) == {0, 3}


@pytest.mark.behaviour("B91", "B74")
def test_a_change_of_rules_or_names_leaves_no_moment_without_them() -> None:
    """Packets go on while lists and names change a hundred times; what no list allows never passes."""
    peers = Peers()
    source = address_of(4, 1)
    kinds = [
        ("action=accept dst4=192.0.2.1 proto=udp", "action=accept dsthost=a.org proto=tcp", "action=drop"),
        ("action=accept dst4=192.0.2.1", "action=accept dsthost=a.org proto=tcp dstports=443-443"),
    ]
    apply(free())
    packets: list[Sent] = []
    for number in range(40):
        known = [["198.51.100.7"], ["198.51.100.7", "192.0.2.129"]][number // 2 % 2]
        bound = made.bound(*kinds[number % 2], address=source, a_org=known)
        todo = operations.transaction(plan.plan(listed(), wanted({source: bound} | free())))
        some = [Sent(source, Asked(each, 17, 443)) for each in ("192.0.2.1", "198.51.100.7", "192.0.2.5") * 10]
        some += [Sent(source, Asked("198.51.100.7", 6, 443))] * 10
        loading = subprocess.Popen(["nft", "-f", "-"], stdin=subprocess.PIPE, text=True)
        assert loading.stdin is not None
        loading.stdin.write(todo)
        loading.stdin.close()
        begin = len(packets)
        packets += some
        for place, (_, asked) in enumerate(some, begin):
            peers.qube.send_packet(packet_of(source, asked.destination, body(source, *asked, place), asked.protocol))
        assert loading.wait(30) == 0
        peers.outside.drain()
    word = f"{len(packets)}"
    target = naive.DESTINATIONS[4][0]
    peers.qube.send_packet(packet_of(source, target, udp(source, target, 9, 9, MARK + word.encode() + b"\0"), 17))
    eventually(lambda: any(each.word == word for each in peers.outside.heard()), 20)
    passed = {int(each.word) for each in peers.outside.heard()} - {len(packets)}
    allowed = {
        place for place, (_, asked) in enumerate(packets) if asked.protocol == 6 or asked.destination == "192.0.2.1"
    }
    # But for the first ones, which may have come before the first list.
    assert passed <= allowed
    assert passed >= {place for place in allowed if place >= 40}


@pytest.mark.behaviour("B90", "B82", "B83")
def test_rules_of_users_survive_and_what_no_qube_sends_is_not_judged() -> None:
    peers = Peers()
    source = address_of(4, 1)
    first = {source: made.bound("action=accept", address=source)}
    apply(first)
    users = (
        "insert rule ip qubes-firewall forward ip daddr 192.0.2.5 drop\n"
        "add rule ip qubes-firewall qubes-forward ip daddr 10.10.10.10 counter\n"
        "add rule ip qubes-firewall prerouting ip daddr 192.0.2.129 drop\n"
        "add rule ip6 qubes-firewall postrouting ip6 daddr fd00::1 drop\n"
    )
    load(users)
    apply(first)
    apply({source: made.bound("action=accept proto=udp", address=source)})
    apply({})
    apply(first)
    text = nft("-s", "list", "ruleset")
    for rule in users.splitlines():
        assert rule.partition("forward ")[2].partition("routing ")[0] in text
    assert text.count("drop\n") == 3
    for number, (target, passes) in enumerate((("192.0.2.1", True), ("192.0.2.5", False), ("192.0.2.129", False))):
        peers.qube.send_packet(packet_of(source, target, body(source, target, 17, 53, number), 17))
        assert (
            peers.outside.hears(lambda packet, number=number: packet.word == str(number), 2 if passes else 0.2)
            == passes
        )
    # From outside to outside, as docker's: by another interface than a vif.
    peers.outside.send_packet(
        packet_of("198.51.100.1", "192.0.2.1", udp("198.51.100.1", "192.0.2.1", 1, 2, MARK + b"docker"), 17)
    )
    assert peers.outside.hears(lambda packet: packet.word == "docker", 5)
