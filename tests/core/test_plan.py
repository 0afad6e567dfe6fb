# SPDX-License-Identifier: GPL-2.0-or-later
"""The planner's tables, its words, and its rules one by one; `test_plan_properties` has them for random states."""

from __future__ import annotations

import errno
import ipaddress

import pytest

from qubes_guestnet.core.plan import (
    ADDING,
    ORDER,
    REMEDIES,
    REMOVING,
    Meaning,
    Op,
    Subject,
    Verb,
    ahead,
    in_order,
    meaning,
    plan,
    still_there,
    takedown,
)
from qubes_guestnet.core.values import DEFAULT, IPInterface, IPNetwork, Link, Neighbour, Owned, Route, State

LINK = Link(2, "eth0", "00:16:3e:5e:6c:00", driver="vif")
GATEWAY = ipaddress.ip_address("10.138.0.1")
GATEWAY6 = ipaddress.ip_address("fe80::1")


def net(text: str) -> IPNetwork:
    return ipaddress.ip_network(text)


def address(text: str) -> IPInterface:
    return ipaddress.ip_interface(text)


WORDS: dict[str, tuple[Verb, Subject, int]] = {
    "ip link set dev eth0 group 1": (Verb.LINK_GROUP, 1, 0),
    "ip link set dev eth0 up": (Verb.LINK_UP, None, 0),
    "ip link set dev eth0 down": (Verb.LINK_DOWN, None, 0),
    "ip address add 10.137.0.5/32 dev eth0": (Verb.ADDRESS_ADD, address("10.137.0.5/32"), 4),
    "ip -6 address add fd09::5/128 dev eth0 nodad": (Verb.ADDRESS_ADD, address("fd09::5/128"), 6),
    "ip address del 10.137.0.5/24 dev eth0": (Verb.ADDRESS_DEL, address("10.137.0.5/24"), 4),
    "ip -6 address del fd09::5/64 dev eth0": (Verb.ADDRESS_DEL, address("fd09::5/64"), 6),
    "ip neighbour replace 10.138.0.1 lladdr fe:ff:ff:ff:ff:ff nud permanent dev eth0": (
        Verb.NEIGHBOUR_SET,
        Neighbour(GATEWAY),
        4,
    ),
    "ip -6 neighbour replace fe80::1 lladdr fe:ff:ff:ff:ff:ff nud permanent dev eth0": (
        Verb.NEIGHBOUR_SET,
        Neighbour(GATEWAY6),
        6,
    ),
    "ip neighbour del 10.138.0.1 dev eth0": (Verb.NEIGHBOUR_DEL, GATEWAY, 4),
    "ip -6 neighbour del fe80::1 dev eth0": (Verb.NEIGHBOUR_DEL, GATEWAY6, 6),
    "ip route append default dev eth0 scope link proto 81": (Verb.ROUTE_ADD, Route(DEFAULT[4]), 4),
    "ip route append 10.138.0.1/32 dev eth0 scope link proto 81 metric 100": (
        Verb.ROUTE_ADD,
        Route(net("10.138.0.1"), metric=100),
        4,
    ),
    "ip route del default via 10.138.0.1 dev eth0 onlink proto 81": (
        Verb.ROUTE_DEL,
        Route(DEFAULT[4], GATEWAY, onlink=True),
        4,
    ),
    "ip -6 route append default via fe80::1 dev eth0 onlink proto 81 metric 1025": (
        Verb.ROUTE_ADD,
        Route(DEFAULT[6], GATEWAY6, onlink=True, metric=1025),
        6,
    ),
    "ip -6 route del fd09::1/128 dev eth0 proto 81 metric 1025": (
        Verb.ROUTE_DEL,
        Route(net("fd09::1"), metric=1025),
        6,
    ),
}


@pytest.mark.parametrize(("words", "case"), WORDS.items())
def test_an_operation_reads_as_a_command_of_ip(words: str, case: tuple[Verb, Subject, int]) -> None:
    verb, subject, family = case
    op = Op(verb, 2, "eth0", subject)
    assert str(op) == words
    assert op.family == family


MEANINGS = [
    ([Verb.ADDRESS_ADD, Verb.NEIGHBOUR_SET, Verb.ROUTE_ADD], errno.EEXIST, Meaning.DONE),
    ([Verb.ADDRESS_DEL], errno.EADDRNOTAVAIL, Meaning.DONE),
    ([Verb.NEIGHBOUR_DEL], errno.ENOENT, Meaning.DONE),
    ([Verb.ROUTE_DEL], errno.ESRCH, Meaning.DONE),
    (REMOVING, errno.ENODEV, Meaning.DONE),
    ([*ADDING, Verb.LINK_UP, Verb.LINK_GROUP], errno.ENODEV, Meaning.VANISHED),
    (Verb, errno.ENXIO, Meaning.VANISHED),
    ([Verb.ROUTE_ADD], errno.ENETDOWN, Meaning.VANISHED),
    ([Verb.LINK_UP], errno.ENETDOWN, Meaning.REFUSED),
    (Verb, errno.EBUSY, Meaning.RETRY),
    (Verb, errno.ENOBUFS, Meaning.RETRY),
    (Verb, errno.EINTR, Meaning.RETRY),
    (Verb, errno.EPERM, Meaning.REFUSED),
    (Verb, errno.EACCES, Meaning.REFUSED),
    (Verb, errno.EINVAL, Meaning.REFUSED),
    ([*REMOVING, Verb.LINK_UP], errno.EEXIST, Meaning.REFUSED),
    ([*ADDING, Verb.LINK_UP], errno.ESRCH, Meaning.REFUSED),
]


@pytest.mark.parametrize(("verbs", "number", "expected"), MEANINGS)
def test_what_an_errno_means(verbs: list[Verb], number: int, expected: Meaning) -> None:
    assert {meaning(verb, number) for verb in verbs} == {expected}


def test_every_verb_has_its_place() -> None:
    assert set(ORDER) | {Verb.LINK_DOWN} == set(Verb)
    assert not ADDING & REMOVING
    assert all(remedy for remedy in REMEDIES.values())


DESIRED = State(
    True,
    1,
    frozenset({address("10.137.0.5/32"), address("fd09::5/128")}),
    frozenset({Neighbour(GATEWAY), Neighbour(GATEWAY6)}),
    frozenset(
        {
            Route(DEFAULT[4], GATEWAY, onlink=True),
            Route(net("10.138.0.1")),
            Route(DEFAULT[6], GATEWAY6, onlink=True, metric=1025),
        }
    ),
)


def words(desired: State, observed: State, owned: Owned = Owned()) -> list[str]:  # noqa: B008 it is frozen
    return [str(op) for op in plan(LINK, desired, observed, owned)]


def test_from_nothing_to_all() -> None:
    """Neighbours before the link is up, the host route before the default route that needs it, IPv4 before IPv6."""
    assert words(DESIRED, State()) == [
        "ip link set dev eth0 group 1",
        "ip address add 10.137.0.5/32 dev eth0",
        "ip -6 address add fd09::5/128 dev eth0 nodad",
        "ip neighbour replace 10.138.0.1 lladdr fe:ff:ff:ff:ff:ff nud permanent dev eth0",
        "ip -6 neighbour replace fe80::1 lladdr fe:ff:ff:ff:ff:ff nud permanent dev eth0",
        "ip link set dev eth0 up",
        "ip route append 10.138.0.1/32 dev eth0 scope link proto 81",
        "ip route append default via 10.138.0.1 dev eth0 onlink proto 81",
        "ip -6 route append default via fe80::1 dev eth0 onlink proto 81 metric 1025",
    ]


def test_from_all_to_nothing_leaves_the_link_up() -> None:
    owned = Owned(DESIRED.addresses, frozenset({GATEWAY, GATEWAY6}))
    removals = words(State(), DESIRED, owned)
    assert len(removals) == 7
    assert all(" del " in line for line in removals)


def test_nothing_to_do() -> None:
    assert words(DESIRED, DESIRED) == []
    assert words(State(), State()) == []


def test_without_an_address_to_set_the_link_stays_as_it_is() -> None:
    assert words(State(up=False, group=1), State(up=True, group=0)) == []
    assert words(State(up=False, group=1), State(up=False, group=7)) == []


def test_a_changed_length_of_an_ipv6_address_goes_first() -> None:
    old, new = frozenset({address("fd09::5/64")}), frozenset({address("fd09::5/128")})
    observed = State(True, 1, old, routes=frozenset({Route(DEFAULT[4])}))
    assert words(State(True, 1, new), observed, Owned(old)) == [
        "ip -6 address del fd09::5/64 dev eth0",
        "ip -6 address add fd09::5/128 dev eth0 nodad",
        "ip route del default dev eth0 scope link proto 81",
    ]


def test_a_changed_length_of_an_ipv4_address_goes_last() -> None:
    old, new = frozenset({address("10.137.0.5/24")}), frozenset({address("10.137.0.5/32")})
    assert words(State(True, 1, new), State(True, 1, old), Owned(old)) == [
        "ip address add 10.137.0.5/32 dev eth0",
        "ip address del 10.137.0.5/24 dev eth0",
    ]


def test_somebody_elses_ipv6_address_of_another_length_will_do() -> None:
    there = State(True, 1, frozenset({address("fd09::5/64")}))
    assert words(State(True, 1, frozenset({address("fd09::5/128")})), there) == []


def test_somebody_elses_route_of_the_same_way_will_do_and_stays() -> None:
    theirs = Route(DEFAULT[4], GATEWAY, protocol=3)
    there = State(True, 1, routes=frozenset({theirs}))
    assert words(State(True, 1, routes=frozenset({Route(DEFAULT[4], GATEWAY, onlink=True)})), there) == []
    assert words(State(True, 1), there) == []


def test_a_learned_neighbour_is_replaced_where_wanted_and_left_where_not() -> None:
    learned = Neighbour(GATEWAY, "02:00:00:00:00:01", permanent=False)
    there = State(True, 1, neighbours=frozenset({learned}))
    owned = Owned(neighbours=frozenset({GATEWAY}))
    (line,) = words(State(True, 1, neighbours=frozenset({Neighbour(GATEWAY)})), there, owned)
    assert line.startswith("ip neighbour replace 10.138.0.1 ")
    assert words(State(True, 1), there, owned) == []


def test_takedown_is_one_operation() -> None:
    assert [str(op) for op in takedown(LINK)] == ["ip link set dev eth0 down"]


def test_the_record_before_and_after() -> None:
    old, new = address("10.137.0.5/32"), address("10.137.0.6/32")
    gone = address("10.137.0.9/32")
    theirs = Neighbour(ipaddress.ip_address("192.168.7.1"), "02:00:00:00:00:01")
    observed = State(True, 1, frozenset({old}), frozenset({Neighbour(GATEWAY), theirs}))
    desired = State(True, 1, frozenset({new}), frozenset({Neighbour(GATEWAY6)}))
    owned = Owned(frozenset({old, gone}), frozenset({GATEWAY}))
    there = still_there(owned, observed)
    assert there == Owned(frozenset({old}), frozenset({GATEWAY}))
    record = ahead(there, plan(LINK, desired, observed, there))
    assert record == Owned(frozenset({old, new}), frozenset({GATEWAY, GATEWAY6}))
    assert still_there(record, desired) == Owned(frozenset({new}), frozenset({GATEWAY6}))


def test_order_does_not_depend_on_the_order_given() -> None:
    ops = plan(LINK, DESIRED, State(), Owned())
    assert in_order(reversed(ops)) == ops
