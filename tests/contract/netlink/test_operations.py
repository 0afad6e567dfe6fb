# SPDX-License-Identifier: GPL-2.0-or-later
"""Each operation of a plan on a real interface: what `ip -json` then shows, what we read back, and what a repeat does.

Runs with the newest pyroute2 and, by `make test`, with the oldest that is supported.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Callable
from typing import Any

import pytest

from qubes_guestnet.core.plan import Op, Verb
from qubes_guestnet.core.values import BACKEND_MAC, Link, Neighbour, Route, State
from qubes_guestnet.errors import KernelError, Vanished
from qubes_guestnet.system.netlink import rtnl as netlink
from tests.support.judge.oracle import Json, Oracle
from tests.support.needs import needs
from tests.support.qubes.appvm import PROTOCOL, words_of

MAC = "00:16:3e:5e:6c:05"
ADDRESS, ADDRESS6 = ipaddress.ip_interface("10.137.0.5/32"), ipaddress.ip_interface("fd09:24ef:4179::a89:5/128")
GATEWAY, GATEWAY6 = ipaddress.ip_address("10.137.0.1"), ipaddress.ip_address("fd09:24ef:4179::a89:1")
ALL, ALL6 = ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")


class Bench:
    """One veth, and the adapter to look at it and to change it."""

    def __init__(self) -> None:
        needs("ip")
        self.oracle = Oracle()
        self.sh(f"ip link add eth0 address {MAC} type veth peer name peer; ip link set peer up")
        self.kernel = netlink.Kernel()

    def sh(self, script: str) -> None:
        self.oracle.run("sh", "-ec", script)

    @property
    def link(self) -> Link:
        (link,) = self.kernel.links(frozenset({MAC}))
        return link

    def do(self, verb: Verb, subject: Any = None) -> None:
        self.kernel.apply(Op(verb, self.link.ifindex, "eth0", subject))

    def state(self, *neighbours: Any) -> State:
        return self.kernel.observe(self.link, neighbours)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def address(oracle: Oracle, family: str) -> Json:
    (link,) = oracle.ip("address", "show", "dev", "eth0")
    (found,) = (entry for entry in link["addr_info"] if entry["family"] == family and entry["scope"] != "link")
    return dict(found)


def test_ipv4_address(bench: Bench) -> None:
    bench.do(Verb.ADDRESS_ADD, ADDRESS)
    found = address(bench.oracle, "inet")
    assert (found["local"], found["prefixlen"], found["scope"]) == ("10.137.0.5", 32, "global")
    assert bench.state().addresses == {ADDRESS}
    bench.do(Verb.ADDRESS_DEL, ADDRESS)
    assert bench.oracle.addresses("eth0") == set()


def test_ipv6_address_is_usable_at_once(bench: Bench) -> None:
    bench.do(Verb.LINK_UP)
    bench.do(Verb.ADDRESS_ADD, ADDRESS6)
    found = address(bench.oracle, "inet6")
    assert (found["local"], found["prefixlen"], found["scope"]) == ("fd09:24ef:4179::a89:5", 128, "global")
    assert found.get("nodad") is True
    assert "tentative" not in found
    assert bench.state().addresses == {ADDRESS6}
    bench.do(Verb.ADDRESS_DEL, ADDRESS6)
    assert bench.oracle.addresses("eth0") == set()


@pytest.mark.parametrize("text", ["10.137.0.5/24", "10.0.0.1/8", "10.137.0.4/31", "fd00::5/64", "fd00::/127"])
def test_every_length(bench: Bench, text: str) -> None:
    bench.do(Verb.ADDRESS_ADD, ipaddress.ip_interface(text))
    assert bench.oracle.addresses("eth0") == {text}
    assert bench.state().addresses == {ipaddress.ip_interface(text)}
    bench.do(Verb.ADDRESS_DEL, ipaddress.ip_interface(text))
    assert bench.oracle.addresses("eth0") == set()


ROUTES = [
    (Route(ALL), "default scope link"),
    (Route(ALL, metric=100), "default scope link"),
    (Route(ipaddress.ip_network("10.137.0.1/32")), "10.137.0.1 scope link"),
    (Route(ALL, GATEWAY, onlink=True), "default via 10.137.0.1 onlink"),
    (Route(ALL, GATEWAY, onlink=True, metric=7), "default via 10.137.0.1 onlink"),
    (Route(ipaddress.ip_network("192.0.2.0/24"), GATEWAY, onlink=True), "192.0.2.0/24 via 10.137.0.1 onlink"),
    (Route(ALL6, metric=1025), "default"),
    (Route(ipaddress.ip_network(GATEWAY6), metric=1025), "fd09:24ef:4179::a89:1"),
    (Route(ALL6, GATEWAY6, onlink=True, metric=1025), "default via fd09:24ef:4179::a89:1 onlink"),
    (Route(ALL6, ipaddress.ip_address("fe80::1"), onlink=True, metric=1025), "default via fe80::1 onlink"),
]


@pytest.mark.parametrize(("route", "shown"), ROUTES)
def test_route(bench: Bench, route: Route, shown: str) -> None:
    bench.do(Verb.LINK_UP)
    bench.do(Verb.ADDRESS_ADD, ADDRESS)
    family = route.destination.version
    bench.do(Verb.ROUTE_ADD, route)
    (found,) = (entry for entry in bench.oracle.routes(family, "eth0") if entry["protocol"] != "kernel")
    assert words_of(found) == shown
    assert found["protocol"] in PROTOCOL
    assert found.get("metric", 0) == route.metric
    assert found.get("type", "unicast") == "unicast"
    assert route in bench.state().routes
    assert bench.state().routes - {route} <= {Route(ipaddress.ip_network("fe80::/64"), metric=256, protocol=2)}
    bench.do(Verb.ROUTE_DEL, route)
    assert [entry for entry in bench.oracle.routes(family, "eth0") if entry["protocol"] != "kernel"] == []


@pytest.mark.parametrize("gateway", [GATEWAY, GATEWAY6])
def test_neighbour(bench: Bench, gateway: Any) -> None:
    bench.do(Verb.LINK_UP)
    bench.do(Verb.NEIGHBOUR_SET, Neighbour(gateway))
    assert bench.oracle.neighbours("eth0") == {str(gateway): BACKEND_MAC}
    assert bench.state(gateway).neighbours == {Neighbour(gateway)}
    bench.do(Verb.NEIGHBOUR_DEL, gateway)
    assert bench.oracle.neighbours("eth0") == {}
    assert bench.state(gateway).neighbours == frozenset()


def test_a_neighbour_is_set_over_what_was_learned(bench: Bench) -> None:
    bench.sh(f"ip link set eth0 up; ip neighbour add {GATEWAY} lladdr 02:00:00:00:00:01 nud reachable dev eth0")
    (learned,) = bench.state(GATEWAY).neighbours
    assert (learned.mac, learned.permanent) == ("02:00:00:00:00:01", False)
    bench.do(Verb.NEIGHBOUR_SET, Neighbour(GATEWAY))
    assert bench.oracle.neighbours("eth0") == {str(GATEWAY): BACKEND_MAC}


def test_a_neighbour_can_be_set_before_the_link_is_up(bench: Bench) -> None:
    """The first packet then needs no ARP."""
    bench.do(Verb.NEIGHBOUR_SET, Neighbour(GATEWAY))
    bench.do(Verb.LINK_UP)
    assert bench.oracle.neighbours("eth0") == {str(GATEWAY): BACKEND_MAC}


def test_link(bench: Bench) -> None:
    assert (bench.link.up, bench.link.group, bench.link.driver) == (False, 0, "veth")
    bench.do(Verb.LINK_GROUP, 1)
    bench.do(Verb.LINK_UP)
    assert bench.oracle.is_up("eth0")
    assert bench.oracle.link("eth0")["group"] in ("1", "uplink")  # type: ignore[index]
    assert (bench.link.up, bench.link.running, bench.link.group) == (True, True, 1)
    bench.do(Verb.LINK_DOWN)
    assert not bench.oracle.is_up("eth0")
    assert (bench.link.up, bench.link.running) == (False, False)


def test_carrier_is_known_at_once(bench: Bench) -> None:
    bench.sh("ip link set peer down")
    bench.do(Verb.LINK_UP)
    assert (bench.link.up, bench.link.running) == (True, False)
    bench.sh("ip link set peer up")
    assert bench.link.running


# --- what the kernel answers ---------------------------------------------------------------------------------------

PAIRS: list[tuple[Verb, Verb, Any]] = [
    (Verb.ADDRESS_ADD, Verb.ADDRESS_DEL, ADDRESS),
    (Verb.ADDRESS_ADD, Verb.ADDRESS_DEL, ADDRESS6),
    (Verb.ROUTE_ADD, Verb.ROUTE_DEL, Route(ALL)),
    (Verb.ROUTE_ADD, Verb.ROUTE_DEL, Route(ALL, GATEWAY, onlink=True)),
    (Verb.ROUTE_ADD, Verb.ROUTE_DEL, Route(ALL6, GATEWAY6, onlink=True, metric=1025)),
]


@pytest.mark.behaviour("B2")
@pytest.mark.parametrize(("add", "delete", "subject"), PAIRS)
def test_done_already_is_done(bench: Bench, add: Verb, delete: Verb, subject: Any) -> None:
    bench.sh("ip link set lo up")  # the kernel takes no gateway while it has no IPv4 address at all
    bench.do(Verb.LINK_UP)
    for _ in range(2):
        bench.do(add, subject)
    shown = bench.oracle.addresses("eth0"), bench.oracle.routes(4), bench.oracle.routes(6)
    bench.do(add, subject)
    assert (bench.oracle.addresses("eth0"), bench.oracle.routes(4), bench.oracle.routes(6)) == shown
    for _ in range(2):
        bench.do(delete, subject)
    state = bench.state()
    assert subject not in state.addresses | state.routes


@pytest.mark.parametrize("gateway", [GATEWAY, GATEWAY6])
def test_a_neighbour_that_is_gone_already(bench: Bench, gateway: Any) -> None:
    bench.do(Verb.LINK_UP)
    bench.do(Verb.NEIGHBOUR_DEL, gateway)


EVERY = [
    (Verb.LINK_GROUP, 1),
    (Verb.LINK_UP, None),
    (Verb.ADDRESS_ADD, ADDRESS),
    (Verb.ADDRESS_ADD, ADDRESS6),
    (Verb.NEIGHBOUR_SET, Neighbour(GATEWAY)),
    (Verb.NEIGHBOUR_SET, Neighbour(GATEWAY6)),
    (Verb.ROUTE_ADD, Route(ALL)),
    (Verb.ROUTE_ADD, Route(ALL, GATEWAY, onlink=True)),
    (Verb.ROUTE_ADD, Route(ALL6, GATEWAY6, onlink=True, metric=1025)),
]


@pytest.mark.behaviour("B8")
@pytest.mark.parametrize(("verb", "subject"), EVERY)
def test_an_interface_that_vanished(bench: Bench, verb: Verb, subject: Any) -> None:
    index = bench.link.ifindex
    bench.sh("ip link delete eth0")
    with pytest.raises(Vanished):
        bench.kernel.apply(Op(verb, index, "eth0", subject))


@pytest.mark.parametrize(
    ("verb", "subject"),
    [
        (Verb.LINK_DOWN, None),
        (Verb.ADDRESS_DEL, ADDRESS),
        (Verb.ADDRESS_DEL, ADDRESS6),
        (Verb.NEIGHBOUR_DEL, GATEWAY),
        (Verb.ROUTE_DEL, Route(ALL)),
        (Verb.ROUTE_DEL, Route(ALL6, GATEWAY6, onlink=True, metric=1025)),
    ],
)
def test_removing_from_an_interface_that_vanished_is_done(bench: Bench, verb: Verb, subject: Any) -> None:
    index = bench.link.ifindex
    bench.sh("ip link delete eth0")
    bench.kernel.apply(Op(verb, index, "eth0", subject))


def test_looking_at_an_interface_that_vanished(bench: Bench) -> None:
    link = bench.link
    bench.sh("ip link delete eth0")
    assert bench.kernel.links(frozenset({MAC})) == ()
    assert bench.kernel.observe(link, (GATEWAY, GATEWAY6)) == State(up=link.up, group=link.group, mtu=link.mtu)
    assert bench.kernel.neighbour_state(link.ifindex, GATEWAY) == (0, "")
    assert netlink.driver("eth0") == ""


def test_routes_into_a_link_that_is_down_mean_look_again(bench: Bench) -> None:
    with pytest.raises(Vanished):
        bench.do(Verb.ROUTE_ADD, Route(ALL))


@pytest.mark.parametrize(
    ("prepare", "verb", "subject", "number"),
    [
        ("ip link set eth0 up", Verb.ROUTE_ADD, Route(ALL, GATEWAY), errno.ENETUNREACH),
        ("ip link set eth0 up", Verb.ROUTE_ADD, Route(ALL6, GATEWAY6, metric=1025), errno.EHOSTUNREACH),
        ("echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6", Verb.ADDRESS_ADD, ADDRESS6, errno.EACCES),
    ],
)
def test_refused(bench: Bench, prepare: str, verb: Verb, subject: Any, number: int) -> None:
    bench.sh(prepare)
    with pytest.raises(KernelError) as error:
        bench.do(verb, subject)
    assert error.value.errno == number
    assert not error.value.retryable
    assert not isinstance(error.value, Vanished)
    assert str(error.value).startswith(str(Op(verb, 1, "eth0", subject)))


def test_after_a_refusal_the_socket_goes_on(bench: Bench) -> None:
    with pytest.raises(KernelError):
        bench.do(Verb.ROUTE_ADD, Route(ALL, GATEWAY))
    bench.do(Verb.LINK_UP)
    bench.do(Verb.ROUTE_ADD, Route(ALL))
    assert Route(ALL) in bench.state().routes


# --- order of a whole pass, and foreign things ---------------------------------------------------------------------


def _add_ipv6_of_another_length(bench: Bench) -> None:
    bench.do(Verb.ADDRESS_ADD, ADDRESS6)
    bench.do(Verb.ADDRESS_ADD, ipaddress.ip_interface(f"{ADDRESS6.ip}/64"))


def test_ipv6_takes_an_address_once_whatever_its_length(bench: Bench) -> None:
    """Why `in_order` deletes it first: the second one is "there already", and is not."""
    bench.do(Verb.LINK_UP)
    _add_ipv6_of_another_length(bench)
    assert bench.oracle.addresses("eth0") == {str(ADDRESS6)}


VPNS = ["", "metric 0", "metric 100", "proto static", "src 10.8.0.2"]


@pytest.mark.parametrize("words", VPNS)
@pytest.mark.parametrize("first", ["vpn", "ours"])
@pytest.mark.parametrize("ours", [Route(ALL), Route(ALL, GATEWAY, onlink=True)], ids=["device", "gateway"])
def test_the_default_route_of_a_vpn_stays(bench: Bench, words: str, first: str, ours: Route) -> None:
    bench.sh("ip link set eth0 up; ip link add tun0 type veth peer name tun1; ip link set tun1 up; ip link set tun0 up")
    bench.sh("ip address add 10.8.0.2/24 dev tun0")
    vpn = f"ip route append default dev tun0 {words}"
    steps: list[Callable[[], None]] = [lambda: bench.sh(vpn), lambda: bench.do(Verb.ROUTE_ADD, ours)]
    for step in steps if first == "vpn" else reversed(steps):
        step()
    assert {route["dev"] for route in bench.oracle.default_routes(4)} == {"eth0", "tun0"}
    bench.do(Verb.ROUTE_ADD, ours)
    assert len(bench.oracle.default_routes(4)) == 2
    bench.do(Verb.ROUTE_DEL, ours)
    assert [route["dev"] for route in bench.oracle.default_routes(4)] == ["tun0"]


@pytest.mark.parametrize("protocol", ["boot", "static", "dhcp", "82"])
def test_a_route_of_another_protocol_is_not_deleted(bench: Bench, protocol: str) -> None:
    bench.sh(f"ip link set eth0 up; ip route add default dev eth0 scope link proto {protocol}")
    bench.sh(f"ip -6 route add default via {GATEWAY6} dev eth0 onlink metric 1025 proto {protocol}")
    bench.do(Verb.ROUTE_DEL, Route(ALL))
    bench.do(Verb.ROUTE_DEL, Route(ALL6, GATEWAY6, onlink=True, metric=1025))
    assert len(bench.oracle.default_routes(4)) == len(bench.oracle.default_routes(6)) == 1
