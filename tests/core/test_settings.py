# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries → settings: what is right, what is hostile, and what a bad value does not touch."""

from __future__ import annotations

import ipaddress
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_guestnet.core.settings import (
    UPLINK_PREFIXES,
    WATCHED,
    DnsSettings,
    Family,
    Settings,
    UplinkSettings,
    parse,
)
from tests.support.faults.hostile import GOOD, HOSTILE, KEYS, MAC

OTHER = "00:16:3e:5e:6c:01"
OWN = f"/net-config/{MAC}/"
IPV4 = Family(ipaddress.ip_interface("10.137.0.5/32"), ipaddress.ip_address("10.138.0.1"))
IPV6 = Family(ipaddress.ip_interface("fd09:24ef:4179::a89:5/128"), ipaddress.ip_address("fe80::fcff:ffff:feff:ffff"))
SERVERS = (ipaddress.IPv4Address("10.139.1.1"), ipaddress.IPv4Address("10.139.1.2"))

BAD = [
    pytest.param(key, value, held, id=f"{key}={name}")
    for key, (more, held) in KEYS.items()
    for name, value in (HOSTILE | more).items()
]


def only(settings: Settings) -> UplinkSettings:
    (uplink,) = settings.uplinks
    return uplink


def test_all_keys_good() -> None:
    dns = DnsSettings(SERVERS)
    assert parse(GOOD) == Settings(MAC, (UplinkSettings(MAC, IPV4, IPV6),), dns)


@pytest.mark.scenario("S-404")
@pytest.mark.behaviour("B105")
@pytest.mark.parametrize(("key", "value", "held"), BAD)
def test_a_bad_value_is_named_and_holds_its_own_family_only(key: str, value: bytes, held: set[object]) -> None:
    settings = parse({**GOOD, key: value})
    (error,) = settings.errors
    assert error.key == key
    assert_one_safe_line(str(error))
    assert str(error).startswith(f"{key}: ")
    assert settings.held is ("everything" in held)
    if settings.held:
        assert settings.uplinks == ()
        assert settings.dns == DnsSettings(SERVERS)
        return
    uplink = only(settings)
    assert uplink.held == held & {4, 6}
    assert uplink.ipv4 == (None if 4 in held else IPV4)
    assert uplink.ipv6 == (None if 6 in held else IPV6)
    assert uplink.errors == (() if "dns" in held else (error,))
    assert settings.dns.held is ("dns" in held)
    assert settings.dns.servers == (() if "dns" in held else SERVERS)


def assert_one_safe_line(text: str) -> None:
    assert text.isprintable()
    assert len(text) < 500
    assert text.replace("…", "").isascii()


@pytest.mark.scenario("S-404")
@pytest.mark.parametrize(("key", "value", "held"), [case for case in BAD if case.values[0] in list(KEYS)[1:7]])
def test_per_interface_keys_are_checked_alike(key: str, value: bytes, held: set[object]) -> None:
    own = {OWN + path.removeprefix("/qubes-"): good for path, good in GOOD.items() if path in list(KEYS)[1:7]}
    bad = OWN + key.removeprefix("/qubes-")
    settings = parse({**GOOD, **own, bad: value})
    (error,) = settings.errors
    assert error.key == bad
    assert only(settings).held == held
    assert settings.dns.servers == SERVERS


@pytest.mark.parametrize("untrusted_value", [b"x", b"A" * 3071, b"\n\x1b[2J", b"\xff" * 61, "³".encode() * 40])
def test_all_bad_at_once(untrusted_value: bytes) -> None:
    settings = parse(dict.fromkeys(GOOD, untrusted_value))
    assert [error.key for error in settings.errors] == ["/qubes-mac", "/qubes-primary-dns", "/qubes-secondary-dns"]
    settings = parse({**dict.fromkeys(GOOD, untrusted_value), "/qubes-mac": GOOD["/qubes-mac"]})
    assert {error.key for error in settings.errors} == set(GOOD) - {"/qubes-mac"}
    assert len(settings.errors) == len(GOOD) - 1
    for error in settings.errors:
        assert_one_safe_line(str(error))
    assert only(settings).held == {4, 6}
    assert settings.dns == DnsSettings((), held=True, errors=settings.errors[-2:])


@pytest.mark.parametrize("absent", [None, b""], ids=["missing", "empty"])
@pytest.mark.parametrize(
    ("keys", "ipv4", "ipv6"),
    [
        (["/qubes-netmask"], IPV4, IPV6),
        (["/qubes-netmask6"], IPV4, IPV6),
        (["/qubes-gateway"], IPV4._replace(gateway=None), IPV6),
        pytest.param(["/qubes-gateway6"], IPV4, IPV6._replace(gateway=None), marks=pytest.mark.behaviour("B13")),
        (["/qubes-ip"], None, IPV6),
        (["/qubes-ip6"], IPV4, None),
        (["/qubes-ip", "/qubes-ip6"], None, None),
    ],
)
def test_absent_keys(keys: list[str], absent: bytes | None, ipv4: Family | None, ipv6: Family | None) -> None:
    entries = {path: value for path, value in GOOD.items() if path not in keys}
    if absent is not None:
        entries |= dict.fromkeys(keys, absent)
    settings = parse(entries)
    assert settings == Settings(MAC, (UplinkSettings(MAC, ipv4, ipv6),), DnsSettings(SERVERS))


def test_without_an_address_the_other_keys_of_the_family_mean_nothing() -> None:
    stale = {**GOOD, "/qubes-ip6": b"", "/qubes-gateway6": b"garbage", "/qubes-netmask6": b"999"}
    settings = parse(stale)
    assert settings.errors == ()
    assert only(settings) == UplinkSettings(MAC, IPV4)


@pytest.mark.parametrize("absent", [None, b""], ids=["missing", "empty"])
def test_without_a_mac_no_interface_is_expected(absent: bytes | None) -> None:
    entries = {path: value for path, value in GOOD.items() if path != "/qubes-mac"}
    if absent is not None:
        entries["/qubes-mac"] = absent
    assert parse(entries) == Settings(dns=DnsSettings(SERVERS))
    assert parse({}) == Settings()


@pytest.mark.parametrize(
    ("untrusted_value", "length"),
    [*((str(length).encode(), length) for length in range(1, 33))]
    + [(str(ipaddress.ip_network(f"0.0.0.0/{length}").netmask).encode(), length) for length in range(1, 33)],
)
def test_netmask(untrusted_value: bytes, length: int) -> None:
    settings = parse({**GOOD, "/qubes-netmask": untrusted_value})
    assert only(settings).ipv4 == Family(ipaddress.ip_interface(f"10.137.0.5/{length}"), IPV4.gateway)


@pytest.mark.parametrize("length", range(1, 129))
def test_netmask6(length: int) -> None:
    settings = parse({**GOOD, "/qubes-netmask6": str(length).encode()})
    family = only(settings).ipv6
    assert family is not None
    assert family.interface == ipaddress.ip_interface(f"fd09:24ef:4179::a89:5/{length}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("/qubes-ip", b"169.254.7.7"),
        ("/qubes-ip", b"240.0.0.1"),
        ("/qubes-ip", b"10.137.0.255"),
        ("/qubes-ip", b"10.137.1.0"),
        ("/qubes-gateway", b"169.254.1.1"),
        ("/qubes-ip6", b"2001:DB8::10.0.0.1"),
        ("/qubes-ip6", b"0001:0002:0003:0004:0005:0006:0007:0008"),
        ("/qubes-gateway6", b"fe80::1"),
        ("/qubes-gateway6", b"fd09:24ef:4179::1"),
    ],
)
def test_odd_but_right(key: str, value: bytes) -> None:
    assert parse({**GOOD, key: value}).errors == ()


@given(st.integers(0, 2**32 - 1))
def test_a_dotted_netmask_is_ones_then_zeros(number: int) -> None:
    dotted = str(ipaddress.IPv4Address(number))
    right = format(number, "032b").rstrip("0").count("0") == 0 and number != 0
    assert (not parse({**GOOD, "/qubes-netmask": dotted.encode()}).errors) is right


@given(st.integers(0, 2**32 - 1))
def test_any_host_address_of_ipv4_is_taken_and_no_other(number: int) -> None:
    address = ipaddress.IPv4Address(number)
    settings = parse({"/qubes-mac": MAC.encode(), "/qubes-ip": str(address).encode()})
    refused = address.is_multicast or address.is_loopback or address.packed[0] == 0 or number == 2**32 - 1
    assert only(settings).ipv4 == (None if refused else Family(ipaddress.ip_interface(address)))
    assert bool(settings.errors) is refused


@given(st.integers(0, 2**128 - 1), st.booleans())
def test_any_host_address_of_ipv6_is_taken_and_no_other(number: int, exploded: bool) -> None:
    address = ipaddress.IPv6Address(number)
    text = address.exploded if exploded else address.compressed.upper()
    settings = parse({"/qubes-mac": MAC.encode(), "/qubes-ip6": text.encode()})
    refused = address.is_multicast or address.is_loopback or address.is_unspecified or address.is_link_local
    refused = refused or address.ipv4_mapped is not None
    assert only(settings).ipv6 == (None if refused else Family(ipaddress.ip_interface(address)))


@pytest.mark.behaviour("B22")
@pytest.mark.parametrize(
    ("changes", "servers", "held"),
    [
        ({}, ["10.139.1.1", "10.139.1.2"], False),
        ({"/qubes-secondary-dns": None}, ["10.139.1.1"], False),
        ({"/qubes-secondary-dns": b""}, ["10.139.1.1"], False),
        ({"/qubes-secondary-dns": b"10.139.1.1"}, ["10.139.1.1"], False),
        ({"/qubes-primary-dns": None}, ["10.138.0.1", "10.139.1.2"], False),
        ({"/qubes-primary-dns": b""}, ["10.138.0.1", "10.139.1.2"], False),
        ({"/qubes-primary-dns": None, "/qubes-secondary-dns": None}, ["10.138.0.1"], False),
        ({"/qubes-primary-dns": None, "/qubes-secondary-dns": b"10.138.0.1"}, ["10.138.0.1"], False),
        ({"/qubes-primary-dns": None, "/qubes-gateway": None}, ["10.139.1.2"], False),
        ({"/qubes-primary-dns": None, "/qubes-ip": None}, ["10.139.1.2"], False),
        ({"/qubes-primary-dns": None, "/qubes-mac": None}, ["10.139.1.2"], False),
        ({"/qubes-primary-dns": None, "/qubes-gateway": b"bad"}, [], True),
        ({"/qubes-primary-dns": None, "/qubes-ip": b"bad"}, [], True),
        ({"/qubes-primary-dns": None, "/qubes-mac": b"bad"}, [], True),
        ({"/qubes-primary-dns": None, "/qubes-secondary-dns": b"bad"}, [], True),
        ({"/qubes-primary-dns": b"bad"}, [], True),
        ({"/qubes-secondary-dns": b"bad"}, [], True),
        ({"/qubes-gateway": b"bad"}, ["10.139.1.1", "10.139.1.2"], False),
        ({"/qubes-primary-dns": b"fd09::53"}, [], True),
        (
            {
                f"{OWN}ip": b"10.9.9.9",
                f"{OWN}gateway": b"10.9.9.1",
                "/qubes-primary-dns": None,
            },
            ["10.9.9.1", "10.139.1.2"],
            False,
        ),
        ({f"{OWN}primary-dns": b"10.9.9.3"}, ["10.139.1.1", "10.139.1.2"], False),
    ],
)
def test_dns(changes: dict[str, bytes | None], servers: list[str], held: bool) -> None:
    entries = {path: value for path, value in {**GOOD, **changes}.items() if value is not None}
    dns = parse(entries).dns
    assert [str(server) for server in dns.servers] == servers
    assert dns.held is held


@pytest.mark.behaviour("B12")
class TestPerInterface:
    def test_the_whole_set_comes_from_there(self) -> None:
        settings = parse({**GOOD, f"{OWN}ip": b"10.9.9.9"})
        assert only(settings) == UplinkSettings(MAC, Family(ipaddress.ip_interface("10.9.9.9/32")))
        assert settings.dns.servers == SERVERS

    @pytest.mark.parametrize("spelling", [MAC.upper(), "00:16:3E:5e:6c:00"])
    def test_any_spelling_of_the_mac_is_the_same_interface(self, spelling: str) -> None:
        own = {f"/net-config/{spelling}/ip": b"10.9.9.9", f"/net-config/{spelling}/custom": b"1"}
        expected = UplinkSettings(MAC, Family(ipaddress.ip_interface("10.9.9.9/32")), custom=True)
        assert only(parse({**GOOD, **own})) == expected
        assert only(parse({**GOOD, **own, "/qubes-mac": spelling.encode()})) == expected

    def test_a_second_spelling_is_ignored_as_a_whole_and_named_once(self) -> None:
        second = f"/net-config/{MAC.upper()}/"
        entries = {**GOOD, f"{OWN}ip": b"10.9.9.9", f"{second}ip": b"10.6.6.6", f"{second}ip6": b"fd09::6"}
        settings = parse(entries)
        assert only(settings).ipv4 == Family(ipaddress.ip_interface("10.9.9.9/32"))
        assert only(settings).ipv6 is None
        assert [error.key for error in settings.errors] == [f"{second}ip6"]
        assert MAC in str(settings.errors[0])
        assert parse({**entries, f"{second}ip": b"", f"{second}ip6": b""}).errors == ()

    @pytest.mark.parametrize("empty", [{}, {f"{OWN}ip": b""}], ids=["missing", "empty"])
    def test_without_an_ip_there_the_global_set_counts(self, empty: dict[str, bytes]) -> None:
        entries = {**GOOD, **empty, f"{OWN}ip6": b"fd09::9", f"{OWN}gateway": b"10.9.9.1"}
        assert only(parse(entries)) == UplinkSettings(MAC, IPV4, IPV6)

    @pytest.mark.parametrize("value", [b"1", b"", b"\xff" * 99])
    def test_custom_counts_by_being_there(self, value: bytes) -> None:
        settings = parse({**GOOD, f"{OWN}custom": value})
        assert only(settings) == UplinkSettings(MAC, IPV4, IPV6, custom=True)
        assert settings.errors == ()

    def test_more_interfaces(self) -> None:
        folder, third = f"/net-config/{OTHER}/", "/net-config/02:00:00:00:00:01/"
        entries = {**GOOD, f"{folder}ip": b"10.9.9.9", f"{folder}netmask": b"24", f"{third}ip6": b"fd09::7"}
        entries |= {f"{folder}custom": b"1", "/net-config/00:16:3e:5e:6c:02/gateway": b"10.9.9.1"}
        settings = parse(entries)
        assert settings.primary_mac == MAC
        assert settings.uplinks == (
            UplinkSettings(MAC, IPV4, IPV6),
            UplinkSettings(OTHER, Family(ipaddress.ip_interface("10.9.9.9/24")), custom=True),
            UplinkSettings("02:00:00:00:00:01", ipv6=Family(ipaddress.ip_interface("fd09::7/128"))),
        )
        without = parse({**entries, "/qubes-mac": b""})
        assert without.uplinks == settings.uplinks[1:]
        assert without.primary_mac is None

    def test_a_bad_value_of_one_interface_leaves_the_others(self) -> None:
        folder = f"/net-config/{OTHER}/"
        settings = parse({**GOOD, f"{folder}ip": b"bad", f"{folder}ip6": b"fd09::7"})
        first, second = settings.uplinks
        assert first == UplinkSettings(MAC, IPV4, IPV6)
        assert second.held == {4}
        assert second.ipv6 is not None
        assert second.errors == settings.errors
        assert settings.dns.held is False

    @pytest.mark.scenario("S-404")
    @pytest.mark.parametrize(
        "name",
        ["", "x", "-i", "..", "00:16:3e:5e:6c", "ff:ff:ff:ff:ff:ff", "fe:ff:ff:ff:ff:ff", "é", "\n\x1b[2J", "\udcff"],
    )
    def test_a_folder_that_is_no_mac_is_named_and_ignored(self, name: str) -> None:
        settings = parse({**GOOD, f"/net-config/{name}/ip": b"10.6.6.6", f"/net-config/{name}/ip6": b"fd09::6"})
        assert settings.uplinks == parse(GOOD).uplinks
        assert settings.held is False
        (error,) = settings.errors
        assert "/net-config/" in error.key
        assert_one_safe_line(str(error))

    def test_what_is_no_folder_or_no_key_of_ours(self) -> None:
        assert [error.key for error in parse({**GOOD, f"/net-config/{MAC}": b"1"}).errors] == [f"/net-config/{MAC}"]
        assert parse({**GOOD, f"{OWN}future": b"\xff", f"{OWN}ip/deeper": b"\xff", "/net-config": b"\xff"}) == parse(
            GOOD
        )
        assert parse({**GOOD, "/net-config/garbage/ip": b""}) == parse(GOOD)


def test_a_provider_says_so() -> None:
    assert parse({**GOOD, "/qubes-netvm-network": b"10.137.0.0"}).provider is True
    assert parse({**GOOD, "/qubes-netvm-network": b""}).provider is False
    assert parse(GOOD).provider is False


LEAVES = [
    "ip",
    "netmask",
    "gateway",
    "ip6",
    "netmask6",
    "gateway6",
    "custom",
    "primary-dns",
    "secondary-dns",
    "mac",
    "x",
]
PATHS = st.sampled_from(
    [*GOOD, "/qubes-netvm-network", "/qubes-firewall/10.1.1.1", "/name", "/net-config/"]
    + [f"/net-config/{mac}/{leaf}" for mac in (MAC, MAC.upper(), OTHER, "bad") for leaf in LEAVES]
)
VALUES = st.one_of(
    st.sampled_from([*GOOD.values(), OTHER.encode(), b"", b"24", b"10.9.9.9", b"fd09::9", b"fe80::1"]),
    st.binary(max_size=80),
)
ENTRIES = st.dictionaries(PATHS | st.text(max_size=20), VALUES, max_size=20)


@pytest.mark.behaviour("B105")
@given(ENTRIES)
def test_whatever_the_entries_are(entries: dict[str, bytes]) -> None:
    settings = parse(entries)
    for error in settings.errors:
        assert_one_safe_line(str(error))
    assert len(set(settings.errors)) == len(settings.errors)
    assert set(settings.dns.errors).union(*(uplink.errors for uplink in settings.uplinks)) <= set(settings.errors)
    macs = [uplink.mac for uplink in settings.uplinks]
    assert len(set(macs)) == len(macs)
    assert macs[1:] == sorted(macs[1:])
    assert settings.primary_mac is None or macs[0] == settings.primary_mac
    assert all(mac == mac.lower() for mac in macs)
    for uplink, version in itertools.product(settings.uplinks, (4, 6)):
        family = uplink.family(version)
        assert family is None or (family.interface.version == version and version not in uplink.held)
        assert bool(uplink.held) is bool(uplink.errors)
    assert not (settings.dns.held and settings.dns.servers)


@given(ENTRIES, PATHS | st.text(max_size=20), VALUES)
def test_what_is_watched_and_read_is_all_that_counts(entries: dict[str, bytes], path: str, value: bytes) -> None:
    # Errors compare by identity, their text by what it says.
    if repr(parse(entries)) != repr(parse({**entries, path: value})):
        assert any(path == watched or (watched.endswith("/") and path.startswith(watched)) for watched in WATCHED)
        assert path.startswith(UPLINK_PREFIXES)


def test_watched() -> None:
    assert set(WATCHED) == {*GOOD, "/qubes-netvm-network", "/net-config/", "/vm-config/net-mtu"}
    assert len(WATCHED) == len(set(WATCHED))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Family(IPV4.interface, IPV6.gateway),
        lambda: Family(IPV6.interface, IPV4.gateway),
        lambda: UplinkSettings(MAC, IPV6),
        lambda: UplinkSettings(MAC, None, IPV4),
        lambda: UplinkSettings(MAC, IPV4, held=frozenset({4})),
        lambda: UplinkSettings(MAC, IPV4, IPV6, held=frozenset({6})),
    ],
)
def test_settings_that_make_no_sense_cannot_be_made(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=r"fe80|fd09|10\."):
        make()
