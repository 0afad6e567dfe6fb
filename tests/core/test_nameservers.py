# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the virtual DNS addresses lead to."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_guestnet.core.nameservers import LinkServers, pairs, upstream

OWN = (ipaddress.IPv4Address("10.139.1.1"), ipaddress.IPv4Address("10.139.1.2"))
STUB = b"nameserver 127.0.0.53\n"
OURS = b"nameserver 10.139.1.1\nnameserver 10.139.1.2\n"

addresses4 = st.integers(0, 0xFFFFFFFF).map(ipaddress.IPv4Address)


def link(ifindex: int, *servers: str, everything: bool = False, uplink: bool = False) -> LinkServers:
    return LinkServers(ifindex, tuple(map(ipaddress.ip_address, servers)), everything, uplink)


UPLINK = link(2, "10.139.1.1", "10.139.1.2", everything=True, uplink=True)
VPN = link(7, "10.64.0.1", everything=True)
SPLIT = link(8, "10.9.0.1")
WIFI = link(3, "192.168.1.1", "192.168.1.2")


@pytest.mark.parametrize(
    ("links", "data", "own", "servers", "why"),
    [
        pytest.param([UPLINK], OURS, OWN, OWN, "own provider", id="a proxy"),
        pytest.param([], b"", OWN, OWN, "own provider", id="nothing known but the provider"),
        pytest.param([], b"", (), (), "none known", id="nothing known at all"),
        pytest.param([WIFI], STUB, (), ("192.168.1.1", "192.168.1.2"), "besides the uplink", id="a network qube"),
        pytest.param([WIFI._replace(everything=True)], STUB, (), ("192.168.1.1", "192.168.1.2"), "every domain",
                     id="a network qube with NetworkManager"),
        pytest.param([UPLINK, link(3, "192.168.1.1"), link(4, "192.168.1.1", "9.9.9.9")], b"", OWN,
                     ("192.168.1.1", "9.9.9.9"), "besides the uplink", id="each once"),
        pytest.param([link(2, "9.9.9.9", everything=True, uplink=True)], b"", OWN, ("9.9.9.9",), "the uplink",
                     id="servers of the user's on the uplink"),
        pytest.param([link(3, "fd00::1", "127.0.0.1")], b"nameserver 192.168.1.9\n", (), ("192.168.1.9",),
                     "resolv.conf", id="resolved has none that others can ask"),
        pytest.param([], b"nameserver 10.139.1.1\nnameserver 192.168.1.9\n", OWN, ("10.139.1.1", "192.168.1.9"),
                     "resolv.conf", id="in the order of the file"),
        pytest.param([], b"nameserver 192.168.1.9\n", OWN, ("192.168.1.9",), "resolv.conf", id="resolved has none"),
        pytest.param(None, b"nameserver 192.168.1.9\nnameserver fd00::1\n", OWN, ("192.168.1.9",), "resolv.conf",
                     id="no resolved"),
        pytest.param(None, OURS, OWN, OWN, "own provider", id="no resolved, a proxy"),
        pytest.param(None, b"", OWN, OWN, "own provider", id="no resolved, no file"),
        pytest.param(None, STUB, OWN, (), "resolv.conf", id="no resolved, but meant to be: not around a tunnel"),
    ],
)  # fmt: skip
def test_whose_servers_count(
    links: list[LinkServers] | None,
    data: bytes,
    own: tuple[ipaddress.IPv4Address, ...],
    servers: tuple[object, ...],
    why: str,
) -> None:
    found, reason = upstream(links, data, own, uplink=True)
    assert found == tuple(ipaddress.IPv4Address(str(server)) for server in servers)
    assert why in reason
    assert "\n" not in reason


@pytest.mark.behaviour("B40")
@pytest.mark.parametrize(
    ("links", "data", "servers", "why"),
    [
        pytest.param([], OURS, [], "none now", id="a proxy"),
        pytest.param(None, OURS, [], "none now", id="no resolved"),
        pytest.param([], b"nameserver 10.139.1.1\nnameserver 192.168.1.9\n", ["192.168.1.9"], "resolv.conf",
                     id="a server of the user's besides"),
        pytest.param([WIFI], OURS, ["192.168.1.1", "192.168.1.2"], "besides the uplink", id="another way out"),
    ],
)  # fmt: skip
def test_without_an_uplink_its_provider_is_not_asked(
    links: list[LinkServers] | None, data: bytes, servers: list[str], why: str
) -> None:
    found, reason = upstream(links, data, OWN, uplink=False)
    assert [str(server) for server in found] == servers
    assert why in reason


@pytest.mark.behaviour("B37")
@pytest.mark.parametrize(
    ("links", "servers"),
    [
        pytest.param([UPLINK, VPN], ["10.64.0.1"], id="a VPN for everything"),
        pytest.param([VPN, UPLINK], ["10.64.0.1"], id="in any order"),
        pytest.param([UPLINK, SPLIT, VPN], ["10.64.0.1"], id="and one for some domains"),
        pytest.param([UPLINK, SPLIT], ["10.9.0.1"], id="not around the only VPN"),
        pytest.param(
            [UPLINK, link(7, "10.139.1.1", everything=True)], list(map(str, OWN)), id="the same as the uplink"
        ),
        pytest.param([UPLINK, link(7, "fd00::1", everything=True)], [], id="IPv6 only: nobody rather than the uplink"),
        pytest.param([UPLINK, link(7, "127.0.0.1", everything=True)], [], id="loopback: nobody rather than the uplink"),
    ],
)
def test_the_servers_of_a_tunnel(links: list[LinkServers], servers: list[str]) -> None:
    found, _ = upstream(links, OURS, OWN, uplink=True)
    assert [str(server) for server in found] == servers
    itself = [pair for pair in pairs(OWN, found) if pair[0] == pair[1]]
    assert not itself or found == OWN


@pytest.mark.behaviour("B38")
@pytest.mark.parametrize(
    ("common", "servers"),
    [
        pytest.param(["100.100.100.100"], ["100.100.100.100"], id="alone"),
        pytest.param(["10.139.1.1", "9.9.9.9"], ["9.9.9.9"], id="the provider's do not count"),
        pytest.param(["10.139.1.1", "10.139.1.2"], ["10.64.0.1"], id="the provider's alone are none"),
        pytest.param(["2620:fe::fe"], ["10.64.0.1"], id="IPv6 is none"),
        pytest.param(["127.0.0.1"], [], id="a resolver in the qube: none else is asked"),
    ],
)
def test_servers_of_the_whole_qube(common: list[str], servers: list[str]) -> None:
    found, _ = upstream([UPLINK, VPN, link(0, *common), WIFI], OURS, OWN, uplink=True)
    assert [str(server) for server in found] == servers


@given(
    links=st.none()
    | st.lists(st.builds(LinkServers, st.integers(0, 9), st.lists(st.ip_addresses()).map(tuple), st.booleans())),
    data=st.binary()
    | st.lists(st.ip_addresses()).map(lambda found: "".join(f"nameserver {own}\n" for own in found).encode()),
    uplink=st.booleans(),
)
def test_only_servers_that_another_machine_can_ask(
    links: list[LinkServers] | None, data: bytes, *, uplink: bool
) -> None:
    found, _ = upstream(links, data, OWN, uplink=uplink)
    assert len(set(found)) == len(found)
    assert all(isinstance(own, ipaddress.IPv4Address) and not own.is_loopback and not own.is_multicast for own in found)
    assert uplink or not set(found) & set(OWN)


@pytest.mark.behaviour("B39")
@pytest.mark.parametrize(
    ("servers", "found"),
    [
        ([], []),
        (["9.9.9.9"], [("10.139.1.1", "9.9.9.9"), ("10.139.1.2", "9.9.9.9")]),
        (["9.9.9.9", "1.1.1.1"], [("10.139.1.1", "9.9.9.9"), ("10.139.1.2", "1.1.1.1")]),
        (["9.9.9.9", "1.1.1.1", "8.8.8.8"], [("10.139.1.1", "9.9.9.9"), ("10.139.1.2", "1.1.1.1")]),
    ],
)
def test_each_virtual_address_leads_somewhere(servers: list[str], found: list[tuple[str, str]]) -> None:
    cycled = pairs(OWN, map(ipaddress.IPv4Address, servers))
    assert [(str(virtual), str(server)) for virtual, server in cycled] == found


@pytest.mark.behaviour("B39")
@given(st.lists(addresses4, unique=True), st.lists(addresses4, min_size=1))
def test_none_is_left_out(virtual: list[ipaddress.IPv4Address], servers: list[ipaddress.IPv4Address]) -> None:
    found = pairs(virtual, servers)
    assert [address for address, _ in found] == virtual
    assert {server for _, server in found} == set(servers[: len(virtual)])
