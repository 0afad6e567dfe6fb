# SPDX-License-Identifier: GPL-2.0-or-later
"""From what is to what should be: an ordered tuple of operations.

Rules, each held by a property test against a model of the kernel:

1. Only what we made is removed: routes with our protocol number, addresses and neighbours in the owned record. A VPN's
   default route, a user's second address, an entry the kernel learned stay (what others add is never undone).
2. Add before delete. An interface without any IPv4 address loses its IPv4 routes and neighbours at once
   (fib_disable_ip in the kernel), and a qube without a default route drops what is on its way.
3. The one exception: IPv6 takes an address once, whatever its prefix length, so a changed length is deleted first.
4. A held family (dom0 wrote something invalid) is left exactly as it is.
5. Applied in full, the plan makes a second plan empty. `reconcile` checks that by observing again.
6. A setting of the interface is written before the link goes up, also where it was found right: systemd-sysctl runs in
   between, and a user's file for every interface must not take it away by accident (behaviour B116).
7. A route is appended, never replaced: RTM_NEWROUTE with NLM_F_REPLACE overwrites the first route of the same
   destination, metric and TOS, and that may be a VPN's.

Order and the meaning of an errno are tables, not code.
"""

from __future__ import annotations

import enum
import errno
import ipaddress
from collections.abc import Iterable

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


class Verb(enum.Enum):
    """What an operation does; the value is the start of its command, of `ip` or `sysctl`."""

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


class Meaning(enum.Enum):
    """What an errno says about the operation that got it."""

    DONE = "the desired state exists already"
    VANISHED = "the interface is gone: observe again"
    RETRY = "may succeed later"
    REFUSED = "cannot succeed until its cause is removed"


class Op(NamedTuple):
    """One change to one interface.

    Args:
        verb: what to do.
        ifindex: interface index; a rename between observe and apply does no harm.
        name: interface name, for people.
        subject: the setting, address, neighbour, route or group; None for up and down.
    """

    verb: Verb
    ifindex: int
    name: str
    subject: Subject = None

    @property
    def family(self) -> int:
        """4 or 6, or 0 for an operation on the link itself."""
        if isinstance(self.subject, Neighbour):
            return self.subject.address.version
        if isinstance(self.subject, Route):
            return self.subject.destination.version
        if isinstance(self.subject, ipaddress.IPv4Address | ipaddress.IPv6Address):  # interfaces are addresses too
            return self.subject.version
        return 0

    def hinders(self, other: object) -> bool:
        """Return whether another operation cannot be done because this one failed.

        Without the address of its family it would fail for the same reason, or be a route without a source address.
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

# (operations, errno) -> meaning. What is not listed is REFUSED.
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
    """Return what `errno` number means as the kernel's answer to `verb`; the first fitting row counts."""
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
    """Return the operations that turn `observed` into `desired`, in the order to do them; empty when nothing is to do.

    Args:
        link: the interface.
        desired: what should be there.
        observed: what is there.
        owned: what of it we made (routes tell by themselves).
        held: families (4, 6) to leave alone.
        peer: link-layer address of the other end, which the neighbours that we made have.
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
    # An entry with another MAC, or one that the kernel learned, has taken the place of the one we made.
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
    """Return what `uplink remove` does: link down, and the kernel drops addresses' routes and neighbours with it."""
    return (Op(Verb.LINK_DOWN, link.ifindex, link.name),)


def missing_routes(desired: Iterable[Route], observed: Iterable[Route]) -> list[Route]:
    """Return the missing routes; an existing route of the same destination counts as ours."""
    there = {way(route) for route in observed}
    return [route for route in desired if way(route) not in there]


def stale_routes(desired: Iterable[Route], observed: Iterable[Route]) -> list[Route]:
    """Routes of ours that are not wanted any more."""
    wanted = {way(route) for route in desired}
    return [route for route in observed if route.protocol == ROUTE_PROTOCOL and way(route) not in wanted]


def _wrong_tunables(desired: State, observed: State) -> Iterable[Tunable]:
    """Settings to write: those that differ, and before the link goes up all that this kernel has (rule 6)."""
    values = {tunable.path: tunable.value for tunable in observed.tunables}
    there = (tunable for tunable in desired.tunables if tunable.path in values)
    return (tunable for tunable in there if not observed.up or values[tunable.path] != tunable.value)


def still_there(owned: Owned, observed: State) -> Owned:
    """Return what of the record is there still.

    Another program or the kernel removed the others, so they are no longer ours: if they return, another program added
    them.
    """
    neighbours = {neighbour.address for neighbour in observed.neighbours}
    return Owned(owned.addresses & observed.addresses, owned.neighbours & neighbours)


def ahead(owned: Owned, ops: Iterable[Op]) -> Owned:
    """Return the owned record that has to be on disk before `ops` are applied; `still_there` puts it right afterwards.

    An agent killed in between owns too much, which does no harm, and never too little, which would leave an address
    behind for ever.
    """
    addresses, neighbours = set(owned.addresses), set(owned.neighbours)
    for op in ops:
        if op.verb is Verb.ADDRESS_ADD and isinstance(op.subject, ipaddress.IPv4Interface | ipaddress.IPv6Interface):
            addresses.add(op.subject)
        elif op.verb is Verb.NEIGHBOUR_SET and isinstance(op.subject, Neighbour):
            neighbours.add(op.subject.address)
    return Owned(frozenset(addresses), frozenset(neighbours))


def way(route: Route) -> tuple[object, ...]:
    """Return what tells routes of one interface apart; not which program made them."""
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
    """Return a route as `ip route` takes it."""
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
