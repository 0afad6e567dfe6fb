# SPDX-License-Identifier: GPL-2.0-or-later
"""The values of a list: what their constructors refuse, and what follows from them."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from qubes_guestnet.core.firewall.rules import INVALID_HOST, Ports, Problem, Rule, Ruleset
from tests.core.firewall.made import FOUR, SIX, A, ruleset

NETWORK = ipaddress.ip_network
BLOCKS = Problem("/k", "", "wrong", "right it")


@pytest.mark.parametrize(
    "conditions",
    [
        {"protocol": "sctp"},
        {"number": -1},
        {"host": "a..b"},
        {"host": "localhost"},
        {"host": "A.org"},
        {"host": "x.org }\nflush ruleset"},
        {"host": "x.org", "network": NETWORK("10.0.0.0/8")},
        {"host": "x.org", "spelling": "y.org"},
        {"spelling": "x.org"},
        {"host": INVALID_HOST, "network": NETWORK("10.0.0.0/8")},
        {"protocol": "icmp", "ports": Ports(1, 2)},
        {"icmp_type": 8},
        {"icmp_type": 8, "protocol": "tcp"},
        {"icmp_type": 256, "protocol": "icmp"},
        {"icmp_type": -1, "protocol": "icmp"},
    ],
)
def test_what_no_rule_can_be_is_no_value(conditions: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Rule(**({"number": 1, "accept": True} | conditions))


@pytest.mark.parametrize(("first", "last"), [(-1, 2), (3, 2), (0, 65536)])
def test_what_is_no_range_of_ports_is_no_value(first: int, last: int) -> None:
    with pytest.raises(ValueError, match="is not a range of ports"):
        Ports(first, last)


def test_a_range_of_ports() -> None:
    assert str(Ports(22, 22)) == "22"
    assert str(Ports(80, 443)) == "80-443"
    assert [port in Ports(80, 443) for port in (79, 80, 443, 444, None, "100")] == [
        False,
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("ruleset", "message"),
    [
        ({"rules": (Rule(1, True), Rule(0, True))}, "not in order"),
        ({"rules": (Rule(1, True), Rule(1, False))}, "not in order"),
        ({"rules": (Rule(1, True, network=NETWORK("::/0")),)}, "for the other family"),
        ({"rules": (Rule(1, True),), "problems": (BLOCKS,)}, "refuses everything"),
        ({"accept": True, "problems": (BLOCKS,)}, "refuses everything"),
    ],
)
def test_what_no_list_can_be_is_no_value(ruleset: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ruleset(A(FOUR), **ruleset)
    assert Ruleset(A(SIX), problems=(BLOCKS,)).blocked


def test_what_an_entry_is_about() -> None:
    assert Rule(0, True).protocols == ()
    assert Rule(0, True, ports=Ports(1, 2)).protocols == ("tcp", "udp")
    assert Rule(0, True, dns=True).protocols == ("tcp", "udp")
    assert Rule(0, True, dns=True, protocol="udp").protocols == ("udp",)
    assert Rule(0, True, dns=True, ports=Ports(50, 60)).destination_ports == Ports(53, 53)
    assert Rule(0, True, ports=Ports(50, 60)).destination_ports == Ports(50, 60)
    assert not Rule(0, False, dns=True, ports=Ports(50, 60)).is_empty
    assert Rule(0, False, dns=True, ports=Ports(80, 90)).is_empty
    assert Rule(0, False, dns=True, protocol="icmp").is_empty


def test_a_name_that_is_written_in_two_ways_is_one_name_with_two_spellings() -> None:
    entries = ("action=accept dsthost=x.org", "action=accept dsthost=X.org. proto=tcp", "action=drop dsthost=a..b")
    found = ruleset(*entries)
    assert found.hosts == ("x.org",)
    assert found.spellings == {"x.org": "x.org", "X.org.": "x.org"}
