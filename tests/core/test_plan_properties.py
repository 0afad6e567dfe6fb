# SPDX-License-Identifier: GPL-2.0-or-later
"""The six rules of `core.plan`, for random settings and random states of the kernel's model."""

from __future__ import annotations

import ipaddress
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet.core.plan import ADDING, REMOVING, Op, Verb, ahead, plan, still_there
from qubes_guestnet.core.settings import parse
from qubes_guestnet.core.uplink import desired as uplink
from qubes_guestnet.core.values import (
    BACKEND_MAC,
    IPV4,
    IPV6,
    ROUTE_PROTOCOL,
    IPInterface,
    Link,
    Neighbour,
    Owned,
    Route,
    State,
)
from tests.core.model import KERNEL, Interface, Model, taken

many = settings(max_examples=150, deadline=None, derandomize=True)

IPV6_INTERFACE = ipaddress.IPv6Interface
MAC = "00:16:3e:5e:6c:00"
LINK = Link(2, "eth0", MAC, driver="vif")
# Few values, so that old, new and foreign ones meet often.
KEYS: dict[str, tuple[bytes, ...]] = {
    "/qubes-ip": (b"10.137.0.5", b"10.137.0.6", b"10.138.0.2", b"bad"),
    "/qubes-netmask": (b"255.255.255.255", b"24", b"bad"),
    "/qubes-gateway": (b"10.138.0.1", b"10.138.0.2", b"10.137.0.1"),
    "/qubes-ip6": (b"fd09::5", b"fd09::6", b"fe80::5"),
    "/qubes-netmask6": (b"128", b"64"),
    "/qubes-gateway6": (b"fe80::1", b"fd09::1", b"fd0a::1"),
    f"/net-config/{MAC}/custom": (b"1",),
}
ADDRESSES = [
    ipaddress.ip_interface(text)
    for text in (
        *("10.137.0.5/32", "10.137.0.5/24", "10.137.0.6/32", "10.137.0.6/24", "192.168.7.7/24"),
        *("fd09::5/128", "fd09::5/64", "fd09::6/128", "fd77::7/64"),
    )
]
GATEWAYS = [
    ipaddress.ip_address(text)
    for text in ("10.138.0.1", "10.138.0.2", "10.137.0.1", "fe80::1", "fd09::1", "fd0a::1", "10.139.1.1")
]
DESTINATIONS = [
    ipaddress.ip_network(text)
    for text in ("0.0.0.0/0", "::/0", "10.138.0.1", "10.138.0.2", "fd09::1", "10.8.0.0/16", "fd99::/48")
]
PROTOCOLS = (ROUTE_PROTOCOL, ROUTE_PROTOCOL, 3, 4, 186)  # ours, RTPROT_BOOT, RTPROT_STATIC, RTPROT_BGP


def entry_sets() -> st.SearchStrategy[dict[str, bytes]]:
    return st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in KEYS.items()})


@st.composite
def routes(draw: st.DrawFn) -> Route:
    destination = draw(st.sampled_from(DESTINATIONS))
    ways = [gateway for gateway in GATEWAYS if gateway.version == destination.version]
    gateway = draw(st.sampled_from([None, *ways]))
    base = 0 if destination.version == IPV4 else 1025
    metric = base + draw(st.sampled_from((0, 0, 50, 100)))
    protocol = draw(st.sampled_from(PROTOCOLS))
    # Of ours, a default route of IPv6 has a gateway and a host route has none: the kernel cannot delete the one and
    # keep the other of two that differ in that only.
    if destination.version == IPV6 and protocol == ROUTE_PROTOCOL:
        gateway = None if destination.prefixlen else gateway or ways[0]
    return Route(destination, gateway, onlink=gateway is not None, metric=metric, protocol=protocol)


@st.composite
def states(draw: st.DrawFn) -> tuple[State, Owned]:
    """What may be on an interface, and what of it we made."""
    addresses: list[IPInterface] = []
    for address in draw(st.lists(st.sampled_from(ADDRESSES), max_size=4)):
        if not any(taken(address, other) for other in addresses):
            addresses.append(address)
    macs = st.sampled_from((BACKEND_MAC, "02:00:00:00:00:01"))
    entries = st.builds(Neighbour, st.sampled_from(GATEWAYS), macs, permanent=st.booleans())
    neighbours = {entry.address: entry for entry in draw(st.lists(entries, max_size=4))}
    found: list[Route] = []
    up = draw(st.booleans())
    for route in draw(st.lists(routes(), max_size=5)) if up else ():
        interface = Interface(LINK, State(True, 1, frozenset(addresses), routes=frozenset(found)))
        if Model(interface).do(Op(Verb.ROUTE_ADD, LINK.ifindex, LINK.name, route)) == 0:
            found.append(route)
    state = State(up, draw(st.integers(0, 1)), frozenset(addresses), frozenset(neighbours.values()), frozenset(found))
    # The record may also name what another program has removed.
    ours = draw(st.sets(st.sampled_from(ADDRESSES))), draw(st.sets(st.sampled_from(GATEWAYS)))
    return state, Owned(frozenset(ours[0]), frozenset(ours[1]))


class Case(NamedTuple):
    """One interface before, and what dom0 asks of it."""

    interface: Interface
    owned: Owned
    desired: State
    held: frozenset[int]

    @property
    def model(self) -> Model:
        return Model(self.interface)

    @property
    def there(self) -> Owned:
        """What the record rightly names."""
        return still_there(self.owned, self.interface.state())

    def plan(self) -> tuple[Op, ...]:
        link = self.model.links(frozenset({MAC}))[0]
        return plan(link, self.desired, self.interface.state(), self.there, self.held)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    uplinks = parse({"/qubes-mac": MAC.encode(), **draw(entry_sets())}).uplinks
    style, rank = draw(st.sampled_from(tuple(uplink.Style))), draw(st.integers(0, 1))
    flags = uplink.Flags(disable_default_route=draw(st.booleans()))
    desired = uplink.desired(uplinks[0], style, flags, rank)
    state, owned = draw(states())
    return Case(Interface(LINK, state), owned, desired, uplinks[0].held)


def foreign(state: State, owned: Owned) -> tuple[set[Any], ...]:
    """Addresses, neighbours and routes that we did not make."""
    made = {Neighbour(address) for address in owned.neighbours}
    return (
        set(state.addresses - owned.addresses),
        set(state.neighbours - made),
        {route for route in state.routes if route.protocol not in (ROUTE_PROTOCOL, KERNEL)},
    )


def assert_reached(case: Case) -> None:
    """All that is desired is there, and nothing else that we made. `owned` is the record ahead of the plan."""
    state, desired, owned, held = case.interface.state(), case.desired, case.owned, case.held
    ways = {(route.destination, route.gateway, route.metric) for route in state.routes}
    for version in {IPV4, IPV6} - held:
        ips = {address.ip for address in state.addresses - owned.addresses}
        for address in desired.addresses:
            if address.version == version:
                assert address in state.addresses or (version == IPV6 and address.ip in ips)
        for neighbour in desired.neighbours:
            if neighbour.address.version == version:
                assert neighbour in state.neighbours
        for route in desired.routes:
            if route.destination.version == version:
                assert (route.destination, route.gateway, route.metric) in ways
        wanted = {(route.destination, route.gateway, route.metric) for route in desired.routes}
        for route in state.routes:
            if route.destination.version == version and route.protocol == ROUTE_PROTOCOL:
                assert (route.destination, route.gateway, route.metric) in wanted
        for address in state.addresses & owned.addresses:
            assert address.version != version or address in desired.addresses
        for neighbour in state.neighbours & {Neighbour(address) for address in owned.neighbours}:
            assert neighbour.address.version != version or neighbour in desired.neighbours
    if desired.up:
        assert (state.up, state.group) == (True, desired.group)


def assert_foreign_left(before: tuple[set[Any], ...], interface: Interface) -> None:
    """What others made is there still, as far as the kernel itself lets it."""
    state = interface.state()
    addresses, neighbours, routes = before
    assert addresses <= state.addresses
    # An interface without any IPv4 address has no IPv4 route or neighbour, and that is not for us to change.
    gone = set() if has_ipv4(state) else {IPV4}
    replaced = {neighbour.address for neighbour in state.neighbours if neighbour == Neighbour(neighbour.address)}
    for neighbour in neighbours - state.neighbours:
        assert neighbour.address in replaced or neighbour.address.version in gone
    assert {route.destination.version for route in routes - state.routes} <= gone


def has_ipv4(state: State) -> bool:
    return any(address.version == IPV4 for address in state.addresses)


def family_of(state: State, version: int) -> tuple[set[Any], ...]:
    return (
        {address for address in state.addresses if address.version == version},
        {neighbour for neighbour in state.neighbours if neighbour.address.version == version},
        {route for route in state.routes if route.destination.version == version and route.protocol != KERNEL},
    )


@many
@given(cases())
@pytest.mark.behaviour("B5")
@pytest.mark.behaviour("B7")
def test_a_plan_reaches_the_desired_state_and_a_second_one_is_empty(case: Case) -> None:
    ops = case.plan()
    after = case._replace(owned=ahead(case.there, ops))
    for op in ops:
        assert case.model.do(op) == 0, op
    assert_reached(after)
    assert after.plan() == ()


@many
@given(cases())
def test_what_others_made_is_left(case: Case) -> None:
    before = foreign(case.interface.state(), case.owned)
    for op in case.plan():
        case.model.do(op)
        assert_foreign_left(before, case.interface)


@many
@given(cases())
def test_adds_before_it_deletes(case: Case) -> None:
    ops = case.plan()
    added = {op.subject.ip for op in ops if op.verb is Verb.ADDRESS_ADD and isinstance(op.subject, IPV6_INTERFACE)}
    renewed = [op for op in ops if op.verb is Verb.ADDRESS_DEL and getattr(op.subject, "ip", None) in added]
    assert ops[: len(renewed)] == tuple(renewed)
    for version in (IPV4, IPV6):
        verbs = [op.verb for op in ops if op.family == version and op not in renewed]
        adding = [verb in ADDING for verb in verbs]
        assert adding == sorted(adding, reverse=True)
        assert all((verb in ADDING) != (verb in REMOVING) for verb in verbs)


@many
@given(cases())
def test_ipv4_is_never_without_an_address_in_between(case: Case) -> None:
    ops = case.plan()
    had = has_ipv4(case.interface.state())
    for op in ops:
        case.model.do(op)
        assert has_ipv4(case.interface.state()) or not (had and has_ipv4(case.desired))


@many
@given(cases())
def test_a_held_family_is_not_touched(case: Case) -> None:
    before = {version: family_of(case.interface.state(), version) for version in case.held}
    for op in case.plan():
        case.model.do(op)
    assert {version: family_of(case.interface.state(), version) for version in case.held} == before


@many
@given(cases(), st.integers(0, 12))
def test_after_a_kill_at_any_operation_the_record_is_enough_to_end_the_same(case: Case, killed_at: int) -> None:
    start, ops = case.interface.state(), case.plan()
    before = foreign(start, case.owned)
    record = ahead(case.there, ops)
    made: set[Any] = set(start.addresses & case.owned.addresses)
    for op in ops[:killed_at]:
        case.model.do(op)
        if op.verb is Verb.ADDRESS_ADD:
            made.add(op.subject)
        present = case.interface.state()
        assert made & present.addresses <= record.addresses
        assert {n.address for n in present.neighbours - start.neighbours} <= record.neighbours
    restarted = case._replace(owned=record)
    again = restarted.plan()
    restarted = restarted._replace(owned=ahead(restarted.there, again))
    for op in again:
        assert case.model.do(op) == 0, op
    assert_reached(restarted)
    assert_foreign_left(before, case.interface)
    assert restarted.plan() == ()


@many
@given(cases())
def test_the_record_afterwards_names_what_is_there_and_ours(case: Case) -> None:
    start, ops = case.interface.state(), case.plan()
    for op in ops:
        case.model.do(op)
    end = case.interface.state()
    owned = still_there(ahead(case.there, ops), end)
    assert end.addresses - start.addresses <= owned.addresses <= case.owned.addresses | case.desired.addresses
    gateways = {neighbour.address for neighbour in case.desired.neighbours}
    made = {neighbour.address for neighbour in end.neighbours - start.neighbours}
    assert made <= owned.neighbours <= case.owned.neighbours | gateways
