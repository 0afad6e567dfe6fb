# SPDX-License-Identifier: GPL-2.0-or-later
"""What is asked to find out whether a provider answers ARP for everybody, and how long the answer holds."""

from __future__ import annotations

import ipaddress

import pytest

from qubes_guestnet.core.proxyarp import Question, fallback, question, standing
from qubes_guestnet.core.record import Fallback
from qubes_guestnet.core.settings import Settings, parse
from qubes_guestnet.core.uplink import Style
from qubes_guestnet.core.values import Link
from tests.support.hostile import GOOD, MAC

LINK = Link(2, "eth0", MAC, up=True, running=True, driver="vif")
GATEWAY, SERVER = ipaddress.ip_address("10.138.0.1"), ipaddress.IPv4Address("10.139.1.1")
QUESTION = Question(2, MAC, GATEWAY, SERVER)


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


def test_the_first_dns_server_is_asked_for() -> None:
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
    "the gateway is the server, and has a permanent entry": (keys(primary_dns=b"10.138.0.1"), LINK, Style.DEVICE),
    "we are the server": (keys(primary_dns=b"10.137.0.5"), LINK, Style.DEVICE),
}


@pytest.mark.parametrize("case", NOTHING_TO_ASK.values(), ids=NOTHING_TO_ASK.keys())
def test_nothing_to_find_out(case: tuple[Settings, Link | None, Style]) -> None:
    settings, link, style = case
    assert question(settings, settings.uplinks[0], link, style) is None


def test_no_answer_is_recorded_with_what_it_was_about() -> None:
    recorded = fallback(QUESTION)
    assert (recorded.gateway, recorded.probed) == (GATEWAY, SERVER)
    assert recorded.reason.startswith("no ARP answer for 10.139.1.1 within 100 ms")


HOLDS = {
    "unchanged": (keys(), True),
    "the second server changed": (keys(secondary_dns=b"10.139.1.9"), True),
    "another gateway is another provider": (keys(gateway=b"10.138.0.2"), False),
    "another server can be asked for": (keys(primary_dns=b"10.139.1.9"), False),
    "a bad server says nothing about the provider": (keys(primary_dns=b"x"), True),
    "nor does a missing one": (keys(primary_dns=None), True),
    "nor does one that cannot be asked for": (keys(primary_dns=b"10.138.0.1"), True),
    "no IPv4 at all": (keys(ip=None), False),
}


@pytest.mark.parametrize(("settings", "holds"), HOLDS.values(), ids=HOLDS.keys())
def test_how_long_a_fallback_holds(settings: Settings, holds: bool) -> None:
    recorded = Fallback(GATEWAY, SERVER, "slow")
    assert standing(recorded, settings, settings.uplinks[0]) == ("slow" if holds else "")
    assert standing(None, settings, settings.uplinks[0]) == ""
