# SPDX-License-Identifier: GPL-2.0-or-later
"""What `check` and `status` say about other programs."""

from __future__ import annotations

import ipaddress

import pytest

from qubes_guestnet.core.check.coexisting_services import DefaultRoute, Presence, programs, remarks
from qubes_guestnet.core.render.data import Beside, as_data
from qubes_guestnet.core.render.status import as_text
from qubes_guestnet.core.report import InterfaceReport, Report, Standing
from qubes_guestnet.core.settings import Family, Settings, UplinkSettings
from qubes_guestnet.core.uplink.desired import Style, StyleChoice
from qubes_guestnet.core.uplink.networkmanager import ManagerFacts, choose_manager
from qubes_guestnet.core.values import DEFAULT, IPV4, Link, Route, State

MAC = "00:16:3e:5e:6c:05"
SETTINGS = UplinkSettings(MAC, Family(ipaddress.ip_interface("10.137.0.5/32")))
CHOICE = StyleChoice(Style.DEVICE, "default")
DIRECT = InterfaceReport(SETTINGS, Link(2, "eth0", MAC, driver="vif"), CHOICE)
OWNED = DIRECT._replace(manager=choose_manager(ManagerFacts(True, True)))
NM = frozenset({"NetworkManager"})


def said(interface: InterfaceReport, presence: Presence) -> list[tuple[str, str]]:
    report = Report(Settings(MAC, (SETTINGS,)), (interface,))
    return [(remark.code, remark.severity) for remark in remarks(report, presence)]


@pytest.mark.parametrize(
    ("defaults", "leading"),
    [
        ([], ""),
        ([("eth0", 100, False), ("wg0", 50, False)], "wg0"),
        ([("eth0", 0, False), ("tun0", 500, True)], "tun0"),
        ([("eth0", 7, False), ("eth1", 7, False)], "eth0"),
    ],
)
def test_the_default_route_in_force(defaults: list[tuple[str, int, bool]], leading: str) -> None:
    """The more specific one, then the lowest metric, then the kernel's order."""
    assert Presence(defaults=tuple(DefaultRoute(*each) for each in defaults)).leading == leading


@pytest.mark.parametrize(
    ("interface", "presence", "expected"),
    [
        (DIRECT, Presence(), []),
        (DIRECT, Presence(defaults=(DefaultRoute("eth0"),)), []),
        (DIRECT, Presence(NM), [("networkmanager-present", "note")]),
        (OWNED, Presence(NM), [("networkmanager-present", "note")]),
        (OWNED._replace(waiting="link is down"), Presence(NM), [("networkmanager-waiting", "warning")]),
        (OWNED, Presence(), [("networkmanager-not-running", "error")]),
        (
            DIRECT._replace(manager=choose_manager(ManagerFacts(True, False))),
            Presence(),
            [("networkmanager-missing", "warning")],
        ),
        (
            DIRECT,
            Presence(frozenset({"systemd-resolve", "systemd-network", "dhclient"})),
            [("resolved-present", "note"), ("networkd-present", "note"), ("dhcp-client", "warning")],
        ),
        (DIRECT, Presence(defaults=(DefaultRoute("wg0"),), tunnels=("wg0",)), [("foreign-default-route", "note")]),
        (DIRECT, Presence(defaults=(DefaultRoute("eth0"),), tunnels=("wg0",)), [("vpn-present", "note")]),
        (DIRECT._replace(link=None), Presence(NM | {"dhclient"}), []),
        (DIRECT._replace(removed=True), Presence(NM | {"dhclient"}), []),
    ],
)
def test_what_is_said(interface: InterfaceReport, presence: Presence, expected: list[tuple[str, str]]) -> None:
    assert said(interface, presence) == expected


def test_the_names_are_whole_and_strangers_left_out() -> None:
    presence = Presence(frozenset({"systemd-resolve", "bash", "NetworkManager"}), ("wg0",))
    assert programs(presence) == ("NetworkManager", "systemd-resolved", "VPN wg0")


def test_status_names_them_and_what_is_waited_for() -> None:
    report = Report(Settings(MAC, (SETTINGS,)), (OWNED._replace(waiting="link is down"),))
    presence = Presence(NM)
    text = list(map(str, as_text(report, Standing(), presence)))
    assert "other programs: NetworkManager" in text
    assert "  configured by: NetworkManager (service flag network-manager)" in text
    assert "  NetworkManager has not configured it: link is down" in text
    data = as_data(report, Beside(presence=presence))
    assert data["others"] == ["NetworkManager"]
    assert (data["interfaces"][0]["manager"], data["interfaces"][0]["waiting"]) == ("networkmanager", "link is down")


@pytest.mark.behaviour("B131")
@pytest.mark.parametrize(
    ("style", "pasta", "told"),
    [(Style.DEVICE, "pasta", True), (Style.DEVICE, "", False), (Style.GATEWAY, "passt", False)],
)
def test_pasta_is_told_where_the_default_route_has_no_gateway(style: Style, pasta: str, *, told: bool) -> None:
    observed = State(routes=frozenset({Route(DEFAULT[IPV4])}))
    interface = DIRECT._replace(choice=StyleChoice(style, ""), observed=observed)
    assert said(interface, Presence(pasta=pasta)) == ([("gateway-wanted", "note")] if told else [])
    assert said(DIRECT, Presence(pasta=pasta)) == [], "there is no route at all"
