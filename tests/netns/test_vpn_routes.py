# SPDX-License-Identifier: GPL-2.0-or-later
"""A VPN's default route beside ours: it wins, alone, whichever came first."""

from __future__ import annotations

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.appvm import ENTRIES6, GATEWAY6, AppVm

VPN = """
    ip link add tun0 type veth peer name tun1; ip link set tun1 up; ip link set tun0 up
    ip -6 address add fd01::2/64 dev tun0 nodad
    ip -6 route append default via fd01::1 dev tun0
"""


def ours(appvm: AppVm) -> bool:
    """Our IPv6 default route is there, and is a route of its own."""
    return any(route.get("gateway") == GATEWAY6 for route in appvm.oracle.ip("-6", "route", "show", "default"))


@pytest.mark.scenario("S-403")
@pytest.mark.parametrize("vpn_first", [True, False])
def test_ipv6_connections_are_not_shared_out_between_a_vpn_and_us(vpn_first: bool) -> None:
    appvm = AppVm(ENTRIES6)
    if vpn_first:
        appvm.qube.wire(VPN)
    appvm.qube.start_agent()
    eventually(lambda: ours(appvm))
    if not vpn_first:
        appvm.qube.wire(VPN)
    assert ours(appvm), "merged with the VPN's into one multipath route"
    ways = {appvm.oracle.ip("-6", "route", "get", f"2000:abcd::{n}")[0]["dev"] for n in range(1, 65)}
    assert ways == {"tun0"}
