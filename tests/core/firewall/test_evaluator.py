# SPDX-License-Identifier: GPL-2.0-or-later
"""What a list says about a packet: our evaluator beside a naive one, for random lists and packets."""

from __future__ import annotations

import itertools
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet.core.firewall import evaluator
from qubes_guestnet.core.firewall.evaluator import ACCEPT, BLOCKED, DEPENDS, POLICY, REFUSE, Packet, judge
from tests.core.firewall import made, naive
from tests.core.firewall.made import A, bound
from tests.core.firewall.naive import Asked

many = settings(max_examples=150, deadline=None, derandomize=True)
TARGET = Asked("192.0.2.1", naive.TCP, 443)
PARTLY = [f"192.0.2.{number}" for number in range(1, 66)]


@pytest.mark.behaviour("B71")
@pytest.mark.parametrize("seed", range(40))
def test_a_hundred_thousand_verdicts_are_those_of_a_second_evaluator(seed: int) -> None:
    # 5 lists of each family × 287 packets × 40 seeds: 115,000.
    chance = Random(seed)
    for version, _ in itertools.product((4, 6), range(5)):
        found = naive.drawn(chance, version)
        which = made.of(found)
        for asked in naive.every_packet(version):
            passes = naive.passes(found, asked)
            assert made.verdict(which, asked).passes == passes, (found, asked)


@many
@given(st.randoms(use_true_random=False), st.sampled_from((4, 6)))
def test_a_list_with_unknown_names_allows_what_it_allows_under_every_binding(chance: Random, version: int) -> None:
    found = naive.drawn(chance, version)
    which = made.of(found)
    unknown = [host for host in (*naive.HOSTS, *naive.NEVER_KNOWN) if host not in found.names]
    for _ in range(15):
        asked = naive.packet(chance, version)
        answer = made.verdict(which, asked).answer
        for choice in itertools.product((True, False), repeat=len(unknown)):
            has = dict(zip(unknown, choice, strict=True))

            def contains(host: str, address: str, has: dict[str, bool] = has) -> bool:
                return has[host] if host in has else address in found.names[host]

            would = naive.passes(found, asked, contains)
            assert answer != ACCEPT or would, (found, asked, has)
            assert answer != REFUSE or not would, (found, asked, has)


@pytest.mark.parametrize(
    ("which", "asked", "answer", "entry"),
    [
        (bound(), TARGET, REFUSE, POLICY),
        (bound(policy=b"accept"), TARGET, ACCEPT, POLICY),
        (bound("action=accept"), TARGET, ACCEPT, 0),
        (bound("action=accept foo=1", policy=b"accept"), TARGET, REFUSE, BLOCKED),
        (bound("action=drop proto=udp", "action=accept dst4=192.0.2.0/24"), TARGET, ACCEPT, 1),
        # B71: ports are numbers.
        (bound("action=accept proto=tcp dstports=80-443"), Asked("192.0.2.1", naive.TCP, 100), ACCEPT, 0),
        (bound("action=accept proto=tcp dstports=1000-2000"), Asked("192.0.2.1", naive.TCP, 150), REFUSE, POLICY),
        (bound("action=accept proto=tcp dstports=8000-10000"), Asked("192.0.2.1", naive.TCP, 9000), ACCEPT, 0),
        # A name that is not known.
        (bound("action=accept dsthost=example.org"), TARGET, DEPENDS, 0),
        (bound("action=drop dsthost=example.org", policy=b"accept"), TARGET, DEPENDS, 0),
        (bound("action=drop dsthost=example.org"), TARGET, REFUSE, POLICY),
        (bound("action=accept dsthost=example.org", "action=accept"), TARGET, ACCEPT, 1),
        (bound("action=accept dsthost=example.org proto=udp"), TARGET, REFUSE, POLICY),
        (bound("action=accept dsthost=127.1"), TARGET, DEPENDS, 0),
        # One that is, and one with too many addresses.
        (bound("action=accept dsthost=example.org", example_org=["192.0.2.1"]), TARGET, ACCEPT, 0),
        (bound("action=accept dsthost=example.org", example_org=[]), TARGET, REFUSE, POLICY),
        (bound("action=accept dsthost=example.org", example_org=PARTLY), TARGET, ACCEPT, 0),
        (
            bound("action=accept dsthost=example.org", example_org=PARTLY),
            Asked("192.0.2.65", naive.TCP, 443),
            DEPENDS,
            0,
        ),
        (bound("action=accept", address=made.SIX), TARGET, REFUSE, POLICY),
    ],
)
@pytest.mark.behaviour("B71")
def test_the_entry_that_decides(which: evaluator.Bound, asked: Asked, answer: str, entry: int) -> None:
    assert made.verdict(which, asked) == (answer, entry)
    assert made.verdict(which, asked).passes == (answer == ACCEPT)


def test_a_packet_without_a_port_matches_no_ports() -> None:
    assert judge(bound("action=accept proto=tcp dstports=0-65535"), Packet(A("192.0.2.1"), 6)) == (REFUSE, POLICY)


LAN = ("action=drop dst4=192.168.0.0/16", "action=accept specialtarget=dns", "action=accept proto=tcp")


@pytest.mark.parametrize(
    ("entries", "servers", "found"),
    [
        (LAN, ("192.168.1.1",), (("192.168.1.1", 0),)),
        (LAN, ("192.168.1.2", "192.168.1.1", "9.9.9.9"), (("192.168.1.1", 0), ("192.168.1.2", 0))),
        (LAN, ("9.9.9.9", "fd00::53"), ()),
        ((LAN[1], LAN[0]), ("192.168.1.1",), ()),
        (LAN[:1], ("192.168.1.1",), ()),
        (("action=drop proto=udp", "action=accept specialtarget=dns proto=tcp"), ("9.9.9.9",), ()),
        (("action=drop proto=tcp", "action=accept specialtarget=dns"), ("9.9.9.9",), (("9.9.9.9", 0),)),
        (("foo", *LAN), ("192.168.1.1",), ()),
        (("action=accept specialtarget=dns proto=icmp",), ("192.168.1.1",), ()),
    ],
)
def test_name_servers_that_an_earlier_entry_refuses(
    entries: tuple[str, ...], servers: tuple[str, ...], found: tuple[tuple[str, int], ...]
) -> None:
    wanted = tuple((A(server), entry) for server, entry in found)
    assert evaluator.shadowed(bound(*entries), frozenset(map(A, servers))) == wanted
