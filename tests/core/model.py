# SPDX-License-Identifier: GPL-2.0-or-later
"""A model of the kernel: interfaces, and the rules of their addresses, neighbours and routes that matter to us.

`tests/netns/test_model.py` does the same to it and to the real kernel, and compares. Its rules:

- A link that goes down loses its routes, its neighbours and its IPv6 addresses; IPv4 addresses stay.
- The last IPv4 address gone takes all IPv4 routes and neighbours of the interface with it (fib_disable_ip).
- A second IPv4 address of one subnet hangs on the first: without promote_secondaries it goes when the first goes.
- IPv6 takes an address once, whatever its prefix length. IPv4 takes one a prefix length.
- A route needs the link up; one by a gateway needs a way there, or `onlink`, or a link-local gateway.
- RTM_NEWROUTE with NLM_F_APPEND adds a second route of the same destination and metric. It is refused as a duplicate
  where the gateway is the same too: in IPv6 always, in IPv4 only if the protocol is the same.
- RTM_DELROUTE takes the first that fits; metric 0 fits every metric. In IPv4 a device route has another scope than
  one by a gateway and so they do not fit each other.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Callable, Iterable
from typing import Any

from qubes_guestnet.core.dns.resolv_conf import TunnelFacts
from qubes_guestnet.core.plan import Meaning, Op, Verb, meaning
from qubes_guestnet.core.values import IPV4, IPV6, IPAddress, IPInterface, Link, Route, State, Tunable
from qubes_guestnet.errors import KernelError, Vanished

KERNEL = 2  # RTPROT_KERNEL
LINK_LOCAL = Route(ipaddress.ip_network("fe80::/64"), metric=256, protocol=KERNEL)


class Interface:
    """One interface: plain, changeable, for the tests to look into and to spoil."""

    def __init__(self, link: Link, state: State | None = None) -> None:
        self.link = link
        state = state or State()
        self.up, self.group, self.mtu = state.up, state.group, state.mtu
        self.addresses: list[IPInterface] = sorted(state.addresses, key=str)
        self.neighbours = {neighbour.address: neighbour for neighbour in state.neighbours}
        self.routes = sorted(state.routes, key=str)
        # Settings that this kernel has: none, so that no plan begins with them, unless a test says otherwise.
        self.tunables: dict[tuple[str, ...], str] = {}
        if self.up:
            self._connect()

    def state(self) -> State:
        """All that it has."""
        return State(
            self.up,
            self.group,
            frozenset(self.addresses),
            frozenset(self.neighbours.values()),
            frozenset(self.routes),
            self.mtu,
        )

    def set_up(self) -> None:
        """`ip link set up`."""
        self.up = True
        self._connect()

    def set_down(self) -> None:
        """`ip link set down`; what is set on a link that is down already stays."""
        if not self.up:
            return
        self.up = False
        self.routes.clear()
        self.neighbours.clear()
        self.addresses = [address for address in self.addresses if address.version == IPV4]

    def _connect(self) -> None:
        """The routes that the kernel makes by itself."""
        for route in (LINK_LOCAL, *map(connected, self.addresses)):
            if route is not None and route not in self.routes:
                self.routes.append(route)


class Model:
    """The kernel as `reconcile.Kernel` asks it.

    Attributes:
        interfaces: by index; take one out and it has vanished.
        promote: net.ipv4.conf.*.promote_secondaries, which systemd sets.
        ipv6: False as with net.ipv6.conf.*.disable_ipv6.
        refuse: the errno an operation gets instead of being done, 0 for none.
        before: called before each operation; may change or raise anything.
        vpn: what shows that a VPN is there.
        log: the operations asked for, in order, also those refused.
    """

    vpn = TunnelFacts()

    def __init__(self, *interfaces: Interface) -> None:
        self.interfaces = {interface.link.ifindex: interface for interface in interfaces}
        self.promote = self.ipv6 = True
        self.refuse: Callable[[Op], int] = lambda _op: 0
        self.before: Callable[[Op], object] = lambda _op: None
        self.log: list[Op] = []

    def links(self, macs: frozenset[str]) -> tuple[Link, ...]:
        """Interfaces with one of these addresses."""
        found = [interface for interface in self.interfaces.values() if interface.link.mac in macs]
        return tuple(
            Link(link.ifindex, link.name, link.mac, up=i.up, running=link.running, group=i.group, driver=link.driver)
            for i in found
            for link in [i.link]
        )

    def tunnels(self, _servers: Iterable[IPAddress], _ours: Iterable[int]) -> TunnelFacts:
        """What there is of a VPN."""
        return self.vpn

    def observe(self, link: Link, neighbours: Iterable[IPAddress], settings: Iterable[Tunable] = ()) -> State:
        """What it has now; nothing where it has vanished, as a filtered dump gives."""
        interface = self.interfaces.get(link.ifindex)
        if interface is None:
            return State(link.up, link.group)
        state = interface.state()
        wanted = set(neighbours)
        known = frozenset(neighbour for neighbour in state.neighbours if neighbour.address in wanted)
        there = [setting.path for setting in settings if setting.path in interface.tunables]
        values = frozenset(Tunable(path, interface.tunables[path]) for path in there)
        return state._replace(up=link.up, group=link.group, neighbours=known, tunables=values)

    def apply(self, op: Op) -> None:
        """Do it, or refuse it in the words of `system.netlink.rtnl`."""
        self.before(op)
        self.log.append(op)
        number = self.refuse(op) or self.do(op)
        what = meaning(op.verb, number) if number else Meaning.DONE
        if what is Meaning.VANISHED:
            raise Vanished(str(op), number)
        if what is not Meaning.DONE:
            raise KernelError(str(op), number, "", what is Meaning.RETRY)

    def ipv6_disabled(self, link: Link) -> str | None:
        """Its sysctl; the same of all interfaces."""
        return "0" if self.ipv6 else "1"

    def do(self, op: Op) -> int:
        """Do it; the errno, 0 for success."""
        interface = self.interfaces.get(op.ifindex)
        if interface is None:
            return errno.ENODEV
        return _ACTIONS[op.verb](self, interface, op.subject) or 0

    def _tunable(self, interface: Interface, tunable: Any) -> None:
        interface.tunables[tunable.path] = tunable.value

    def _group(self, interface: Interface, group: Any) -> None:
        interface.group = group

    def _mtu(self, interface: Interface, mtu: Any) -> None:
        interface.mtu = mtu

    def _up(self, interface: Interface, _nothing: Any) -> None:
        interface.set_up()

    def _down(self, interface: Interface, _nothing: Any) -> None:
        interface.set_down()

    def _address_add(self, interface: Interface, address: Any) -> int:
        if address.version == IPV6 and not self.ipv6:
            return errno.EACCES
        if any(taken(address, other) for other in interface.addresses):
            return errno.EEXIST
        interface.addresses.append(address)
        if interface.up:
            interface._connect()
        return 0

    def _address_del(self, interface: Interface, address: Any) -> int:
        if address not in interface.addresses:
            return errno.EADDRNOTAVAIL
        before = interface.addresses
        if address.version == IPV4 and not self.promote and address == primary(address, before):
            gone = [other for other in before if other.version == IPV4 and other.network == address.network]
        else:
            gone = [address]
        left = interface.addresses = [other for other in before if other not in gone]
        kept = [connected(other) for other in left]
        interface.routes = [r for r in interface.routes if r != connected(address) or r in kept]
        if address.version == IPV4 and not any(other.version == IPV4 for other in left):
            interface.routes = [route for route in interface.routes if route.destination.version != IPV4]
            interface.neighbours = {k: v for k, v in interface.neighbours.items() if k.version != IPV4}
        return 0

    def _neighbour_set(self, interface: Interface, neighbour: Any) -> int:
        if neighbour.address.version == IPV6 and not self.ipv6:
            return errno.EINVAL
        interface.neighbours[neighbour.address] = neighbour
        return 0

    def _neighbour_del(self, interface: Interface, address: Any) -> int:
        return 0 if interface.neighbours.pop(address, None) else errno.ENOENT

    def _route_add(self, interface: Interface, route: Any) -> int:
        if route.destination.version == IPV6 and not self.ipv6:
            return errno.EACCES
        if not reachable(route, interface):
            return errno.EHOSTUNREACH if route.destination.version == IPV6 else errno.ENETUNREACH
        if not interface.up:
            return errno.ENETDOWN
        if any(duplicate(route, other) for other in interface.routes):
            return errno.EEXIST
        interface.routes.append(route)
        return 0

    def _route_del(self, interface: Interface, route: Any) -> int:
        fitting = [other for other in interface.routes if fits(route, other)]
        if not fitting:
            return errno.ESRCH
        interface.routes.remove(min(fitting, key=lambda other: other.metric))
        return 0


def connected(address: IPInterface) -> Route | None:
    """The route to its subnet that the kernel makes for an address."""
    if address.version == IPV4 and address.network.prefixlen == 32:
        return None  # its host route is in the local table
    return Route(address.network, metric=0 if address.version == IPV4 else 256, protocol=KERNEL)


def taken(address: IPInterface, other: IPInterface) -> bool:
    """Whether the kernel will not have the address, for this other one."""
    return address.ip == other.ip and (address.version == IPV6 or address.network == other.network)


def primary(address: IPInterface, addresses: Iterable[IPInterface]) -> IPInterface:
    """The first IPv4 address of its subnet."""
    return next(other for other in addresses if other.network == address.network)


def reachable(route: Route, interface: Interface) -> bool:
    """Whether the kernel sees a way to the gateway."""
    if route.gateway is None or route.onlink or (route.gateway.version == IPV6 and route.gateway.is_link_local):
        return True
    if any(address.ip == route.gateway for address in interface.addresses):
        return False
    device_routes = [other.destination for other in interface.routes if other.gateway is None]
    return any(network.version == route.gateway.version and route.gateway in network for network in device_routes)


def duplicate(route: Route, other: Route) -> bool:
    """Whether the kernel answers EEXIST to an appended route, for this other one."""
    same = (route.destination, route.gateway, route.metric) == (other.destination, other.gateway, other.metric)
    if route.destination.version == IPV6:
        return same
    return same and (route.protocol, route.onlink) == (other.protocol, other.onlink)


def fits(asked: Route, other: Route) -> bool:
    """Whether the kernel deletes this other one when it is asked for `asked`."""
    if (asked.destination, asked.protocol) != (other.destination, other.protocol):
        return False
    if asked.metric not in (0, other.metric):
        return False
    if asked.gateway is None and asked.destination.version == IPV6:
        return True  # no gateway given fits any; there is no scope in IPv6
    return asked.gateway == other.gateway


_ACTIONS: dict[Verb, Callable[[Model, Interface, Any], int | None]] = {
    Verb.TUNABLE: Model._tunable,
    Verb.LINK_GROUP: Model._group,
    Verb.LINK_MTU: Model._mtu,
    Verb.LINK_UP: Model._up,
    Verb.LINK_DOWN: Model._down,
    Verb.ADDRESS_ADD: Model._address_add,
    Verb.ADDRESS_DEL: Model._address_del,
    Verb.NEIGHBOUR_SET: Model._neighbour_set,
    Verb.NEIGHBOUR_DEL: Model._neighbour_del,
    Verb.ROUTE_ADD: Model._route_add,
    Verb.ROUTE_DEL: Model._route_del,
}
