# SPDX-License-Identifier: GPL-2.0-or-later
"""What is asked to find out whether a provider answers ARP for everybody, and how long the answer holds."""

from __future__ import annotations

import ipaddress

import pytest

from qubes_guestnet.core.owned_state import Fallback
from qubes_guestnet.core.settings import Settings, parse
from qubes_guestnet.core.uplink.arp_probe import Question, fallback, question, standing
from qubes_guestnet.core.uplink.desired import Style
from qubes_guestnet.core.values import Link
from tests.support.faults.hostile import GOOD, MAC

LINK = Link(2, "eth0", MAC, up=True, running=True, driver="vif")
GATEWAY, SERVER = ipaddress.ip_address("10.138.0.1"), ipaddress.IPv4Address("10.139.1.1")
OTHER = ipaddress.IPv4Address("10.139.1.2")
QUESTION = Question(2, MAC, GATEWAY, (SERVER, OTHER))


def keys(**changed: bytes | None) -> Settings:
    """Settings of good keys with some changed; None takes one away."""
    entries = dict(GOOD)
    for name, value in changed.items():
        key = "/qubes-" + name.replace("_", "-")
        if value is None:
            del entries[key]
        else:
            entries[key] = value
    return parse(entries)


def test_the_dns_servers_are_asked_for() -> None:
    settings = keys()
    assert question(settings, settings.uplinks[0], LINK, Style.DEVICE) == QUESTION


NOTHING_TO_ASK = {
    "no interface": (keys(), None, Style.DEVICE),
    "no carrier": (keys(), Link(2, "eth0", MAC, up=True, driver="vif"), Style.DEVICE),
    "by the gateway anyway": (keys(), LINK, Style.GATEWAY),
    "no IPv4": (keys(ip=None), LINK, Style.DEVICE),
    "no gateway": (keys(gateway=None), LINK, Style.DEVICE),
    "no server": (keys(gateway=None, primary_dns=None, secondary_dns=None), LINK, Style.DEVICE),
    "held servers": (keys(primary_dns=b"x"), LINK, Style.DEVICE),
    "the gateway is the server, and has a permanent entry": (
        keys(primary_dns=b"10.138.0.1", secondary_dns=None),
        LINK,
        Style.DEVICE,
    ),
    "we are the server": (keys(primary_dns=b"10.137.0.5", secondary_dns=None), LINK, Style.DEVICE),
}


@pytest.mark.parametrize("case", NOTHING_TO_ASK.values(), ids=NOTHING_TO_ASK.keys())
def test_nothing_to_find_out(case: tuple[Settings, Link | None, Style]) -> None:
    settings, link, style = case
    assert question(settings, settings.uplinks[0], link, style) is None


def test_a_server_that_is_us_or_the_gateway_is_left_out() -> None:
    settings = keys(primary_dns=b"10.138.0.1")
    asked = question(settings, settings.uplinks[0], LINK, Style.DEVICE)
    assert asked is not None
    assert asked.addresses == (OTHER,)


# Answers so far -> the address to ask next, or the verdict.
BEST_OF_THREE = {
    (): SERVER,
    (True,): OTHER,
    (False,): OTHER,
    (True, True): True,
    (False, False): False,
    # the first is asked again only where it has answered: a late answer must not pass for a prompt one
    (True, False): SERVER,
    (False, True): OTHER,
    (True, False, True): True,
    (True, False, False): False,
    (False, True, True): True,
    (False, True, False): False,
}


@pytest.mark.parametrize(("answers", "then"), BEST_OF_THREE.items())
def test_the_best_of_three_answers_counts(answers: tuple[bool, ...], then: object) -> None:
    verdict = QUESTION.verdict(answers)
    assert (QUESTION.next_address(answers) if verdict is None else verdict) == then


def test_a_lone_server_is_asked_again_only_if_it_has_answered() -> None:
    alone = Question(2, MAC, GATEWAY, (SERVER,))
    assert alone.verdict((False,)) is False
    assert alone.verdict((True,)) is None
    assert alone.next_address((True,)) == SERVER
    assert alone.verdict((True, False)) is False
    assert alone.verdict((True, True)) is True


def test_no_answer_is_recorded_with_what_it_was_about() -> None:
    recorded = fallback(QUESTION)
    assert recorded.gateway == GATEWAY
    assert recorded.reason.startswith("no ARP answer for 10.139.1.1 and 10.139.1.2 within 100 ms")


HOLDS = {
    "unchanged": (keys(), True),
    "another gateway is another provider": (keys(gateway=b"10.138.0.2"), False),
    "another server says nothing about the provider": (keys(primary_dns=b"10.139.1.9"), True),
    "nor does a bad one": (keys(primary_dns=b"x"), True),
    "no IPv4 at all": (keys(ip=None), False),
}


@pytest.mark.parametrize(("settings", "holds"), HOLDS.values(), ids=HOLDS.keys())
def test_how_long_a_fallback_holds(settings: Settings, holds: bool) -> None:
    recorded = Fallback(GATEWAY, "slow")
    assert standing(recorded, settings.uplinks[0]) == ("slow" if holds else "")
    assert standing(None, settings.uplinks[0]) == ""
