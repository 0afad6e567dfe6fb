# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings → desired state, which interface, which style."""

from __future__ import annotations

import ipaddress

import pytest

from qubes_guestnet.core.settings import Family, UplinkSettings
from qubes_guestnet.core.uplink.desired import Flags, Style, choose_link, choose_style, desired, ipv6_missing
from qubes_guestnet.core.values import GROUP_UPLINK, Link, State

MAC = "00:16:3e:5e:6c:00"
IPV4 = Family(ipaddress.ip_interface("10.137.0.5/32"), ipaddress.ip_address("10.138.0.1"))
IPV6 = Family(ipaddress.ip_interface("fd09::5/128"), ipaddress.ip_address("fd09::1"))
LINK_LOCAL = Family(ipaddress.ip_interface("fd09::5/128"), ipaddress.ip_address("fe80::1"))
DEVICE_ROUTE, GATEWAY_ROUTE = {"default dev"}, {"10.138.0.1/32 dev", "default via 10.138.0.1 onlink"}
IPV6_ROUTES = {"fd09::1/128 dev metric 1025", "default via fd09::1 onlink metric 1025"}


def ways(state: State) -> set[str]:
    return {
        " ".join(
            [
                str(route.destination) if route.destination.prefixlen else "default",
                f"via {route.gateway}" if route.gateway else "dev",
                *(["onlink"] if route.onlink else []),
                *([f"metric {route.metric}"] if route.metric else []),
            ]
        )
        for route in state.routes
    }


ROUTES = [
    pytest.param(IPV4, None, Style.DEVICE, Flags(), 0, DEVICE_ROUTE, id="the device route and nothing else"),
    pytest.param(IPV4, None, Style.GATEWAY, Flags(), 0, GATEWAY_ROUTE, id="style gateway"),
    pytest.param(None, IPV6, Style.DEVICE, Flags(), 0, IPV6_ROUTES, id="IPv6 by the gateway, in either style"),
    pytest.param(None, IPV6, Style.GATEWAY, Flags(), 0, IPV6_ROUTES, id="IPv6 in style gateway"),
    pytest.param(
        None, LINK_LOCAL, Style.DEVICE, Flags(), 0, {"default via fe80::1 onlink metric 1025"}, id="link-local gateway"
    ),
    pytest.param(IPV4, IPV6, Style.DEVICE, Flags(), 0, DEVICE_ROUTE | IPV6_ROUTES, id="both"),
    pytest.param(
        IPV4,
        LINK_LOCAL,
        Style.DEVICE,
        Flags(),
        1,
        {"default dev metric 100", "default via fe80::1 onlink metric 1125"},
        id="a second uplink does not tie with the first",
    ),
    pytest.param(
        IPV4,
        LINK_LOCAL,
        Style.DEVICE,
        Flags(disable_default_route=True),
        0,
        {"10.138.0.1/32 dev"},
        id="no default route, but the gateway",
        marks=pytest.mark.behaviour("B15"),
    ),
    pytest.param(
        None,
        IPV6,
        Style.GATEWAY,
        Flags(disable_default_route=True),
        0,
        {"fd09::1/128 dev metric 1025"},
        id="no IPv6 default route, but the gateway",
        marks=pytest.mark.behaviour("B15"),
    ),
]


@pytest.mark.parametrize(("ipv4", "ipv6", "style", "flags", "rank", "expected"), ROUTES)
def test_the_routes(
    ipv4: Family | None, ipv6: Family | None, style: Style, flags: Flags, rank: int, expected: set[str]
) -> None:
    state = desired(UplinkSettings(MAC, ipv4, ipv6), style, flags, rank)
    assert ways(state) == expected
    assert (state.up, state.group) == (True, GROUP_UPLINK)
    families = [family for family in (ipv4, ipv6) if family]
    assert state.addresses == {family.interface for family in families}
    assert {(entry.address, entry.mac, entry.permanent) for entry in state.neighbours} == {
        (family.gateway, "fe:ff:ff:ff:ff:ff", True) for family in families
    }


@pytest.mark.behaviour("B11")
def test_a_peer_that_is_no_qubes_provider_gets_no_neighbour_entry() -> None:
    state = desired(UplinkSettings(MAC, IPV4, IPV6, custom=True), Style.DEVICE, Flags())
    assert state.neighbours == frozenset()
    assert ways(state) == DEVICE_ROUTE | IPV6_ROUTES


@pytest.mark.behaviour("B13")
def test_a_family_without_gateway_has_its_address_and_no_more() -> None:
    without = Family(IPV6.interface)
    state = desired(UplinkSettings(MAC, IPV4, without), Style.DEVICE, Flags())
    assert state.addresses == {IPV4.interface, IPV6.interface}
    assert ways(state) == DEVICE_ROUTE
    assert {entry.address for entry in state.neighbours} == {IPV4.gateway}


@pytest.mark.behaviour("B139")
@pytest.mark.parametrize("style", Style)
def test_ipv4_without_gateway_has_a_device_route_or_none(style: Style) -> None:
    settings = UplinkSettings(MAC, Family(IPV4.interface))
    device = style is Style.DEVICE
    assert ways(desired(settings, style, Flags())) == (DEVICE_ROUTE if device else set())
    assert desired(settings, style, Flags()).neighbours == frozenset()
    for rank, custom, flags in ((1, False, Flags()), (0, True, Flags()), (0, False, Flags(disable_default_route=True))):
        assert ways(desired(settings._replace(custom=custom), style, flags, rank)) == set()


@pytest.mark.behaviour("B129")
@pytest.mark.parametrize(
    ("disabled", "mtu", "manager", "expected"),
    [
        ("0", 1500, False, ""),
        ("1", 1500, False, "sysctl disable_ipv6"),
        ("1", 1500, True, ""),
        (None, 1500, True, "the kernel does not support it"),
        (None, 0, False, "the kernel does not support it"),
        (None, 1279, False, "its MTU is 1279, below 1280"),
        (None, 1280, False, "the kernel does not support it"),
    ],
)
def test_why_there_is_no_ipv6(disabled: str | None, mtu: int, manager: bool, expected: str) -> None:
    assert ipv6_missing(disabled, mtu, networkmanager=manager) == expected


def test_who_is_asked_for_nothing_gets_nothing() -> None:
    assert desired(UplinkSettings(MAC), Style.DEVICE, Flags()) == State(False, GROUP_UPLINK)


def link(index: int, driver: str, mac: str = MAC) -> Link:
    return Link(index, f"if{index}", mac, driver=driver)


CHOICES = [
    pytest.param([link(2, "vif")], 2, id="the vif"),
    pytest.param([link(2, "e1000"), link(3, "vif")], 3, id="not the emulated card of an HVM"),
    pytest.param([link(2, "veth"), link(3, "vif")], 3, id="vif before veth"),
    pytest.param([link(4, "vif"), link(3, "vif")], 3, id="the first of two"),
    pytest.param([link(2, "802.1Q VLAN Support"), link(3, "bridge"), link(4, "")], None, id="what inherits the MAC"),
    pytest.param([link(2, "vif", "00:16:3e:5e:6c:01")], None, id="another MAC"),
    pytest.param([], None, id="none"),
]


@pytest.mark.behaviour("B8")
@pytest.mark.behaviour("B9")
@pytest.mark.parametrize(("links", "index"), CHOICES)
def test_which_interface(links: list[Link], index: int | None) -> None:
    chosen = choose_link(links, MAC)
    assert (chosen.ifindex if chosen else None) == index


STYLES = [
    (Flags(), None, "", Style.DEVICE, "default"),
    (Flags(), Style.DEVICE, "", Style.DEVICE, "guestnet.toml"),
    (Flags(), Style.GATEWAY, "", Style.GATEWAY, "guestnet.toml"),
    (Flags(), None, "slow", Style.GATEWAY, "fall-back: slow"),
    (Flags(), Style.DEVICE, "slow", Style.GATEWAY, "fall-back: slow"),
    (Flags(), Style.GATEWAY, "slow", Style.GATEWAY, "guestnet.toml"),
    (Flags(gateway_route=True), Style.DEVICE, "slow", Style.GATEWAY, "service flag guestnet-gateway-route"),
]


@pytest.mark.parametrize(("flags", "configured", "fallback", "style", "reason"), STYLES)
def test_which_style_and_why(flags: Flags, configured: Style | None, fallback: str, style: Style, reason: str) -> None:
    assert choose_style(flags, configured, fallback) == (style, reason)
