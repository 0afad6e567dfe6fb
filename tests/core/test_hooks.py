# SPDX-License-Identifier: GPL-2.0-or-later
"""When hooks run, and which."""

from __future__ import annotations

import ipaddress

import pytest

from qubes_guestnet.core.hooks import HookFacts, due, fingerprint, runnable
from qubes_guestnet.core.settings import Family, UplinkSettings
from qubes_guestnet.core.uplink import Flags, Style, desired
from qubes_guestnet.core.values import State

SETTINGS = UplinkSettings(
    "00:16:3e:5e:6c:00", Family(ipaddress.ip_interface("10.137.0.5/32"), ipaddress.ip_address("10.138.0.1"))
)
DNS = (ipaddress.ip_address("10.139.1.1"),)


@pytest.mark.behaviour("B14")
def test_the_fingerprint_tells_a_real_change_from_none() -> None:
    device, gateway = (desired(SETTINGS, style, Flags()) for style in (Style.DEVICE, Style.GATEWAY))
    assert fingerprint(device, DNS) == "10.137.0.5/32|10.138.0.1|10.139.1.1"
    assert fingerprint(gateway, DNS) == fingerprint(device, DNS), "how packets leave is no change of the address"
    custom = desired(SETTINGS._replace(custom=True), Style.GATEWAY, Flags())
    assert fingerprint(custom, ()) == "10.137.0.5/32|10.138.0.1|"
    assert fingerprint(State(), ()) == "||"


@pytest.mark.behaviour("B14")
@pytest.mark.parametrize(
    ("told", "provider", "configured", "expected"),
    [("", True, True, True), ("a", True, True, True), ("b", True, True, False), ("", False, True, False),
     ("", True, False, False)],
)  # fmt: skip
def test_due(told: str, provider: bool, configured: bool, expected: bool) -> None:
    assert due(told, "b", provider=provider, configured=configured) is expected


@pytest.mark.behaviour("B14")
def test_each_file_once_and_only_with_its_executable_bit() -> None:
    assert runnable([HookFacts("/a", True, "/a"), HookFacts("/b", True, "/b")]) == ("/a", "/b")
    assert runnable([HookFacts("/a", True, "/a"), HookFacts("/b", True, "/a")]) == ("/a",)
    assert runnable([HookFacts("/a", False, "/a"), HookFacts("/b", True, "/b")]) == ("/b",)
    assert runnable([]) == ()
