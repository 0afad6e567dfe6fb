# SPDX-License-Identifier: GPL-2.0-or-later
"""Fake addresses that come after the vif: every entry before × every entry after × whether the qube has spoken."""

from __future__ import annotations

import ipaddress

import pytest

from qubes_guestnet.core.provider.late_mappings import FOLLOW, KEEP, LEARN, Shown, changed, is_told, late, shown
from qubes_guestnet.core.provider.vif import Mapping, Vif
from qubes_guestnet.core.vif_name import VifName

REAL, REAL6 = ipaddress.IPv4Address("10.137.0.5"), ipaddress.IPv6Address("fd09::5")
FAKE, OTHER = ipaddress.IPv4Address("192.168.1.5"), ipaddress.IPv4Address("192.168.1.6")
GATEWAY, FAKE_GATEWAY = ipaddress.IPv4Address("10.138.0.1"), ipaddress.IPv4Address("192.168.1.1")
BASE = "/mapped-ip/10.137.0.5/visible-"
FAKED = Mapping(REAL, FAKE, FAKE_GATEWAY)
VIF = Vif(VifName("vif4.0", 4, 0), "00:16:3e:5e:6c:00", "vif", (REAL6, REAL))


def entries(ip: str = "", gateway: str = "") -> dict[str, bytes]:
    """What dom0 has written; "" for nothing."""
    written = {f"{BASE}ip": ip.encode(), f"{BASE}gateway": gateway.encode()}
    return {key: value for key, value in written.items() if value}


NOTHING, AS_IT_IS = entries(), entries("10.137.0.5", "10.138.0.1")
LATE = entries("192.168.1.5", "192.168.1.1")


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (NOTHING, Shown(False)),
        (entries("", "192.168.1.1"), Shown(False)),
        (AS_IT_IS, Shown(True)),
        (LATE, Shown(True, True, (FAKED,))),
        (entries("192.168.1.5"), Shown(True, True, (Mapping(REAL, FAKE),))),
        (entries("rubbish"), Shown(True, False)),
        (entries("192.168.1.5", "rubbish"), Shown(True, False)),
        ({"/mapped-ip/fd09::5/visible-ip": b"192.168.1.5"}, Shown(False)),
        ({"/mapped-ip/10.137.0.6/visible-ip": b"192.168.1.5"}, Shown(False)),
    ],
)
def test_what_dom0_says_now(written: dict[str, bytes], found: Shown) -> None:
    assert shown(written, VIF) == found
    assert is_told(written, VIF.addresses) is found.told


@pytest.mark.behaviour("B159")
@pytest.mark.behaviour("B61")
@pytest.mark.parametrize(
    ("vif", "now", "silent", "spoken"),
    [
        (VIF, LATE, FOLLOW, LEARN),
        (VIF, entries("192.168.1.5"), FOLLOW, LEARN),
        (VIF, AS_IT_IS, LEARN, LEARN),
        (VIF, NOTHING, KEEP, KEEP),
        (VIF, entries("rubbish"), KEEP, KEEP),
        (VIF._replace(told=True), LATE, KEEP, KEEP),
        (VIF._replace(told=True), AS_IT_IS, KEEP, KEEP),
        (VIF._replace(told=True, mappings=(FAKED,)), entries("192.168.1.6"), KEEP, KEEP),
        (VIF._replace(told=True, mappings=(FAKED,)), AS_IT_IS, KEEP, KEEP),
        (VIF._replace(told=True, mappings=(FAKED,)), NOTHING, KEEP, KEEP),
        # A record of an older version does not say which qube was told.
        (VIF._replace(mappings=(FAKED,)), entries("192.168.1.6"), KEEP, KEEP),
    ],
)
def test_only_what_came_late_to_a_silent_qube_is_followed(
    vif: Vif, now: dict[str, bytes], silent: str, spoken: str
) -> None:
    assert late(vif, shown(now, vif), spoken=False) == silent
    assert late(vif, shown(now, vif), spoken=True) == spoken


@pytest.mark.behaviour("B159")
@pytest.mark.parametrize(
    ("before", "now", "differs"),
    [
        (AS_IT_IS, AS_IT_IS, False),
        (AS_IT_IS, NOTHING, False),
        (NOTHING, AS_IT_IS, False),
        (AS_IT_IS, LATE, True),
        (LATE, LATE, False),
        (LATE, entries("192.168.1.6", "192.168.1.1"), True),
        (LATE, entries("192.168.1.5", "192.168.1.2"), True),
        (LATE, entries("192.168.1.5"), True),
        (LATE, AS_IT_IS, True),
        (LATE, NOTHING, True),
        (LATE, entries("rubbish"), False),
        (entries("192.168.1.5"), entries("192.168.1.5", "10.138.0.1"), False),
        (entries("192.168.1.5", "10.138.0.1"), entries("192.168.1.5"), False),
        # A gateway alone is not hidden: as in the programs before this one.
        (AS_IT_IS, entries("10.137.0.5", "192.168.1.1"), False),
    ],
)
def test_what_is_a_change(before: dict[str, bytes], now: dict[str, bytes], differs: bool) -> None:
    vif = VIF._replace(mappings=shown(before, VIF).mappings)
    assert changed(vif, shown(now, vif), GATEWAY) is differs
