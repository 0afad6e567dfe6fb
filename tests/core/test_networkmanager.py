# SPDX-License-Identifier: GPL-2.0-or-later
"""NetworkManager: the choice, the profile's text, what is left to us, what is still to wait for, saved profiles."""

from __future__ import annotations

import configparser
import ipaddress

import pytest

from qubes_guestnet.core.plan import Op, Verb
from qubes_guestnet.core.settings import Family, UplinkSettings
from qubes_guestnet.core.uplink import networkmanager as nm
from qubes_guestnet.core.uplink.desired import Flags, Style, desired
from qubes_guestnet.core.uplink.networkmanager import (
    Manager,
    ManagerFacts,
    ProfileOptions,
    choose_manager,
    keyfile,
    mend,
)
from qubes_guestnet.core.values import IPInterface, Link, Neighbour, Route, State, Tunable

MAC = "00:16:3e:5e:6c:05"
LINK = Link(2, "eth0", MAC)
IPV4 = Family(ipaddress.ip_interface("10.137.0.5/32"), ipaddress.ip_address("10.138.0.1"))
IPV6 = Family(ipaddress.ip_interface("fd09::5/128"), ipaddress.ip_address("fe80::1"))
BOTH = UplinkSettings(MAC, IPV4, IPV6)
DNS = (ipaddress.ip_address("10.139.1.1"), ipaddress.ip_address("10.139.1.2"))


@pytest.mark.behaviour("B25", "B29")
@pytest.mark.parametrize(
    ("facts", "manager", "reasons"),
    [
        (ManagerFacts(), Manager.DIRECT, "network-manager=no manager=direct"),
        (ManagerFacts(nmcli=True), Manager.DIRECT, "network-manager=no manager=direct"),
        (ManagerFacts(flag=True), Manager.DIRECT, "network-manager=yes nmcli=no manager=direct"),
        (ManagerFacts(True, True), Manager.NETWORKMANAGER, "network-manager=yes nmcli=yes manager=networkmanager"),
    ],
)
def test_who_configures_the_uplink_and_why(facts: ManagerFacts, manager: Manager, reasons: str) -> None:
    choice = choose_manager(facts)
    assert choice == (manager, reasons)
    assert choice.networkmanager == (manager is Manager.NETWORKMANAGER)
    assert nm.ManagerChoice() == choose_manager(ManagerFacts())


def profile(settings: UplinkSettings = BOTH, **options: object) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read_string(keyfile("eth0", settings, ProfileOptions(**options)).decode())  # type: ignore[arg-type]
    return parser


@pytest.mark.behaviour("B26")
def test_the_whole_text() -> None:
    assert keyfile("eth0", BOTH, ProfileOptions(servers=DNS)).decode().splitlines()[1:] == [
        "[connection]",
        "id=VM uplink eth0",
        "uuid=de85f79b-8c3d-405f-a652-00163e5e6c05",
        "type=ethernet",
        "",
        "[ethernet]",
        "mac-address=00:16:3E:5E:6C:05",
        "cloned-mac-address=preserve",
        "",
        "[ipv4]",
        "method=manual",
        "address1=10.137.0.5/32",
        "route1=0.0.0.0/0",
        "dns=10.139.1.1;10.139.1.2;",
        "",
        "[ipv6]",
        "method=manual",
        "address1=fd09::5/128,fe80::1",
    ]


def test_the_gateway_style_and_a_second_uplink() -> None:
    assert profile(style=Style.GATEWAY)["ipv4"]["address1"] == "10.137.0.5/32,10.138.0.1"
    second = profile(style=Style.GATEWAY, rank=1)
    assert (second["ipv4"]["route-metric"], second["ipv6"]["route-metric"]) == ("200", "200")
    assert profile(rank=2)["ipv4"]["route1"] == "0.0.0.0/0,0.0.0.0,300"


@pytest.mark.behaviour("B15")
@pytest.mark.parametrize("style", Style)
def test_both_flags(style: Style) -> None:
    made = profile(style=style, servers=DNS, flags=Flags(disable_default_route=True, disable_dns_server=True))
    assert dict(made["ipv4"]) == {
        "method": "manual", "address1": "10.137.0.5/32", "route1": "10.138.0.1/32", "never-default": "true",
    }  # fmt: skip
    assert made["ipv6"]["route1"] == "fe80::1/128"
    assert made["ipv6"]["never-default"] == "true"


@pytest.mark.behaviour("B13")
def test_families_that_are_not_asked_for_and_gateways_that_are_not_there() -> None:
    made = profile(UplinkSettings(MAC, None, Family(IPV6.interface)))
    assert dict(made["ipv4"]) == {"method": "disabled"}
    assert dict(made["ipv6"]) == {"method": "manual", "address1": "fd09::5/128"}
    assert dict(profile(UplinkSettings(MAC, IPV4))["ipv6"]) == {"method": "ignore"}


@pytest.mark.behaviour("B139")
def test_ipv4_without_gateway() -> None:
    settings = UplinkSettings(MAC, Family(IPV4.interface))
    device, off = profile(settings), profile(settings, flags=Flags(disable_default_route=True))
    assert dict(device["ipv4"]) == {"method": "manual", "address1": "10.137.0.5/32", "route1": "0.0.0.0/0"}
    assert dict(off["ipv4"]) == dict(profile(settings, style=Style.GATEWAY)["ipv4"]) == {
        "method": "manual", "address1": "10.137.0.5/32",
    }  # fmt: skip


@pytest.mark.behaviour("B109")
def test_the_mtu_is_in_the_profile_only_if_asked_for() -> None:
    assert "mtu" not in profile()["ethernet"]
    assert profile(mtu=1400)["ethernet"]["mtu"] == "1400"


def test_names() -> None:
    assert nm.file_name("eth0") == "qubes-uplink-eth0"
    assert nm.is_ours("qubes-uplink-eth0")
    assert not nm.is_ours("office.nmconnection")


ADDRESS: IPInterface = IPV4.interface
OPS = (
    Op(Verb.LINK_GROUP, 2, "eth0", 1),
    Op(Verb.LINK_UP, 2, "eth0"),
    Op(Verb.ADDRESS_ADD, 2, "eth0", ADDRESS),
    Op(Verb.NEIGHBOUR_SET, 2, "eth0", Neighbour(ipaddress.ip_address("10.138.0.1"))),
    Op(Verb.NEIGHBOUR_SET, 2, "eth0", Neighbour(ipaddress.ip_address("fe80::1"))),
    Op(Verb.NEIGHBOUR_DEL, 2, "eth0", ipaddress.ip_address("10.138.0.9")),
)


def test_what_is_left_to_us() -> None:
    assert nm.left_to_us(OPS, State(addresses=frozenset({ADDRESS}))) == (OPS[0], OPS[5]), "not while it is down"
    assert nm.left_to_us(OPS, State(up=True)) == (OPS[0], OPS[5])
    assert nm.left_to_us(OPS, State(up=True, addresses=frozenset({ADDRESS}))) == (OPS[0], OPS[3], OPS[5])


@pytest.mark.behaviour("B151")
def test_sysctls_are_made_once_while_networkmanager_has_the_link_down() -> None:
    """Or the boot would wait for them, and NetworkManager comes after it."""
    setting = Tunable(("ipv6", "conf", "eth0", "accept_ra"), "0")
    op = Op(Verb.TUNABLE, 2, "eth0", setting)
    assert nm.left_to_us((op,), State(tunables=frozenset({setting._replace(value="1")}))) == (op,)
    assert nm.left_to_us((op,), State(tunables=frozenset({setting}))) == ()


def test_what_networkmanager_has_still_to_do() -> None:
    wanted = desired(BOTH, Style.DEVICE, Flags())
    assert nm.waiting(State(), State()) == ""
    assert nm.waiting(wanted, State()) == "link is down"
    assert nm.waiting(wanted, State(up=True)) == "address 10.137.0.5/32 is missing"
    there = State(up=True, addresses=wanted.addresses)
    assert nm.waiting(wanted, there) == "IPv4 default route is missing"
    its_own = Route(ipaddress.ip_network("0.0.0.0/0"), metric=100, protocol=4)
    assert nm.waiting(wanted, there._replace(routes=frozenset({its_own}))) == "IPv6 default route is missing"
    its_own6 = Route(ipaddress.ip_network("::/0"), IPV6.gateway, metric=100, protocol=4)
    assert nm.waiting(wanted, there._replace(routes=frozenset({its_own, its_own6}))) == ""


SAVED = "[connection]\nid=office\ninterface-name={}\n\n[ethernet]\ninterface-name=ens6f0\n"


@pytest.mark.behaviour("B31")
@pytest.mark.parametrize(
    ("former", "interfaces", "present"),
    [
        ("ens6f0", {"lo", "ens6"}, "ens6"),
        ("enp0s6f0np0", {"enp0s6np0"}, "enp0s6np0"),
        ("ens6f0", {"ens6", "ens6f0"}, "ens6f0"),
        ("ens6f0", {"ens7"}, "ens6f0"),
        ("ens6", {"ens7"}, "ens6"),
        ("ens6f1", {"ens6"}, "ens6f1"),
        ("f0f0x", {"f0x"}, "f0x"),
        ("af0bf0", {"abf0", "af0b"}, "af0bf0"),
    ],
)
def test_a_saved_profile_with_the_former_name(former: str, interfaces: set[str], present: str) -> None:
    assert mend(SAVED.format(former), interfaces) == SAVED.format(present)


def test_what_is_around_it_stays_byte_for_byte() -> None:
    text = "# interface-name=ens6f0\r\n[connection]\r\n  interface-name=ens6f0\r\n[x]\nlast line without end"
    assert mend(text, {"ens6"}) == text.replace("  interface-name=ens6f0", "  interface-name=ens6")
    assert mend("", {"ens6"}) == ""
