# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the virtual DNS addresses lead to."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_guestnet.core import endpoint
from qubes_guestnet.core.dns import upstream_servers
from qubes_guestnet.core.dns.upstream_servers import Heard, LinkServers, NameFacts, choose, pairs
from qubes_guestnet.core.endpoint import Endpoint
from qubes_guestnet.core.owned_state import Last

OWN = (ipaddress.IPv4Address("10.139.1.1"), ipaddress.IPv4Address("10.139.1.2"))
OWN_ENDPOINTS = tuple(map(Endpoint, OWN))
STUB = b"nameserver 127.0.0.53\n"
OURS = b"nameserver 10.139.1.1\nnameserver 10.139.1.2\n"

addresses4 = st.integers(0, 0xFFFFFFFF).map(ipaddress.IPv4Address)


def at(*servers: str) -> tuple[Endpoint, ...]:
    """Servers, an IPv6 one at the usual port."""
    return tuple(
        Endpoint(ipaddress.ip_address(server)) if server.count(":") > 1 or server.startswith("127.")
        else endpoint.parse(server)
        for server in servers
    )  # fmt: skip


def link(ifindex: int, *servers: str, **how: bool) -> LinkServers:
    return LinkServers(ifindex, at(*servers), **how)


def upstream(
    links: Sequence[LinkServers] | None, data: bytes, own: tuple[ipaddress.IPv4Address, ...], *, uplink: bool
) -> tuple[tuple[Endpoint, ...], str]:
    """The decision where nothing is remembered and no file is the owner's."""
    heard = Heard(None if links is None else tuple(links))
    choice = choose(NameFacts(own, uplink, heard=heard, resolv_conf=data))
    return choice.servers, choice.reason


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
        pytest.param([WIFI], STUB, (), ("192.168.1.1", "192.168.1.2"), "other than the uplink", id="a network qube"),
        pytest.param([WIFI._replace(everything=True)], STUB, (), ("192.168.1.1", "192.168.1.2"), "takes all names",
                     id="a network qube with NetworkManager"),
        pytest.param([UPLINK, link(3, "192.168.1.1"), link(4, "192.168.1.1", "9.9.9.9")], b"", OWN,
                     ("192.168.1.1", "9.9.9.9"), "other than the uplink", id="each once"),
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
    assert found == at(*map(str, servers))
    assert why in reason
    assert "\n" not in reason


@pytest.mark.behaviour("B40")
@pytest.mark.parametrize(
    ("links", "data", "servers", "why"),
    [
        pytest.param([], OURS, [], "there is no uplink", id="a proxy"),
        pytest.param(None, OURS, [], "there is no uplink", id="no resolved"),
        pytest.param([], b"nameserver 10.139.1.1\nnameserver 192.168.1.9\n", ["192.168.1.9"], "resolv.conf",
                     id="a server of the user's besides"),
        pytest.param([WIFI], OURS, ["192.168.1.1", "192.168.1.2"], "other than the uplink", id="another way out"),
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
        pytest.param([UPLINK, link(7, "fd00::1", everything=True)], [], id="IPv6 only: refused, not by the uplink"),
        pytest.param([UPLINK, link(7, "127.0.0.1", everything=True)], [], id="loopback: refused, not by the uplink"),
    ],
)
def test_the_servers_of_a_tunnel(links: list[LinkServers], servers: list[str]) -> None:
    found, _ = upstream(links, OURS, OWN, uplink=True)
    assert [str(server) for server in found] == servers
    itself = [pair for pair in pairs(OWN, found) if pair[0] == pair[1].address]
    assert not itself or [server.address for server in found] == list(OWN)


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
    | st.lists(
        st.builds(
            LinkServers,
            st.integers(0, 9),
            st.lists(st.builds(Endpoint, st.ip_addresses())).map(tuple),
            *[st.booleans()] * 4,
        )
    ),
    data=st.binary()
    | st.lists(st.ip_addresses()).map(lambda found: "".join(f"nameserver {own}\n" for own in found).encode()),
    uplink=st.booleans(),
)
def test_only_servers_that_another_machine_can_ask(
    links: list[LinkServers] | None, data: bytes, *, uplink: bool
) -> None:
    found, _ = upstream(links, data, OWN, uplink=uplink)
    assert len(set(found)) == len(found)
    addresses = [server.address for server in found]
    assert all(own.version == 4 and not own.is_loopback and not own.is_multicast for own in addresses)
    assert uplink or not set(addresses) & set(OWN)


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
    cycled = pairs(OWN, at(*servers))
    assert [(str(virtual), str(server)) for virtual, server in cycled] == found


@pytest.mark.behaviour("B39")
@given(st.lists(addresses4, unique=True), st.lists(addresses4, min_size=1))
def test_none_is_left_out(virtual: list[ipaddress.IPv4Address], addresses: list[ipaddress.IPv4Address]) -> None:
    servers = endpoint.of(tuple(addresses))
    found = pairs(virtual, servers)
    assert [address for address, _ in found] == virtual
    assert {server for _, server in found} == set(servers[: len(virtual)])


# --- B127: how a server is to be asked ---------------------------------------------------------------------------

DOT = link(0, "9.9.9.9", tls_only=True)


@pytest.mark.behaviour("B127")
@pytest.mark.parametrize(
    ("links", "servers", "problem"),
    [
        pytest.param([WIFI, link(7, "10.9.0.1", default_route=False)], ["192.168.1.1", "192.168.1.2"], "",
                     id="a link for some domains only"),
        pytest.param([UPLINK, link(7, "10.9.0.1", default_route=False)], list(map(str, OWN)), "",
                     id="such a link beside the uplink"),
        pytest.param([UPLINK, link(7, "10.9.0.1", default_route=False, everything=True)], ["10.9.0.1"], "",
                     id="no default route, and all names all the same"),
        pytest.param([UPLINK._replace(everything=False, default_route=False)], list(map(str, OWN)), "",
                     id="the uplink for no names: its provider is the last resort"),
        pytest.param([link(0, "9.9.9.9:9953")], ["9.9.9.9:9953"], "", id="a port"),
        pytest.param([link(0, "9.9.9.9", "9.9.9.9:9953")], ["9.9.9.9", "9.9.9.9:9953"], "", id="two ports are two"),
        pytest.param([UPLINK, VPN._replace(servers=at("10.64.0.1:5353"))], ["10.64.0.1:5353"], "", id="a VPN's port"),
        pytest.param([DOT, UPLINK], [], upstream_servers.TLS_ONLY, id="TLS only for the whole qube"),
        pytest.param([VPN._replace(tls_only=True), UPLINK], [], upstream_servers.TLS_ONLY, id="a tunnel by TLS only"),
        pytest.param([WIFI._replace(tls_only=True), link(4, "192.168.2.1")], ["192.168.2.1"], "",
                     id="one network by TLS only, another in clear"),
        pytest.param([WIFI._replace(tls_only=True)], [], upstream_servers.TLS_ONLY, id="the only network by TLS only"),
        pytest.param([UPLINK._replace(tls_only=True)], [], upstream_servers.TLS_ONLY, id="its provider by TLS only"),
        pytest.param([link(2, "9.9.9.9", uplink=True, tls_only=True)], [], upstream_servers.TLS_ONLY,
                     id="servers of the user's on the uplink by TLS only"),
        pytest.param([VPN._replace(ifindex=9), UPLINK], [], upstream_servers.LINK_DOWN, id="a tunnel that is down"),
        pytest.param([link(9, "192.168.9.1"), WIFI], ["192.168.1.1", "192.168.1.2"], "", id="a network that is down"),
        pytest.param([VPN._replace(ifindex=9), VPN], ["10.64.0.1"], "", id="one of two tunnels is down"),
    ],
)  # fmt: skip
def test_how_a_server_is_to_be_asked_counts(links: list[LinkServers], servers: list[str], problem: str) -> None:
    up = {2: True, 3: True, 4: True, 7: True, 9: False}
    choice = choose(NameFacts(OWN, heard=Heard(tuple(links)), up=up))
    assert [str(server) for server in choice.servers] == servers
    assert choice.problem == problem
    assert problem == "" or choice.servers == ()


# --- B128: systemd-resolved is not heard any more ------------------------------------------------------------------

GONE = Heard(problem="is not running")
TUNNEL = Last(at("10.64.0.1"), 7)


@pytest.mark.behaviour("B128")
@pytest.mark.parametrize(
    ("facts", "servers", "problem", "last"),
    [
        pytest.param({}, ["10.64.0.1"], upstream_servers.HELD, TUNNEL._replace(lost=100), id="just now"),
        pytest.param({"last": TUNNEL._replace(lost=40)}, ["10.64.0.1"], upstream_servers.HELD, TUNNEL._replace(lost=40),
                     id="not yet too long"),
        pytest.param({"last": TUNNEL._replace(lost=39)}, [], upstream_servers.REFUSED, TUNNEL._replace(lost=39),
                     id="too long: refused, not led to the uplink"),
        pytest.param({"hold": 0}, [], upstream_servers.REFUSED, TUNNEL._replace(lost=100), id="not held at all"),
        pytest.param({"last": Last(at("9.9.9.9"))}, ["9.9.9.9"], upstream_servers.HELD, Last(at("9.9.9.9"), 0, 100),
                     id="servers of the whole qube"),
        pytest.param({"last": Last((), 7)}, [], upstream_servers.HELD, Last((), 7, 100), id="a refusal stays"),
        pytest.param({"resolv_conf": b"nameserver 192.168.1.1\n", "ways": {ipaddress.ip_address("192.168.1.1"): 3}},
                     ["10.64.0.1"], upstream_servers.HELD, TUNNEL._replace(lost=100), id="a file that leads elsewhere"),
        pytest.param({"resolv_conf": b"nameserver 192.168.1.1\n", "ways": {}, "last": TUNNEL._replace(lost=1)},
                     [], upstream_servers.REFUSED, TUNNEL._replace(lost=1), id="nor later"),
        pytest.param({"resolv_conf": b"nameserver 10.64.0.9\n", "ways": {ipaddress.ip_address("10.64.0.9"): 7}},
                     ["10.64.0.9"], "", TUNNEL, id="a file that leads out by the same link (B35)"),
        pytest.param({"resolv_conf": b"nameserver 10.64.0.9\n", "kept": True}, ["10.64.0.9"], "", TUNNEL,
                     id="a file of the VPN's"),
        pytest.param({"resolv_conf": b"nameserver 9.9.9.9\n", "last": Last((), 0)}, [], upstream_servers.HELD,
                     Last((), 0, 100), id="no link is no way"),
        pytest.param({"last": TUNNEL._replace(link=9)}, list(map(str, OWN)), "", None, id="its link is no more"),
        pytest.param({"last": TUNNEL._replace(link=9, name="wg0"), "names": {8: "wg0"}},
                     ["10.64.0.1"], upstream_servers.HELD,
                     TUNNEL._replace(link=9, name="wg0", lost=100), id="another device has its name by now"),
        pytest.param({"heard": Heard((VPN,)), "names": {7: "wg0"}}, ["10.64.0.1"], "", TUNNEL._replace(name="wg0"),
                     id="its name is remembered"),
        pytest.param({"heard": Heard((VPN,)), "last": TUNNEL._replace(name="wg0")}, ["10.64.0.1"], "",
                     TUNNEL._replace(name="wg0"), id="and not forgotten when the device has gone meanwhile"),
        pytest.param({"heard": Heard((UPLINK,)), "last": TUNNEL._replace(lost=1)}, list(map(str, OWN)), "", None,
                     id="heard again, without the tunnel"),
        pytest.param({"heard": Heard((UPLINK, VPN)), "last": TUNNEL._replace(lost=1)}, ["10.64.0.1"], "", TUNNEL,
                     id="heard again, with the tunnel"),
        pytest.param({"last": None}, list(map(str, OWN)), "", None, id="never heard: the file at once (B35)"),
        pytest.param({"configured": at("10.0.0.9:5353")}, ["10.0.0.9:5353"], "", None, id="the owner's word"),
    ],
)  # fmt: skip
def test_what_was_heard_last_holds_for_a_while_and_never_moves_to_the_uplink(
    facts: dict[str, object], servers: list[str], problem: str, last: Last | None
) -> None:
    usual = NameFacts(OWN, heard=GONE, resolv_conf=OURS, last=TUNNEL, up={2: True, 7: True}, now=100)
    choice = choose(usual._replace(**facts))  # type: ignore[arg-type]
    assert [str(server) for server in choice.servers] == servers
    assert (choice.problem, choice.last) == (problem, last)
    # Nothing tells of the end of the time, nor that one that hangs goes on.
    assert (choice.again > 0) == (problem in (upstream_servers.HELD, upstream_servers.REFUSED))
    assert choice.problem == "" or "is not running" in choice.reason


VPNS_FILE = b"nameserver 10.64.0.9\n"


@pytest.mark.behaviour("B124", "B127")
@pytest.mark.parametrize(
    ("facts", "servers", "problem", "last"),
    [
        pytest.param({}, ["10.64.0.9"], "", None, id="up"),
        pytest.param({"down": "wg0"}, [], upstream_servers.LINK_DOWN, None, id="set down"),
        pytest.param({"down": "wg0", "heard": GONE, "last": TUNNEL}, [], upstream_servers.LINK_DOWN, TUNNEL,
                     id="set down, and systemd-resolved was there before"),
        pytest.param({"down": "wg0", "heard": Heard((WIFI,))}, ["192.168.1.1", "192.168.1.2"], "",
                     Last(WIFI.servers, WIFI.ifindex), id="systemd-resolved knows better"),
        pytest.param({"down": "wg0", "configured": at("10.0.0.9")}, ["10.0.0.9"], "", None, id="the owner's word"),
        pytest.param({"down": "wg0", "resolv_conf": OURS}, list(map(str, OWN)), "", None, id="the file is ours by now"),
    ],
)  # fmt: skip
def test_names_of_a_vpn_that_is_set_down_are_refused(
    facts: dict[str, object], servers: list[str], problem: str, last: Last | None
) -> None:
    usual = NameFacts(OWN, resolv_conf=VPNS_FILE, kept=True, up={2: True, 3: True, 7: True}, now=100)
    choice = choose(usual._replace(**facts))  # type: ignore[arg-type]
    assert [str(server) for server in choice.servers] == servers
    assert (choice.problem, choice.last) == (problem, last)


@pytest.mark.behaviour("B128")
def test_the_way_to_a_server_of_the_file_is_asked_only_when_it_decides() -> None:
    facts = NameFacts(OWN, heard=GONE, resolv_conf=OURS + b"nameserver 192.168.1.1\n", last=TUNNEL)
    assert list(map(str, upstream_servers.asked_by_route(facts))) == ["192.168.1.1"]
    for other in ({"last": None}, {"heard": Heard((UPLINK,))}, {"configured": at("9.9.9.9")}):
        assert upstream_servers.asked_by_route(facts._replace(**other)) == ()  # type: ignore[arg-type]


# --- B130: the file ------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("B130")
def test_all_lines_of_the_file_count() -> None:
    data = b"".join(b"nameserver fd00::%d\n" % number for number in range(1, 6)) + b"nameserver 192.168.1.9\n"
    assert upstream(None, data, OWN, uplink=True) == (at("192.168.1.9"), "/etc/resolv.conf")


@pytest.mark.behaviour("B130")
def test_a_file_that_cannot_be_read_is_an_answer_of_its_own() -> None:
    unreadable = NameFacts(OWN, unreadable="Is a directory")
    choice = choose(unreadable)
    assert (choice.servers, choice.problem) == ((), upstream_servers.UNREADABLE)
    assert "Is a directory" in choice.reason
    assert choose(unreadable._replace(heard=Heard((WIFI,)))).servers == WIFI.servers
