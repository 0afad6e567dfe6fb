# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries → settings of a provider, and what a vif is to have for them."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_guestnet.core import settings as uplink
from qubes_guestnet.core.provider.settings import (
    PROVIDER_PREFIXES,
    PROVIDER_WATCHED,
    VIRTUAL_DNS,
    Elements,
    ProviderSettings,
    desired,
    elements,
    mapping_prefix,
    parse_mappings,
    parse_provider,
)
from qubes_guestnet.core.provider.vif import Mapping, Vif
from qubes_guestnet.core.values import IPAddress, Neighbour, Route, State
from qubes_guestnet.core.vif_name import VifName
from tests.support.faults.hostile import HOSTILE

MAC = "00:16:3e:5e:6c:00"
NAME = VifName("vif4.0", 4, 0)
OWN, OWN6 = ipaddress.IPv4Address("10.137.0.5"), ipaddress.IPv6Address("fd09:24ef:4179::a89:5")
GATEWAY, GATEWAY6 = ipaddress.IPv4Address("10.138.0.1"), ipaddress.IPv6Address("fd09:24ef:4179::1")
LOCAL6 = ipaddress.IPv6Address("fe80::fcff:ffff:feff:ffff")
FAKE = ipaddress.IPv4Address("192.168.1.5")
GOOD = {
    "/qubes-netvm-network": b"10.138.0.1",
    "/qubes-netvm-gateway": b"10.138.0.1",
    "/qubes-netvm-gateway6": b"fe80::fcff:ffff:feff:ffff",
    "/qubes-netvm-primary-dns": b"10.139.1.1",
    "/qubes-netvm-secondary-dns": b"10.139.1.2",
    "/connected-ips": b"10.137.0.5 10.137.0.6",
    "/connected-ips6": b"fd09:24ef:4179::a89:5",
}
CONNECTED: frozenset[IPAddress] = frozenset({OWN, OWN6, ipaddress.IPv4Address("10.137.0.6")})
ALL = ProviderSettings(True, GATEWAY, LOCAL6, VIRTUAL_DNS, CONNECTED)
HELD: dict[str, tuple[str, dict[str, Any]]] = {
    "/qubes-netvm-gateway": ("gateway", {"gateway": None}),
    "/qubes-netvm-gateway6": ("ipv6", {"gateway6": None}),
    "/qubes-netvm-primary-dns": ("dns", {"virtual_dns": ()}),
    "/qubes-netvm-secondary-dns": ("dns", {"virtual_dns": ()}),
    "/connected-ips": ("connected", {"connected": frozenset({OWN6})}),
    "/connected-ips6": ("connected", {"connected": CONNECTED - {OWN6}}),
}
# Around the words of a list blanks are no harm.
BLANKS = {"a newline", "a newline after", "two lines", "a space before"}
BAD = [
    pytest.param(key, value, id=f"{key}={name}")
    for key in HELD
    for name, value in HOSTILE.items()
    if not (key.startswith("/connected-ips") and name in BLANKS)
]
VIF = Vif(NAME, MAC, "vif", (OWN, OWN6))
MAPPED = VIF._replace(mappings=(Mapping(OWN, FAKE),))


def test_all_keys_good() -> None:
    assert parse_provider(GOOD) == ALL


def test_a_qube_that_provides_nothing_has_no_errors_either() -> None:
    bad = dict.fromkeys(GOOD, b"bad")
    for network in ({}, {"/qubes-netvm-network": b""}):
        entries = {key: value for key, value in bad.items() if key != "/qubes-netvm-network"} | network
        assert parse_provider(entries) == ProviderSettings()


@pytest.mark.behaviour("B39")
def test_the_virtual_addresses_are_the_usual_ones_unless_dom0_names_others() -> None:
    alone = {"/qubes-netvm-network": b"10.138.0.1"}
    assert parse_provider(alone) == ProviderSettings(True, virtual_dns=VIRTUAL_DNS)
    for key, found in (
        ("/qubes-netvm-primary-dns", (FAKE, VIRTUAL_DNS[1])),
        ("/qubes-netvm-secondary-dns", (VIRTUAL_DNS[0], FAKE)),
    ):
        assert parse_provider({**alone, key: b"192.168.1.5"}).virtual_dns == found
    twice = {**GOOD, "/qubes-netvm-secondary-dns": b"10.139.1.1"}
    assert parse_provider(twice).virtual_dns == VIRTUAL_DNS[:1]


@pytest.mark.behaviour("B105")
@pytest.mark.parametrize(("key", "value"), BAD)
def test_a_bad_value_holds_its_own_and_nothing_else(key: str, value: bytes) -> None:
    name, changed = HELD[key]
    found = parse_provider({**GOOD, key: value})
    (error,) = found.errors
    assert error.key == key
    assert str(error).isprintable()
    assert found == ALL._replace(held=frozenset({name}), errors=(error,), **changed)


@pytest.mark.behaviour("B160")
@pytest.mark.parametrize(
    ("connected6", "gateway6", "refuse6"),
    [
        (b"fd09::5", None, True),
        (b"fd09::5", b"", True),
        (b"bad fd09::5", None, True),
        (b"fd09::5", b"fe80::1", False),
        (b"fd09::5", b"rubbish", False),  # what is in force stays
        (b"", None, False),
        (None, None, False),
        (b"bad", None, False),
    ],
)
def test_qubes_with_ipv6_behind_a_provider_without_are_refused(
    connected6: bytes | None, gateway6: bytes | None, refuse6: bool
) -> None:
    written = {"/connected-ips6": connected6, "/qubes-netvm-gateway6": gateway6}
    entries = {key: value for key, value in {**GOOD, **written}.items() if value is not None}
    found = parse_provider(entries)
    assert found.refuse6 is refuse6
    # To refuse takes a way to the qube, and no address of ours.
    assert (OWN6 in elements(VIF, found).downstream) is bool(gateway6 or refuse6)
    state = desired(VIF, found)
    assert (Neighbour(OWN6, MAC) in state.neighbours) is bool(gateway6 or refuse6)
    assert not [address for address in state.addresses if address.version == 6]


def test_of_a_list_the_good_words_count_and_one_error_is_enough() -> None:
    found = parse_provider({**GOOD, "/connected-ips": b"10.137.0.5 bad 10.137.0.6 127.0.0.1 fd09::1"})
    assert found.connected == CONNECTED
    assert [(error.key, "'bad'" in str(error)) for error in found.errors] == [("/connected-ips", True)]
    assert found.held == {"connected"}
    assert parse_provider({**GOOD, "/connected-ips6": b"10.137.0.5"}).held == {"connected"}


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), st.binary(max_size=40)))
def test_it_never_raises_and_names_all_it_holds(entries: dict[str, bytes]) -> None:
    found = parse_provider({**GOOD, **entries})
    assert found.held == {HELD[error.key][0] for error in found.errors}
    assert {error.key for error in found.errors} <= set(entries)


def test_every_key_is_read_and_watched_and_no_firewall_rule_is() -> None:
    prefixes = (*uplink.UPLINK_PREFIXES_OF_A_PROVIDER, *PROVIDER_PREFIXES)
    watched = (*uplink.WATCHED, *PROVIDER_WATCHED)
    for path in (*uplink.WATCHED, *GOOD, "/net-config/00:16:3e:5e:6c:00/ip"):
        assert path.startswith(prefixes), path
        assert any(path == watch or (watch.endswith("/") and path.startswith(watch)) for watch in watched), path
    for path in ("/qubes-firewall/10.137.0.5/policy", "/qubes-firewall-handled/10.137.0.5", "/mapped-ip/10.137.0.5/x"):
        assert not path.startswith(prefixes)
    assert len(watched) == len(set(watched))
    assert any(watch == "/mapped-ip/" for watch in watched)


@pytest.mark.parametrize(
    ("values", "found", "bad"),
    [
        ({}, (), []),
        ({"visible-ip": b""}, (), []),
        ({"visible-gateway": b"192.168.1.1"}, (), []),
        ({"visible-ip": b"192.168.1.5"}, (Mapping(OWN, FAKE),), []),
        (
            {"visible-ip": b"192.168.1.5", "visible-gateway": b"192.168.1.1"},
            (Mapping(OWN, FAKE, ipaddress.IPv4Address("192.168.1.1")),),
            [],
        ),
        ({"visible-ip": b"bad", "visible-gateway": b"192.168.1.1"}, (), ["visible-ip"]),
        ({"visible-ip": b"192.168.1.5", "visible-gateway": b"127.0.0.1"}, (), ["visible-gateway"]),
        ({"visible-ip": b"::1", "visible-gateway": b"\xff"}, (), ["visible-ip", "visible-gateway"]),
    ],
)
def test_mappings(values: dict[str, bytes], found: tuple[Mapping, ...], bad: list[str]) -> None:
    prefix = mapping_prefix(OWN)
    assert prefix == "/mapped-ip/10.137.0.5/"
    other = {"/mapped-ip/10.137.0.6/visible-ip": b"192.168.1.6", f"{mapping_prefix(OWN6)}visible-ip": b"192.168.1.6"}
    mappings, errors = parse_mappings({**other, **{prefix + key: value for key, value in values.items()}}, (OWN, OWN6))
    assert mappings == found
    assert [error.key for error in errors] == [prefix + key for key in bad]


def test_a_path_of_a_mapping_is_short_enough_for_qubesdb() -> None:
    longest = ipaddress.IPv6Address("1111:" * 7 + "1111")
    assert len(f"{mapping_prefix(longest)}") < 64


def wanted(addresses: tuple[str, ...], *own: IPAddress) -> State:
    """The state of vif4.0 with these addresses of the provider, for these of the qube."""
    return State(
        up=True,
        group=2,
        addresses=frozenset(map(ipaddress.ip_interface, addresses)),
        neighbours=frozenset(Neighbour(address, MAC) for address in own),
        routes=frozenset(Route(ipaddress.ip_network(address), metric=32748) for address in own),
    )


@pytest.mark.behaviour("B58")
@pytest.mark.parametrize(
    ("vif", "changes", "state"),
    [
        pytest.param(VIF, {}, wanted(("10.138.0.1/32",), OWN, OWN6), id="the kernel makes the link-local gateway"),
        pytest.param(
            VIF, {"gateway6": GATEWAY6}, wanted(("10.138.0.1/32", f"{GATEWAY6}/128"), OWN, OWN6), id="another gateway"
        ),
        pytest.param(VIF, {"gateway6": None}, wanted(("10.138.0.1/32",), OWN), id="IPv6 off"),
        pytest.param(VIF, {"gateway": None}, wanted((), OWN, OWN6), id="no IPv4 gateway"),
        pytest.param(MAPPED, {"gateway6": GATEWAY6}, wanted(("10.138.0.1/32",), OWN), id="mapped"),
        pytest.param(VIF._replace(addresses=()), {"gateway6": GATEWAY6}, wanted(()), id="no address"),
        pytest.param(
            VIF._replace(addresses=(OWN6,)), {"gateway6": GATEWAY6}, wanted((f"{GATEWAY6}/128",), OWN6), id="IPv6 alone"
        ),
        pytest.param(
            VIF._replace(gateways=frozenset({ipaddress.ip_interface("10.138.0.9/32")})),
            {"gateway": None, "held": frozenset({"gateway"})},
            wanted(("10.138.0.9/32",), OWN, OWN6),
            id="a bad gateway: the former one stays",
        ),
        pytest.param(
            VIF._replace(gateways=frozenset(map(ipaddress.ip_interface, ("10.138.0.9/32", f"{GATEWAY6}/128")))),
            {"gateway6": None, "held": frozenset({"ipv6"})},
            wanted(("10.138.0.1/32", f"{GATEWAY6}/128"), OWN, OWN6),
            id="a bad IPv6 gateway: the former one stays",
        ),
    ],
)
def test_what_a_vif_is_to_have(vif: Vif, changes: dict[str, Any], state: State) -> None:
    assert desired(vif, ALL._replace(**changes)) == state


@pytest.mark.behaviour("B58")
@pytest.mark.parametrize(
    ("vif", "changes", "addresses"),
    [
        (VIF, {}, (OWN, OWN6)),
        (VIF, {"gateway6": None}, (OWN,)),
        (VIF, {"gateway6": None, "held": frozenset({"ipv6"})}, (OWN, OWN6)),
        (MAPPED, {}, (OWN,)),
        (VIF._replace(addresses=()), {}, ()),
        (VIF._replace(name=VifName("vif4.1", 4, 1)), {}, (OWN, OWN6)),
    ],
)
def test_what_a_vif_may_send(vif: Vif, changes: dict[str, Any], addresses: tuple[IPAddress, ...]) -> None:
    found = elements(vif, ALL._replace(**changes))
    assert found == Elements(tuple((vif.name.text, address) for address in addresses), addresses)


def test_with_which_families_a_provider_serves() -> None:
    bad = ALL._replace(gateway6=None, held=frozenset({"ipv6"}))
    off = ALL._replace(gateway6=None)
    assert [(one.serves(4), one.serves(6)) for one in (ALL, bad, off)] == [(True, True), (True, True), (True, False)]
