# SPDX-License-Identifier: GPL-2.0-or-later
"""When hooks run, and which."""

from __future__ import annotations

import ipaddress

import pytest

from qubes_guestnet.core.dns.resolv_conf import hook_wrote
from qubes_guestnet.core.hooks import HookFacts, due, fingerprint, runnable
from qubes_guestnet.core.settings import Family, UplinkSettings
from qubes_guestnet.core.uplink.desired import Flags, Style, desired
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


@pytest.mark.behaviour("B124")
@pytest.mark.parametrize(
    ("modified", "ended", "wrote"),
    [
        # It runs still, or its end is not known: until its limit.
        (99.9, [None], False),
        (100.0, [None], True),
        (160.0, [None], True),
        (160.1, [None], False),
        (0.0, [None], False),
        # It has ended: until then, and a second more.
        (99.9, [103.0], False),
        (100.0, [103.0], True),
        (103.0, [103.0], True),
        (104.0, [103.0], True),
        (104.1, [103.0], False),
        (130.0, [103.0], False),
        # The end that is known is of the run before.
        (130.0, [99.0], True),
        (160.1, [99.0], False),
        # Two hooks, of which one runs still, or ends later.
        (130.0, [103.0, None], True),
        (106.0, [103.0, 105.5], True),
        (107.0, [103.0, 105.5], False),
        # There is none any more.
        (100.0, [], False),
    ],
)
def test_a_hook_writes_while_it_runs(modified: float, ended: list[float | None], *, wrote: bool) -> None:
    assert hook_wrote(modified, 100, ended, 60.0) is wrote
    assert not hook_wrote(modified, 0, ended, 60.0), "none was ever started"
