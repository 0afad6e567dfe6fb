# SPDX-License-Identifier: GPL-2.0-or-later
"""One vif: the order in which it is set up and taken down, and what nft's listing says of its elements."""

from __future__ import annotations

import ipaddress
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_guestnet.core.nft import rules_text
from qubes_guestnet.core.plan import Op, Verb
from qubes_guestnet.core.provider import settings as provider
from qubes_guestnet.core.provider import vif_order
from qubes_guestnet.core.provider.settings import ProviderSettings
from qubes_guestnet.core.provider.vif import GONE, Mapping, Vif
from qubes_guestnet.core.provider.vif_order import Tunable, VifReport, adding, device, letting_send, there
from qubes_guestnet.core.values import IPAddress, Link, Neighbour, Route, State
from qubes_guestnet.core.vif_name import parse_name

MAC = "00:16:3e:5e:6c:05"
ADDRESS, ADDRESS6 = ipaddress.ip_address("10.137.0.5"), ipaddress.ip_address("fd09::5")
GATEWAY = ipaddress.IPv4Address("10.138.0.1")
VIF = Vif(parse_name("vif4.0"), MAC, "vif", (ADDRESS,))
DUAL = VIF._replace(addresses=(ADDRESS, ADDRESS6))
LINK = Link(7, "vif4.0", "fe:ff:ff:ff:ff:ff", driver="vif")
UP = Link(7, "vif4.0", "fe:ff:ff:ff:ff:ff", up=True, group=2, driver="vif")
ON = ProviderSettings(True, GATEWAY, ipaddress.IPv6Address("fe80::1"))
OFF = ON._replace(gateway6=None)
NOTHING = frozenset[str]()
WORDS = [
    "ip link set dev vif4.0 group 2",
    "ip address add 10.138.0.1/32 dev vif4.0",
    f"ip neighbour replace 10.137.0.5 lladdr {MAC} nud permanent dev vif4.0",
    "ip link set dev vif4.0 up",
    "ip route append 10.137.0.5/32 dev vif4.0 scope link proto 81 metric 32748",
]


def fresh(vif: Vif = VIF, settings: ProviderSettings = OFF) -> tuple[Op, ...]:
    return vif_order.up(LINK, provider.desired(vif, settings), State(), vif, settings.held)


@pytest.mark.behaviour("B50")
def test_nothing_passes_before_its_element_is_there() -> None:
    report = VifReport(VIF, LINK, fresh(), ("add element x",), vif_order.tunables("vif4.0", ipv6=False)[:1])
    assert list(report.todo) == ["sysctl net/ipv4/conf/vif4.0/proxy_arp=1", *WORDS[:3], "nft add element x", *WORDS[3:]]
    early, late = vif_order.split(iter(report.ops))
    assert [op.verb for op in late] == [Verb.LINK_UP, Verb.ROUTE_ADD]
    assert vif_order.added(early) == {ipaddress.ip_interface("10.138.0.1/32")}
    assert vif_order.split(early) == (early, ())


def test_what_is_configured() -> None:
    assert VifReport(VIF, LINK).configured
    assert not VifReport(VIF, None).configured
    assert not VifReport(VIF, LINK, seen=False).configured
    for left in ({"ops": fresh()}, {"elements": ("x",)}, {"tunables": vif_order.tunables("vif4.0", ipv6=False)}):
        assert not VifReport(VIF, LINK)._replace(**left).configured


@pytest.mark.behaviour("B57")
@pytest.mark.behaviour("B56")
@pytest.mark.behaviour("B114")
def test_tunables() -> None:
    four = [
        "sysctl net/ipv4/conf/vif4.0/proxy_arp=1",
        "sysctl net/ipv4/neigh/vif4.0/proxy_delay=0",
        "sysctl net/ipv4/conf/vif4.0/rp_filter=1",
        "sysctl net/ipv4/conf/vif4.0/accept_redirects=0",
    ]
    assert list(map(str, vif_order.tunables("vif4.0", ipv6=False))) == [
        *four,
        "sysctl net/ipv6/conf/vif4.0/disable_ipv6=1",
    ]
    assert list(map(str, vif_order.tunables("vif4.0", ipv6=True))) == [
        *four,
        "sysctl net/ipv6/conf/vif4.0/disable_ipv6=0",
        "sysctl net/ipv6/conf/vif4.0/accept_ra=0",
        "sysctl net/ipv6/conf/vif4.0/accept_redirects=0",
        "sysctl net/ipv6/conf/vif4.0/drop_unsolicited_na=1",
        "sysctl net/ipv6/conf/vif4.0/proxy_ndp=1",
        "sysctl net/ipv6/neigh/vif4.0/proxy_delay=0",
    ]
    assert str(Tunable(("ipv4", "ip_forward"), "1")) == "sysctl net/ipv4/ip_forward=1"


@pytest.mark.behaviour("B58")
@pytest.mark.parametrize(
    ("name", "addresses", "outranked"),
    [
        ("vif5.0", (ADDRESS,), True),
        ("vif3.0", (ADDRESS,), False),
        ("vif4.1", (ADDRESS,), True),
        ("vif4.0", (ADDRESS,), False),
        ("vif5.0", (GATEWAY,), False),
        ("vif5.0", (ADDRESS6,), False),  # neighbour discovery is the rules' to judge
    ],
)
def test_which_of_two_vifs_with_one_address_is_checked_by_the_routes(
    name: str, addresses: tuple[IPAddress, ...], outranked: bool
) -> None:
    other = DUAL._replace(name=parse_name(name), addresses=addresses)
    assert vif_order.outranked(DUAL, (DUAL, other)) is outranked
    check = "sysctl net/ipv4/conf/vif4.0/rp_filter=" + ("2" if outranked else "1")
    assert check in map(str, vif_order.tunables("vif4.0", ipv6=False, outranked=outranked))


@pytest.mark.parametrize(
    ("vif", "settings", "has"),
    [
        (DUAL, ON, True),
        (DUAL, OFF, False),
        (DUAL, OFF._replace(held=frozenset({"ipv6"})), True),
        (VIF, ON, False),
        (DUAL._replace(mappings=(Mapping(GATEWAY, GATEWAY),)), ON, False),
    ],
)
def test_who_has_ipv6(vif: Vif, settings: ProviderSettings, has: bool) -> None:
    assert vif_order.has_ipv6(vif, settings) is has


def done(vif: Vif, settings: ProviderSettings) -> State:
    """What a vif has once it is set up."""
    desired = provider.desired(vif, settings)
    return desired._replace(
        neighbours=frozenset(Neighbour(entry.address, vif.mac) for entry in desired.neighbours),
        routes=frozenset(Route(route.destination, metric=route.metric or 1024) for route in desired.routes),
    )


def test_a_second_time_there_is_nothing_to_do() -> None:
    mine = VIF._replace(gateways=frozenset({ipaddress.ip_interface("10.138.0.1/32")}))
    assert vif_order.up(UP, provider.desired(mine, OFF), done(mine, OFF), mine, NOTHING) == ()


@pytest.mark.behaviour("B95")
@pytest.mark.behaviour("B148")
def test_ipv6_goes_and_stays_while_its_key_is_not_valid() -> None:
    mine = DUAL._replace(gateways=frozenset({ipaddress.ip_interface("10.138.0.1/32")}))
    went = vif_order.up(UP, provider.desired(mine, OFF), done(mine, ON), mine, NOTHING)
    assert [str(op) for op in went] == [
        "ip -6 route del fd09::5/128 dev vif4.0 proto 81 metric 32748",
        "ip -6 neighbour del fd09::5 dev vif4.0",  # it was never planned
    ]
    assert vif_order.up(UP, provider.desired(mine, OFF), done(mine, ON), mine, frozenset({"ipv6"})) == ()
    other = frozenset({"connected"})
    assert vif_order.up(UP, provider.desired(mine, OFF), done(mine, ON), mine, other) == went


def test_the_link_goes_down_before_the_rest_goes() -> None:
    mine = VIF._replace(gateways=frozenset({ipaddress.ip_interface("10.138.0.1/32")}))
    assert [str(op) for op in vif_order.down(UP, done(mine, OFF), mine)] == [
        "ip link set dev vif4.0 down",
        "ip route del 10.137.0.5/32 dev vif4.0 scope link proto 81 metric 32748",
        "ip neighbour del 10.137.0.5 dev vif4.0",
        "ip address del 10.138.0.1/32 dev vif4.0",
    ]


LISTING = """table ip qubes {
 set allowed {
  type ifname . ipv4_addr
  elements = { "vif4.0" . 10.137.0.5,
               "vif5.0" . 10.137.0.6 }
 }
 set downstream {
  type ipv4_addr
  elements = { 10.137.0.5, 10.137.0.7 }
 }
}
table ip6 qubes {
 set allowed {
  type ifname . ipv6_addr
 }
 set downstream {
  type ipv6_addr
  elements = { fd09::5 }
 }
}
"""


def test_the_elements_that_nft_lists() -> None:
    present = vif_order.listed(LISTING)
    assert present == {
        'ip allowed "vif4.0" . 10.137.0.5',
        'ip allowed "vif5.0" . 10.137.0.6',
        "ip downstream 10.137.0.5",
        "ip downstream 10.137.0.7",
        "ip6 downstream fd09::5",
    }
    assert vif_order.downstream(present) == set(map(ipaddress.ip_address, ("10.137.0.5", "10.137.0.7", "fd09::5")))
    assert vif_order.listed("") == frozenset()


LINES = {
    'add element ip qubes allowed { "vif4.0" . 10.137.0.5 }': True,
    'add element ip qubes allowed { "vif4.0" . 10.137.0.5, "vif4.0" . 10.137.0.8 }': False,
    'add element ip qubes allowed { "vif5.0" . 10.137.0.5 }': False,
    'add element ip6 qubes allowed { "vif4.0" . fd09::5 }': False,
    "add element ip6 qubes downstream { fd09::5 }": True,
    "add element ip qubes downstream { 10.137.0.5, 10.137.0.7 }": True,
}


@pytest.mark.parametrize(("line", "there"), LINES.items())
def test_what_is_there(line: str, there: bool) -> None:
    assert vif_order.is_there(line, vif_order.listed(LISTING)) is there


@given(st.lists(st.ip_addresses(), max_size=4))
def test_every_line_of_an_attach_is_understood(addresses: list[IPAddress]) -> None:
    lines = rules_text.attach("vif4.0", addresses, "00:16:3e:5e:6c:05").splitlines()
    listing, sets = "", (*product(("ip", "ip6"), ("allowed", "downstream")), ("arp", "allowed"))
    for family, name in sets:
        members = [line.partition("{")[2] for line in lines if line.split()[2:5] == [family, "qubes", name]]
        listing += f"table {family} qubes {{\n set {name} {{\n"
        listing += "".join(f"\t\telements = {{{text}\n" for text in members) + "\t}\n}\n"
    present = vif_order.listed(listing)
    assert all(vif_order.is_there(line, present) for line in lines)
    assert vif_order.downstream(present) == set(addresses)


@pytest.mark.behaviour("B117")
def test_another_device_of_the_name_is_not_its_own() -> None:
    mine = VIF._replace(device=vif_order.device(UP))
    assert vif_order.is_its_own(VIF, UP), "not written down by former releases"
    assert vif_order.is_its_own(mine, UP)
    for other in (UP._replace(ifindex=UP.ifindex + 1), UP._replace(mac="02:00:00:00:00:01")):
        assert not vif_order.is_its_own(mine, other)


@pytest.mark.behaviour("B114")
def test_what_comes_with_the_rules_for_vifs_whose_own_device_is_there() -> None:
    other = VIF._replace(name=parse_name("vif5.0"), device=device(LINK._replace(ifindex=8)))
    records = (VIF, other, VIF._replace(name=parse_name("vif6.0"), device=GONE))
    indexes = {"vif4.0": 7, "vif5.0": 8, "vif6.0": 9, "eth0": 2}
    assert there(records, indexes) == (VIF, other)
    assert there(records, {**indexes, "vif5.0": 10}) == (VIF,)
    assert there((VIF._replace(device=device(LINK)), other), {"vif4.0": 7}) == (VIF._replace(device=device(LINK)),)
    assert there(records, {}) == ()
    text = letting_send((DUAL,), ON, arp=True)
    assert text == rules_text.attach("vif4.0", DUAL.addresses, MAC)
    assert f'add element arp qubes allowed {{ "vif4.0" . {ADDRESS} . {MAC} }}' in text
    assert letting_send((DUAL,), OFF, arp=False) == rules_text.attach("vif4.0", (ADDRESS,), "")
    assert letting_send((), ON, arp=True) == ""
    many = [VIF._replace(name=parse_name(f"vif{number}.0")) for number in range(1, 251)]
    assert len(letting_send(many, ON, arp=True).splitlines()) == 3
    assert adding(f"flush chain ip qubes forward\n{text}") == {
        f'ip allowed "vif4.0" . {ADDRESS}',
        f'ip6 allowed "vif4.0" . {ADDRESS6}',
        f'arp allowed "vif4.0" . {ADDRESS} . {MAC}',
        f"ip downstream {ADDRESS}",
        f"ip6 downstream {ADDRESS6}",
    }
