# SPDX-License-Identifier: GPL-2.0-or-later
"""What the adapter sees of a kernel full of other things, what it asks, and how it is woken."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest

from qubes_guestnet.core.plan import Op, Verb
from qubes_guestnet.core.values import Neighbour, Route, State
from qubes_guestnet.errors import KernelError
from qubes_guestnet.system.netlink import rtnl as netlink
from tests.support.eventually import eventually
from tests.support.judge.oracle import Oracle

MAC, OTHER_MAC = "00:16:3e:5e:6c:05", "00:16:3e:5e:6c:06"
GATEWAY = ipaddress.ip_address("10.137.0.1")


def seen(kernel: netlink.Kernel, mac: str = MAC) -> State:
    (link,) = kernel.links(frozenset({mac}))
    return kernel.observe(link, (GATEWAY,))


def own(state: State) -> set[Route]:
    """Without the kernel's route to the link-local net."""
    return {route for route in state.routes if route.protocol != 2}


# --- links ---------------------------------------------------------------------------------------------------------


def test_links_by_address(oracle: Oracle, kernel: netlink.Kernel) -> None:
    assert [link.name for link in kernel.links(frozenset({MAC}))] == ["eth0"]
    assert {link.name for link in kernel.links(frozenset({MAC, OTHER_MAC}))} == {"eth0", "eth1"}
    assert kernel.links(frozenset({"00:16:3e:00:00:00"})) == kernel.links(frozenset()) == ()
    (link,) = kernel.links(frozenset({MAC}))
    assert link.ifindex == oracle.link("eth0")["ifindex"]  # type: ignore[index]


def test_an_interface_whose_peer_has_our_address_is_not_ours(oracle: Oracle, kernel: netlink.Kernel) -> None:
    """The six octets occur in its message (a permanent address, say), but not as its address."""
    oracle.run("sh", "-ec", f"ip link add nic address {MAC} type veth peer name x; ip link set nic address {OTHER_MAC}")
    assert "nic" not in {link.name for link in kernel.links(frozenset({MAC}))}


@pytest.mark.behaviour("B9")
def test_drivers(oracle: Oracle, kernel: netlink.Kernel) -> None:
    oracle.run(
        "sh",
        "-ec",
        f"""
        ip link add br0 type bridge; ip link set br0 address {MAC}
        ip link add link peer1 name mv0 address {MAC} type macvlan
        ip tuntap add tap0 mode tap; ip link set tap0 address {MAC}
    """,
    )
    drivers = {link.name: link.driver for link in kernel.links(frozenset({MAC}))}
    assert drivers == {"eth0": "veth", "br0": "bridge", "mv0": "macvlan", "tap0": "tun"}
    assert netlink.driver("lo") == netlink.driver("nothing-there") == netlink.driver("") == ""


@pytest.mark.behaviour("B8")
def test_a_rename_keeps_the_index(oracle: Oracle, kernel: netlink.Kernel) -> None:
    (before,) = kernel.links(frozenset({MAC}))
    oracle.run("sh", "-ec", "ip link set eth0 down; ip link set eth0 name a-name-as-long1")
    (after,) = kernel.links(frozenset({MAC}))
    assert (after.name, after.ifindex, after.driver) == ("a-name-as-long1", before.ifindex, "veth")
    kernel.apply(Op(Verb.LINK_UP, before.ifindex, before.name))
    assert oracle.is_up("a-name-as-long1")


@pytest.mark.behaviour("B8")
@pytest.mark.parametrize("other", ["", "eth1"])
def test_renamed_between_its_name_and_its_driver(
    oracle: Oracle, kernel: netlink.Kernel, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """The driver is asked for by name. It is found, and it is not that of the interface that has the name now."""
    real, renames = netlink.driver, []

    def driver(name: str) -> str:
        if not renames:
            renames.append(name)
            oracle.run("sh", "-ec", "ip link set eth0 down; ip link set eth0 name enX0")
            if other:
                oracle.run("sh", "-ec", f"ip link set {other} down; ip link set {other} name eth0")
        return real(name)

    monkeypatch.setattr(netlink, "driver", driver)
    (link,) = kernel.links(frozenset({MAC}))
    assert (link.name, link.driver) == ("enX0", "veth")
    assert renames == ["eth0"]


@pytest.mark.behaviour("B8")
def test_gone_between_its_name_and_its_driver(
    oracle: Oracle, kernel: netlink.Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def driver(_name: str) -> str:
        oracle.run("ip", "link", "delete", "eth0", check=False)
        return ""

    monkeypatch.setattr(netlink, "driver", driver)
    assert kernel.links(frozenset({MAC})) == ()


def test_many_links(oracle: Oracle, kernel: netlink.Kernel) -> None:
    """More than one packet of the dump."""
    pairs = "".join(f"link add v{n} type veth peer name w{n}\n" for n in range(60))
    oracle.run("sh", "-ec", f"printf '{pairs}' | ip -batch -".replace("\n", "\\n"))
    assert [link.name for link in kernel.links(frozenset({MAC}))] == ["eth0"]


# --- addresses and routes ------------------------------------------------------------------------------------------


def test_only_this_interface(oracle: Oracle, kernel: netlink.Kernel) -> None:
    oracle.run(
        "sh",
        "-ec",
        """
        ip address add 10.137.0.5/32 dev eth0; ip address add 10.137.0.6/32 dev eth1
        ip address add fd00::5/128 dev eth0 nodad; ip address add fd00::6/128 dev eth1 nodad
        ip route add 192.0.2.1/32 dev eth0; ip route add 198.51.100.1/32 dev eth1
        ip route add 2001:db8:1::1 dev eth0; ip route add 2001:db8:2::1 dev eth1
        ip neighbour add 10.137.0.1 lladdr 02:00:00:00:00:01 dev eth1
    """,
    )
    state = seen(kernel)
    assert state.addresses == {ipaddress.ip_interface("10.137.0.5/32"), ipaddress.ip_interface("fd00::5/128")}
    assert {str(route.destination) for route in own(state)} == {"192.0.2.1/32", "2001:db8:1::1/128"}
    assert state.neighbours == frozenset()
    assert {n.mac for n in seen(kernel, OTHER_MAC).neighbours} == {"02:00:00:00:00:01"}


def test_only_unicast_routes_of_the_main_table(oracle: Oracle, kernel: netlink.Kernel) -> None:
    oracle.run(
        "sh",
        "-ec",
        """
        ip address add 10.137.0.5/32 dev eth0
        ip route add default dev eth0 table 100
        ip route add blackhole 192.0.2.0/24; ip route add unreachable 192.0.3.0/24; ip route add prohibit 192.0.4.0/24
        ip -6 route add blackhole 2001:db8::/48; ip -6 route add default dev eth0 table 100
        ip route add multicast 224.0.0.0/4 dev eth0 table main
    """,
    )
    assert own(seen(kernel)) == set()


def test_our_hop_of_a_multipath_route(oracle: Oracle, kernel: netlink.Kernel) -> None:
    """The kernel makes one of two IPv6 routes with gateways and the same metric; a user makes one on purpose."""
    oracle.run(
        "sh",
        "-ec",
        """
        ip address add 10.137.0.5/32 dev eth0
        ip route add default nexthop via 10.137.0.1 dev eth0 onlink nexthop dev eth1
        ip -6 route append default via fd00::9 dev eth1 onlink metric 1025
        ip -6 route append default via fd00::1 dev eth0 onlink metric 1025
    """,
    )
    routes = {(route.destination.version, str(route.gateway), route.onlink) for route in own(seen(kernel))}
    assert routes == {(4, "10.137.0.1", True), (6, "fd00::1", True)}


def test_the_same_destination_many_times(oracle: Oracle, kernel: netlink.Kernel) -> None:
    oracle.run(
        "sh",
        "-ec",
        """
        ip address add 10.137.0.5/32 dev eth0
        ip route append default dev eth0 scope link proto 81
        ip route append default via 10.137.0.1 dev eth0 onlink proto static
        ip route append default dev eth0 scope link metric 50 proto dhcp
        ip route append default dev eth1
    """,
    )
    everything = ipaddress.ip_network("0.0.0.0/0")
    assert own(seen(kernel)) == {
        Route(everything),
        Route(everything, GATEWAY, onlink=True, protocol=4),
        Route(everything, metric=50, protocol=16),
    }


def test_addresses_of_every_kind(oracle: Oracle, kernel: netlink.Kernel) -> None:
    oracle.run(
        "sh",
        "-ec",
        """
        ip address add 10.137.0.5/32 dev eth0
        ip address add 10.9.0.1 peer 10.9.0.2/32 dev eth0
        ip address add 192.0.2.5/24 broadcast 192.0.2.255 dev eth0 label eth0:web
        ip address add 169.254.7.7/16 dev eth0 scope link
        ip address add fe80::99/64 dev eth0 nodad
        ip address add fd00::5/64 dev eth0 valid_lft 1000 preferred_lft 500
    """,
    )
    wanted = {"10.137.0.5/32", "10.9.0.1/32", "192.0.2.5/24", "169.254.7.7/16", "fd00::5/64"}
    assert {str(address) for address in seen(kernel).addresses} == wanted


def test_thousands_of_routes(oracle: Oracle, kernel: netlink.Kernel) -> None:
    """A user's are passed over, and none of ours is missed among them."""
    adding = (
        "i=0; while [ $i -lt 3000 ]; do echo route add 192.$((i/250)).$((i%250)).0/24 dev eth0 proto $((81 + i%2));"
        "echo route add 2001:db8:$((i/250)):$((i%250))::/64 dev eth0 proto $((81 + i%2)); i=$((i+1)); done"
    )
    oracle.run("sh", "-ec", f"({adding}) | ip -batch -")
    found = own(seen(kernel))
    assert len(found) == 3000
    assert {route.protocol for route in found} == {81}
    oracle.run("ip", "route", "add", "default", "dev", "eth0", "proto", "static")
    assert own(seen(kernel)) - found == {Route(ipaddress.ip_network("0.0.0.0/0"), protocol=4)}


# --- neighbours ----------------------------------------------------------------------------------------------------


def test_neighbour_states(oracle: Oracle, kernel: netlink.Kernel) -> None:
    (link,) = kernel.links(frozenset({MAC}))
    assert kernel.neighbour(link.ifindex, GATEWAY) is None
    for state, permanent in (("reachable", False), ("stale", False), ("permanent", True), ("noarp", False)):
        oracle.run("ip", "neighbour", "replace", str(GATEWAY), "lladdr", OTHER_MAC, "nud", state, "dev", "eth0")
        assert kernel.neighbour(link.ifindex, GATEWAY) == Neighbour(GATEWAY, OTHER_MAC, permanent=permanent)
    for text in ("fd00::1", "fe80::1"):
        address = ipaddress.ip_address(text)
        assert kernel.neighbour(link.ifindex, address) is None
        oracle.run("ip", "neighbour", "add", text, "lladdr", OTHER_MAC, "nud", "permanent", "dev", "eth0")
        assert kernel.neighbour(link.ifindex, address) == Neighbour(address, OTHER_MAC)


@pytest.mark.behaviour("B152")
def test_a_request_is_repeated_and_what_waits_for_the_answer_is_sent(oracle: Oracle, kernel: netlink.Kernel) -> None:
    oracle.run("sh", "-ec", "ip address add 10.137.0.5/32 dev eth0; ip route add default dev eth0 scope link")
    (link,) = kernel.links(frozenset({MAC}))
    address = ipaddress.ip_address("10.139.1.1")
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as wire,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        wire.bind(("peer", 3))
        wire.settimeout(10)
        client.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        client.connect((str(address), 9))
        client.send(b"waits")
        first = wire.recv(2048)
        kernel.solicit_again(link.ifindex, address)
        again = wire.recv(2048)
        assert (again[12:14], again) == (b"\x08\x06", first)
        assert kernel.neighbour_state(link.ifindex, address) == (0x1, "")  # NUD_INCOMPLETE
        backend = b"\xfe" + b"\xff" * 5
        answer = struct.pack("!6s6sHHHBBH", again[6:12], backend, 0x0806, 1, 0x0800, 6, 4, 2)
        wire.send(answer + backend + again[38:42] + again[22:32])
        eventually(lambda: b"waits" in wire.recv(2048))
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    with pytest.raises(KernelError):
        kernel.solicit_again(link.ifindex, ipaddress.ip_address("10.139.1.2"))  # there is no such entry


def test_a_solicited_neighbour_is_asked_for_and_answered(oracle: Oracle, kernel: netlink.Kernel) -> None:
    oracle.run("sh", "-ec", "ip address add 10.137.0.5/32 dev eth0; ip route add default dev eth0 scope link")
    (link,) = kernel.links(frozenset({MAC}))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as wire:
        wire.bind(("peer", 0x0806))
        wire.settimeout(10)
        kernel.solicit(link.ifindex, ipaddress.ip_address("10.139.1.1"))
        request = wire.recv(2048)
        assert request[:6] == b"\xff" * 6
        assert request[20:22] == b"\0\1"
        assert (request[28:32], request[38:42]) == (socket.inet_aton("10.137.0.5"), socket.inet_aton("10.139.1.1"))
        state, mac = kernel.neighbour_state(link.ifindex, ipaddress.ip_address("10.139.1.1"))
        assert (state, mac) == (0x1, "")  # NUD_INCOMPLETE
        backend = b"\xfe" + b"\xff" * 5
        answer = struct.pack("!6s6sHHHBBH", request[6:12], backend, 0x0806, 1, 0x0800, 6, 4, 2)
        wire.send(answer + backend + request[38:42] + request[22:32])
    found = eventually(lambda: kernel.neighbour(link.ifindex, ipaddress.ip_address("10.139.1.1")))
    eventually(lambda: kernel.neighbour_state(link.ifindex, found.address)[0] & 0x2)  # NUD_REACHABLE
    assert oracle.neighbours("eth0", permanent=False) == {"10.139.1.1": "fe:ff:ff:ff:ff:ff"}
