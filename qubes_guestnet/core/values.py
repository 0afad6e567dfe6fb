# SPDX-License-Identifier: GPL-2.0-or-later
"""Frozen values used by the whole program; constructors reject invalid ones.

They are NamedTuples and not dataclasses: importing `dataclasses` costs 12 ms and 0.7 MB (it pulls in `inspect`),
a third of the time budget of a cold `apply` (design, budgets).
"""

from __future__ import annotations

import ipaddress

from .namedtuple import NamedTuple

# The rtm_protocol of our routes, named `qubes` in rt_protos.d. It distinguishes our routes from a VPN's.
ROUTE_PROTOCOL = 81
GROUP_UPLINK = 1
# Xen gives every backend interface this MAC address (xl network configuration: vif MAC of the backend side).
BACKEND_MAC = "fe:ff:ff:ff:ff:ff"

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

IPV4 = 4
IPV6 = 6
DEFAULT: dict[int, IPNetwork] = {IPV4: ipaddress.IPv4Network("0.0.0.0/0"), IPV6: ipaddress.IPv6Network("::/0")}


class _LinkFields(NamedTuple):
    ifindex: int
    name: str
    mac: str
    up: bool
    running: bool
    group: int
    driver: str
    mtu: int


class Link(_LinkFields):
    """A network interface of the kernel.

    Args:
        ifindex: interface index, positive.
        name: its present name; a rename keeps the index.
        mac: lower-case, six octets with colons.
        up: administratively up (IFF_UP).
        running: has carrier (IFF_LOWER_UP).
        group: interface group (1 = uplink).
        driver: its driver as ethtool names it: "vif" on Xen, "veth" in the lab, "" if unknown.
        mtu: in bytes, 0 if unknown.
    """

    __slots__ = ()

    def __new__(
        cls,
        ifindex: int,
        name: str,
        mac: str,
        *,
        up: bool = False,
        running: bool = False,
        group: int = 0,
        driver: str = "",
        mtu: int = 0,
    ) -> Link:
        if ifindex <= 0 or not name:
            raise ValueError(f"no interface has index {ifindex} and name {name!r}")
        return super().__new__(cls, ifindex, name, mac, up, running, group, driver, mtu)


class _RouteFields(NamedTuple):
    destination: IPNetwork
    gateway: IPAddress | None
    onlink: bool
    metric: int
    protocol: int


class Route(_RouteFields):
    """A route of the main table out of one interface.

    An IPv4 route without a gateway has scope link: the kernel resolves each destination by ARP.

    Args:
        destination: network; the default route is 0.0.0.0/0 or ::/0.
        gateway: of the same family, or None for a device route.
        onlink: the gateway is reachable on the interface, whatever the other routes are.
        metric: priority, the lowest wins; the IPv6 default is 1024.
        protocol: the program that added it (rtm_protocol).
    """

    __slots__ = ()

    def __new__(
        cls,
        destination: IPNetwork,
        gateway: IPAddress | None = None,
        *,
        onlink: bool = False,
        metric: int = 0,
        protocol: int = ROUTE_PROTOCOL,
    ) -> Route:
        if gateway is not None and gateway.version != destination.version:
            raise ValueError(f"{gateway} cannot be the gateway to {destination}")
        if onlink and gateway is None:
            raise ValueError("onlink requires a gateway")
        return super().__new__(cls, destination, gateway, onlink, metric, protocol)


class _NeighbourFields(NamedTuple):
    address: IPAddress
    mac: str
    permanent: bool


class Neighbour(_NeighbourFields):
    """A neighbour entry of one interface (ARP or NDP).

    Args:
        address: the neighbour's IP address.
        mac: its link-layer address, "" if the kernel has none.
        permanent: NUD_PERMANENT, as in an administrator's entry.
    """

    __slots__ = ()

    def __new__(cls, address: IPAddress, mac: str = BACKEND_MAC, *, permanent: bool = True) -> Neighbour:
        return super().__new__(cls, address, mac, permanent)


class Tunable(NamedTuple):
    """A file below /proc/sys/net and its value.

    Args:
        path: the words of its path.
        value: its desired value.
    """

    path: tuple[str, ...]
    value: str

    def __str__(self) -> str:
        # sysctl(8): with slashes a dot in a name stays a dot.
        return f"sysctl net/{'/'.join(self.path)}={self.value}"


class State(NamedTuple):
    """The observed or the desired state of an interface.

    Args:
        up: administratively up.
        group: interface group.
        addresses: addresses with their prefix length, without the kernel's IPv6 link-local ones.
        neighbours: the relevant entries, not the whole cache.
        routes: routes of the main table out of the interface: all of ours; of others only default and host routes.
        mtu: in bytes; 0 in a desired state leaves it unchanged.
        tunables: settings of the interface below /proc/sys/net; an observed state lacks those that this kernel lacks.
    """

    up: bool = False
    group: int = 0
    addresses: frozenset[IPInterface] = frozenset()
    neighbours: frozenset[Neighbour] = frozenset()
    routes: frozenset[Route] = frozenset()
    mtu: int = 0
    tunables: frozenset[Tunable] = frozenset()


class Owned(NamedTuple):
    """Our configuration of one interface in the record in /run. Routes need no record: they have our protocol.

    Args:
        addresses: addresses that we added.
        neighbours: addresses of our permanent neighbour entries.
    """

    addresses: frozenset[IPInterface] = frozenset()
    neighbours: frozenset[IPAddress] = frozenset()
