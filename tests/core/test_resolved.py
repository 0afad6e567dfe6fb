# SPDX-License-Identifier: GPL-2.0-or-later
"""What systemd-resolved is to know of a link."""

from __future__ import annotations

import ipaddress

import pytest

from qubes_guestnet.core.dns.resolved import LinkNames, parse_resolvectl, wanted
from qubes_guestnet.core.uplink.desired import Flags

DNS = (ipaddress.ip_address("10.139.1.1"), ipaddress.ip_address("10.139.1.2"))


@pytest.mark.behaviour("B21")
def test_our_servers_for_every_name() -> None:
    assert wanted(DNS, Flags(), networkmanager=False, there=True) == LinkNames(
        ("10.139.1.1", "10.139.1.2"), ("~.",), default_route=True
    )


@pytest.mark.behaviour("B15", "B21")
def test_nothing_where_nothing_of_ours_is_to_be() -> None:
    assert wanted((), Flags(), networkmanager=False, there=True) is None
    assert wanted(DNS, Flags(disable_dns_server=True), networkmanager=False, there=True) is None
    assert wanted(DNS, Flags(), networkmanager=True, there=True) is None
    assert wanted(DNS, Flags(), networkmanager=False, there=False) is None


def test_what_resolvectl_prints() -> None:
    assert parse_resolvectl("Link 2 (eth0): 10.139.1.1 10.139.1.2", "Link 2 (eth0): ~.") == (
        ("10.139.1.1", "10.139.1.2"),
        ("~.",),
    )
    assert parse_resolvectl("Link 2 (eth0):", "") == ((), ())
