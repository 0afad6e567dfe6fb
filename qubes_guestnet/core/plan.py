# SPDX-License-Identifier: GPL-2.0-or-later
"""The plan for an uplink: the ordered operations from the observed to the desired state.

Rules, each verified by a property test against a model of the kernel:

1. Only our own configuration is removed: routes with our protocol number, addresses and neighbours in the owned record.
   A VPN's default route, a user's second address, and an entry that the kernel learned stay.
2. Add before delete. An interface without any IPv4 address loses its IPv4 routes and neighbours at once
   (fib_disable_ip in the kernel), and a qube without a default route drops its packets.
3. The only exception: IPv6 accepts an address once, whatever its prefix length, so an address with another length is
   deleted first.
4. A held family (dom0 wrote something invalid) is left unchanged.
5. After a complete plan a second plan is empty. `reconcile` verifies that by observing again.
6. The settings of an interface are written before its link goes up, even if they were correct when observed:
   systemd-sysctl runs in between, and a user's file for all interfaces could overwrite them (behaviour B116).
7. A route is appended, never replaced: RTM_NEWROUTE with NLM_F_REPLACE overwrites the first route of the same
   destination, metric and TOS, and that may be a VPN's.

Order and the meaning of an errno are tables, not code.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Iterable

from .enumeration import Enum
from .namedtuple import NamedTuple
from .values import (
    BACKEND_MAC,
    IPV6,
    ROUTE_PROTOCOL,
    IPAddress,
    IPInterface,
    Link,
    Neighbour,
    Owned,
    Route,
    State,
    Tunable,
)

Subject = IPInterface | IPAddress | Neighbour | Route | Tunable | int | None


class Verb(Enum):
    """The verb of an operation; its value is the start of the command of `ip` or `sysctl`."""

    TUNABLE = "sysctl"
    LINK_GROUP = "link set"
    LINK_MTU = "link set mtu"
    LINK_UP = "link set up"
    LINK_DOWN = "link set down"
    ADDRESS_ADD = "address add"
    ADDRESS_DEL = "address del"
    NEIGHBOUR_SET = "neighbour replace"
    NEIGHBOUR_DEL = "neighbour del"
    ROUTE_ADD = "route append"
    ROUTE_DEL = "route del"


class Meaning(Enum):
    """The meaning of an errno for the refused operation."""

    DONE = "the desired state exists already"
    VANISHED = "the interface is gone: observe again"
    RETRY = "may succeed later"
    REFUSED = "cannot succeed until its cause is removed"


class Op(NamedTuple):
    """One change to one interface.

    Args:
        verb: the verb.
        ifindex: interface index, so that a rename between observe and apply is harmless.
        name: interface name, for messages.
        subject: the setting, address, neighbour, route or group; None for up and down.
    """

    verb: Verb
    ifindex: int
    name: str
    subject: Subject = None

    @property
    def family(self) -> int:
        """Return 4 or 6, or 0 for an operation on the link itself."""
        if isinstance(self.subject, Neighbour):
            return self.subject.address.version
        if isinstance(self.subject, Route):
            return self.subject.destination.version
        if isinstance(self.subject, ipaddress.IPv4Address | ipaddress.IPv6Address):  # interfaces are addresses too
            return self.subject.version
        return 0

    def hinders(self, other: object) -> bool:
        """Return whether another operation must be left out because this one failed.

        Without the address of its family the other operation would fail for the same reason, or create a route without
        a source address.
        """
        if not isinstance(other, Op) or (self.ifindex, self.family) != (other.ifindex, other.family):
            return False
        return self.verb is Verb.ADDRESS_ADD and other.verb in ADDING

    def __str__(self) -> str:
        return " ".join(_words(self))


# Creation order. Neighbour before link up: the first packet then needs no ARP. Host routes before the default route.
ORDER = (
    Verb.TUNABLE,
    Verb.LINK_GROUP,
    Verb.LINK_MTU,
    Verb.ADDRESS_ADD,
    Verb.NEIGHBOUR_SET,
    Verb.LINK_UP,
    Verb.ROUTE_ADD,
    Verb.ROUTE_DEL,
    Verb.NEIGHBOUR_DEL,
    Verb.ADDRESS_DEL,
)
_POSITION = {verb: position for position, verb in enumerate(ORDER)}

ADDING = frozenset({Verb.ADDRESS_ADD, Verb.NEIGHBOUR_SET, Verb.ROUTE_ADD})
REMOVING = frozenset({Verb.ADDRESS_DEL, Verb.NEIGHBOUR_DEL, Verb.ROUTE_DEL, Verb.LINK_DOWN})

# (operations, errno) -> meaning. Any other pair means REFUSED.
_ERRNO: tuple[tuple[frozenset[Verb], int, Meaning], ...] = (
    (ADDING, errno.EEXIST, Meaning.DONE),
    (REMOVING, errno.ESRCH, Meaning.DONE),
    (REMOVING, errno.ENOENT, Meaning.DONE),
    (REMOVING, errno.EADDRNOTAVAIL, Meaning.DONE),
    (REMOVING, errno.ENODEV, Meaning.DONE),
    (frozenset(Verb), errno.ENODEV, Meaning.VANISHED),
    (frozenset(Verb), errno.ENXIO, Meaning.VANISHED),
    (frozenset({Verb.ROUTE_ADD}), errno.ENETDOWN, Meaning.VANISHED),
    (frozenset(Verb), errno.EBUSY, Meaning.RETRY),
    (frozenset(Verb), errno.EAGAIN, Meaning.RETRY),
    (frozenset(Verb), errno.EINTR, Meaning.RETRY),
    (frozenset(Verb), errno.ENOBUFS, Meaning.RETRY),
    (frozenset(Verb), errno.ENOMEM, Meaning.RETRY),
)

REMEDIES = {
    errno.EPERM: "run as root (CAP_NET_ADMIN)",
    errno.EACCES: "IPv6 is disabled here: see sysctl net.ipv6.conf.*.disable_ipv6",
    errno.EOPNOTSUPP: "the kernel does not support it",
    errno.EAFNOSUPPORT: "the kernel does not support this address family",
}


def meaning(verb: Verb, number: int) -> Meaning:
    """Return the meaning of an errno in the kernel's reply to `verb`; the first matching row counts."""
    for verbs, listed, result in _ERRNO:
        if listed == number and verb in verbs:
            return result
    return Meaning.REFUSED


def plan(
    link: Link,
    desired: State,
    observed: State,
    owned: Owned,
    held: frozenset[int] = frozenset(),
    *,
    peer: str = BACKEND_MAC,
) -> tuple[Op, ...]:
    """Return the operations that turn `observed` into `desired`, in order; empty if the states are equal.

    Args:
        link: the interface.
        desired: desired state.
        observed: present state.
        owned: our part of the present state (routes have our protocol number instead).
        held: families (4, 6) to leave alone.
        peer: link-layer address of the other end, which our neighbour entries have.
    """
    ops: list[tuple[Verb, Subject]] = []
    if desired.up:
        ops += ((Verb.TUNABLE, tunable) for tunable in _wrong_tunables(desired, observed))
    if desired.up and observed.group != desired.group:
        ops.append((Verb.LINK_GROUP, desired.group))
    if desired.up and desired.mtu and observed.mtu != desired.mtu:
        ops.append((Verb.LINK_MTU, desired.mtu))
    if desired.up and not observed.up:
        ops.append((Verb.LINK_UP, None))
    # IPv6 accepts an address once: an existing one with another prefix length counts as ours.
    taken = {address.ip for address in observed.addresses - owned.addresses if address.version == IPV6}
    missing = desired.addresses - observed.addresses
    ops += ((Verb.ADDRESS_ADD, address) for address in missing if address.ip not in taken)
    ops += ((Verb.NEIGHBOUR_SET, neighbour) for neighbour in desired.neighbours - observed.neighbours)
    ops += ((Verb.ROUTE_ADD, route) for route in missing_routes(desired.routes, observed.routes))
    ops += ((Verb.ROUTE_DEL, route) for route in stale_routes(desired.routes, observed.routes))
    wanted = {neighbour.address for neighbour in desired.neighbours}
    # An entry with another MAC, or one that the kernel learned, has replaced ours.
    ours = {Neighbour(address, peer) for address in owned.neighbours}
    present = {neighbour.address for neighbour in ours & observed.neighbours}
    ops += ((Verb.NEIGHBOUR_DEL, address) for address in present - wanted)
    ops += ((Verb.ADDRESS_DEL, address) for address in (owned.addresses & observed.addresses) - desired.addresses)
    made = [Op(verb, link.ifindex, link.name, subject) for verb, subject in ops]
    return in_order(op for op in made if op.family not in held)


def in_order(ops: Iterable[Op]) -> tuple[Op, ...]:
    """Return operations sorted by ORDER, with the exception of rule 3 in front."""
    ops = tuple(ops)
    renewed = {_ipv6_address(op.subject) for op in ops if op.verb is Verb.ADDRESS_ADD} - {None}

    def key(op: Op) -> tuple[bool, int, int, bool, str]:
        blocks = op.verb is Verb.ADDRESS_DEL and _ipv6_address(op.subject) in renewed
        by_gateway = isinstance(op.subject, Route) and op.subject.gateway is not None
        return (not blocks, _POSITION[op.verb], op.family, by_gateway, str(op))

    return tuple(sorted(ops, key=key))


def takedown(link: Link) -> tuple[Op, ...]:
    """Return the operations of `uplink remove`: link down, with which the kernel removes routes and neighbours."""
    return (Op(Verb.LINK_DOWN, link.ifindex, link.name),)


def missing_routes(desired: Iterable[Route], observed: Iterable[Route]) -> list[Route]:
    """Return the missing routes; an existing route of the same destination counts as ours."""
    there = {way(route) for route in observed}
    return [route for route in desired if way(route) not in there]


def stale_routes(desired: Iterable[Route], observed: Iterable[Route]) -> list[Route]:
    """Return our routes that are no longer wanted."""
    wanted = {way(route) for route in desired}
    return [route for route in observed if route.protocol == ROUTE_PROTOCOL and way(route) not in wanted]


def _wrong_tunables(desired: State, observed: State) -> Iterable[Tunable]:
    """Return the settings to write: those that differ; before the link goes up, all that this kernel has (rule 6)."""
    values = {tunable.path: tunable.value for tunable in observed.tunables}
    there = (tunable for tunable in desired.tunables if tunable.path in values)
    return (tunable for tunable in there if not observed.up or values[tunable.path] != tunable.value)


def still_there(owned: Owned, observed: State) -> Owned:
    """Return the recorded items that still exist.

    Another program or the kernel removed the others, so they are no longer ours: if they reappear, another program
    added them.
    """
    neighbours = {neighbour.address for neighbour in observed.neighbours}
    return Owned(owned.addresses & observed.addresses, owned.neighbours & neighbours)


def ahead(owned: Owned, ops: Iterable[Op]) -> Owned:
    """Return the owned record that must be on disk before `ops` are applied; `still_there` corrects it afterwards.

    After an agent was killed in between, the record may contain too much, which is harmless, but never too little,
    which would leave an address behind for ever.
    """
    addresses, neighbours = set(owned.addresses), set(owned.neighbours)
    for op in ops:
        if op.verb is Verb.ADDRESS_ADD and isinstance(op.subject, ipaddress.IPv4Interface | ipaddress.IPv6Interface):
            addresses.add(op.subject)
        elif op.verb is Verb.NEIGHBOUR_SET and isinstance(op.subject, Neighbour):
            neighbours.add(op.subject.address)
    return Owned(frozenset(addresses), frozenset(neighbours))


def way(route: Route) -> tuple[object, ...]:
    """Return the fields that distinguish routes of one interface, without the program that added them."""
    return route.destination, route.gateway, route.metric


def _ipv6_address(subject: Subject) -> ipaddress.IPv6Address | None:
    return subject.ip if isinstance(subject, ipaddress.IPv6Interface) else None


def _words(op: Op) -> Iterable[str]:
    if op.verb is Verb.TUNABLE:
        yield str(op.subject)
        return
    yield "ip"
    if op.family == IPV6:
        yield "-6"
    thing, _, action = op.verb.value.partition(" ")
    yield thing
    if op.verb in (Verb.LINK_GROUP, Verb.LINK_MTU, Verb.LINK_UP, Verb.LINK_DOWN):
        yield f"set dev {op.name}"
        word = "group" if op.verb is Verb.LINK_GROUP else action.removeprefix("set ")
        yield f"{word} {op.subject}" if op.subject is not None else word
        return
    yield action
    if isinstance(op.subject, Neighbour):
        yield f"{op.subject.address} lladdr {op.subject.mac} nud permanent dev {op.name}"
    elif isinstance(op.subject, Route):
        yield from route_words(op.subject, op.name)
    else:
        yield f"{op.subject} dev {op.name}"
        if op.verb is Verb.ADDRESS_ADD and op.family == IPV6:
            yield "nodad"


def route_words(route: Route, name: str) -> Iterable[str]:
    """Yield the words of a route, in the syntax of `ip route`."""
    yield str(route.destination) if route.destination.prefixlen else "default"
    if route.gateway is not None:
        yield f"via {route.gateway}"
    yield f"dev {name}"
    if route.onlink:
        yield "onlink"
    if route.gateway is None and route.destination.version != IPV6:
        yield "scope link"
    yield f"proto {route.protocol}"
    if route.metric:
        yield f"metric {route.metric}"
