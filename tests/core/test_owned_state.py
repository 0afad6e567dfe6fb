# SPDX-License-Identifier: GPL-2.0-or-later
"""The owned record: text and back, damage, and which interfaces are there."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet.core.endpoint import Endpoint
from qubes_guestnet.core.owned_state import (
    FIREWALL,
    HEADER,
    HELD,
    Fallback,
    Interface,
    Last,
    Loaded,
    Provided,
    Record,
    checksum,
    parse,
    render,
)
from qubes_guestnet.core.values import Link, Owned

MAC, OTHER = "00:16:3e:5e:6c:00", "00:16:3e:5e:6c:01"
LINK = Link(2, "eth0", MAC)
OWNED = Owned(
    frozenset(map(ipaddress.ip_interface, ("10.137.0.5/32", "fd09::5/128"))),
    frozenset(map(ipaddress.ip_address, ("10.138.0.1", "fe80::1"))),
)
FALLBACK = Fallback(ipaddress.ip_address("10.138.0.1"), "no answer in 100 ms")
FULL = Record(
    (
        Interface(2, MAC, OWNED, FALLBACK),
        Interface(3, OTHER, removed=True, profile="1f", hooked="a|b|c", resolved=True),
    ),
    frozenset({"00:16:3e:5e:6c:02"}),
    Provided(
        Loaded("0a1b", "2c3d"),
        Loaded("4e5f", "-"),
        ("9.9.9.9", "1.1.1.1"),
        frozenset({4, 6}),
        closed=True,
        offload="on (2 devices)",
        connected="6a7b",
        last=Last((Endpoint(ipaddress.ip_address("10.8.0.1"), 5353),), 7, 120, "wg0"),
        synced="1c1c",
        reloaded="2d2d",
        hooks=1790000000,
        shut=frozenset({4}),
        stopped=frozenset({6}),
        hold="held",
        lost=("table inet mine", "rules of ip qubes chain custom-forward"),
        proxied=("9.9.9.9",),
        unfiltered=True,
        pending=("9.9.9.10",),
        filtered=True,
    ),
    "3f3f",
)
TEXT = f"""{HEADER}interface 2 {MAC}
address 10.137.0.5/32
address fd09::5/128
neighbour 10.138.0.1
neighbour fe80::1
fallback 10.138.0.1 no answer in 100 ms
interface 3 {OTHER}
removed
profile 1f
hooked a|b|c
resolved
detached 00:16:3e:5e:6c:02
published 3f3f
rules 0a1b 2c3d
names 4e5f -
servers 9.9.9.9 1.1.1.1
pending 9.9.9.10
proxied 9.9.9.9
heard 7 120 776730 10.8.0.1:5353
hooks 1790000000
forwarding 4
forwarding 6
closed
offload on (2 devices)
connected 6a7b
shut 4
stopped 6
hold held
lost table inet mine
lost rules of ip qubes chain custom-forward
unfiltered
filtered
synced 1c1c
reloaded 2d2d
""".encode()

endpoints = st.builds(Endpoint, st.ip_addresses(v=4, network="10.0.0.0/8"), st.integers(1, 65535))
ip4, ip6 = st.ip_addresses(v=4), st.ip_addresses(v=6)
macs = st.sampled_from((MAC, OTHER, "02:00:00:00:00:09"))
fallbacks = st.builds(Fallback, ip4, st.text("abc 0123.,:", max_size=20))
owned = st.builds(
    Owned,
    st.frozensets(st.one_of(ip4, ip6).map(ipaddress.ip_interface), max_size=3),
    st.frozensets(st.one_of(ip4, ip6), max_size=3),
)
words = st.text("abc0123.,:|", max_size=20)
interfaces = st.builds(
    Interface, st.integers(1, 99), macs, owned, st.none() | fallbacks, st.booleans(), words, words, st.booleans()
)
sums = st.text("0123456789abcdef-", min_size=1, max_size=8)
loaded = st.builds(Loaded, sums, sums)
provided = st.builds(
    Provided,
    st.just(Loaded()) | loaded,
    st.just(Loaded()) | loaded,
    st.lists(endpoints.map(str), max_size=3).map(tuple),
    st.frozensets(st.sampled_from((4, 6))),
    st.booleans(),
    words,
    st.just("") | sums,
    st.none()
    | st.builds(
        Last,
        st.lists(endpoints, max_size=3).map(tuple),
        st.integers(0, 99),
        st.integers(0, 10**9),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    ),
    st.integers(0, 2**40),
    st.frozensets(st.sampled_from((4, 6))),
    st.frozensets(st.sampled_from((4, 6))),
    st.sampled_from(("", HELD, FIREWALL)),
    st.lists(words, max_size=2).map(tuple),
    st.lists(endpoints.map(str), max_size=3).map(tuple),
    st.booleans(),
    st.booleans(),
    st.just("") | sums,
    st.just("") | sums,
    st.none() | st.lists(endpoints.map(str), max_size=3).map(tuple),
)
records = st.builds(
    Record,
    st.lists(interfaces, max_size=3, unique_by=lambda entry: entry.ifindex).map(tuple),
    st.frozensets(macs, max_size=2),
    provided,
)


def test_the_sum_of_where_names_lead_to_follows_the_servers_and_the_reason() -> None:
    one, other = Provided(servers=("192.0.2.1",)), Provided(servers=("192.0.2.2",))
    assert one.leading == Provided(servers=("192.0.2.1",)).leading
    assert one.leading != other.leading
    assert one.leading != one._replace(names=Loaded("another text")).leading


@pytest.mark.behaviour("B62")
@pytest.mark.parametrize(("words", "may"), [("", False), ("off: none", False), ("on (2 devices)", True)])
def test_whether_there_may_be_a_flowtable(words: str, may: bool) -> None:
    assert Provided(offload=words).offloading is may


def test_text_and_back() -> None:
    assert render(FULL) == TEXT
    assert parse(TEXT) == FULL
    assert render(Record()) == HEADER.encode()
    assert parse(render(Record())) == Record()


@given(records)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_every_record_comes_back_as_it_was(record: Record) -> None:
    back = parse(render(record))
    assert (back.detached, back.provided) == (record.detached, record.provided)
    assert sorted(back.interfaces, key=lambda entry: entry.ifindex) == sorted(
        record.interfaces, key=lambda entry: entry.ifindex
    )


@given(st.binary(max_size=200) | st.permutations(TEXT.splitlines()).map(b"\n".join))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_whatever_the_file_holds_it_can_be_read(data: bytes) -> None:
    known = parse(data)
    assert render(parse(render(known))) == render(known)


DAMAGED = {
    "an unknown word": b"hello world\n",
    "a fact of no interface": b"address 10.137.0.5/32\nremoved\n",
    "no index": b"interface eth0 aa\naddress 10.137.0.5/32\n",
    "a word too many": f"interface 2 {MAC} eth0\naddress 10.137.0.5/32\n".encode(),
    "not ASCII": "interface ² aa\n".encode(),
    "empty": b"",
}


@pytest.mark.parametrize(
    "line",
    [
        *("rules 0a1b", "names", "servers 9.9.9.9 x", "forwarding 5", "forwarding x"),
        *("shut 5", "stopped x", "hold x"),
    ],
)
def test_a_damaged_fact_of_the_provider_is_none(line: str) -> None:
    assert parse(f"{line}\nclosed\n".encode()).provided == Provided(closed=True)


def test_a_checksum_tells_texts_apart() -> None:
    assert checksum(b"a") == checksum(b"a") != checksum(b"b")
    assert " " not in checksum(b"") != ""


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
def test_damage_owns_nothing(data: bytes) -> None:
    assert parse(data) == Record()


@pytest.mark.parametrize("line", ["address x", "neighbour 10.138.0.1/32", "fallback 10.138.0.1", "fallback a b"])
def test_a_damaged_fact_is_left_out_and_the_next_one_counts(line: str) -> None:
    data = f"interface 2 {MAC}\n{line}\naddress 10.137.0.5/32\n".encode()
    assert parse(data) == Record((Interface(2, MAC, Owned(frozenset({ipaddress.ip_interface("10.137.0.5/32")}))),))


def test_facts_below_a_damaged_interface_are_not_the_former_ones() -> None:
    data = f"interface 2 {MAC}\ninterface x\naddress 10.137.0.5/32\n".encode()
    assert parse(data) == Record((Interface(2, MAC),))


def test_the_entry_of_a_link_has_its_index_and_its_mac() -> None:
    assert FULL.interface(LINK) == FULL.interfaces[0]
    assert FULL.interface(Link(2, "eth0", OTHER)) == Interface(2, OTHER)
    assert FULL.interface(Link(9, "eth0", MAC)) == Interface(9, MAC)


def test_a_changed_entry_takes_the_place_of_the_former() -> None:
    changed = Interface(2, OTHER)
    assert FULL.with_interface(changed).interfaces == (FULL.interfaces[1], changed)


def test_seen_keeps_what_is_there_and_forgets_what_went() -> None:
    fresh = Link(9, "eth1", "00:16:3e:5e:6c:02")
    record = FULL.seen([MAC, OTHER, fresh.mac], [LINK, fresh], keys_written=False)
    assert record.interfaces == (FULL.interfaces[0], Interface(9, fresh.mac))
    assert record.detached == {OTHER}
    assert record.seen([MAC, OTHER, fresh.mac], [LINK, fresh], keys_written=False) == record
    assert record.seen([MAC, OTHER], [LINK, fresh], keys_written=True).detached == frozenset()


def test_detached_is_only_what_the_keys_still_name() -> None:
    assert FULL.seen([MAC], [], keys_written=False) == FULL._replace(interfaces=(), detached=frozenset({MAC}))
    assert FULL.seen([], [], keys_written=False) == FULL._replace(interfaces=(), detached=frozenset())


def test_replugged_with_another_index_it_is_not_detached() -> None:
    again = Link(7, "eth0", MAC)
    assert FULL.seen([MAC], [again], keys_written=False) == FULL._replace(
        interfaces=(Interface(7, MAC),), detached=frozenset()
    )


def test_revived_are_the_links_given_and_no_others() -> None:
    removed = Record((Interface(2, MAC, removed=True), Interface(3, OTHER, removed=True)))
    assert removed.revived([LINK]) == Record((Interface(2, MAC), Interface(3, OTHER, removed=True)))
    assert removed.revived([Link(2, "eth0", OTHER)]) == removed


@pytest.mark.behaviour("B148")
@pytest.mark.parametrize("pending", [None, (), ("9.9.9.9", "1.1.1.1:5353")])
def test_where_a_redirection_is_about_to_lead(pending: tuple[str, ...] | None) -> None:
    kept = parse(render(Record(provided=Provided(pending=pending)))).provided
    assert kept.pending == pending
