# SPDX-License-Identifier: GPL-2.0-or-later
"""Convert the settings of a qube's own interface to the desired state of the kernel."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from ..enumeration import Enum
from ..namedtuple import NamedTuple
from ..settings import Family, UplinkSettings
from ..values import DEFAULT, GROUP_UPLINK, IPV4, IPV6, IPInterface, Link, Neighbour, Route, State, Tunable

# Drivers of interfaces that dom0 may refer to, the best first. A passed-through network card or the emulated card of an
# HVM can have the same MAC address and must never get the qube's IP (#1882); a VLAN or bridge on top of eth0 inherits
# its MAC address. In the lab and in a container eth0 is a veth.
DRIVERS = ("vif", "veth")

# IPv6: one more than the kernel's default metric (IP6_RT_PRIO_USER, 1024). Two IPv6 routes with the same metric, each
# with a gateway, become one multipath route: half of the connections would bypass a VPN.
METRIC_BASE = {IPV4: 0, IPV6: 1025}
# By default the kernel accepts these from any peer on the link: a provider must not give a qube any address, route or
# neighbour other than dom0's (behaviour B116).
_UNASKED = (
    ("ipv6", "accept_ra", "0"),
    ("ipv6", "accept_redirects", "0"),
    ("ipv6", "drop_unsolicited_na", "1"),
    ("ipv4", "accept_redirects", "0"),
    ("ipv4", "drop_gratuitous_arp", "1"),
)
# The default route of a second uplink needs another metric: IPv4 would keep only one of two equal routes.
METRIC_STEP = 100


class Style(Enum):
    """The style of the IPv4 default route: a device route (as in the reference document), or by the gateway."""

    DEVICE = "device"
    GATEWAY = "gateway"


class Flags(NamedTuple):
    """qvm-service flags: files in /run/qubes-service.

    Args:
        disable_default_route: no default route; the route to the gateway stays.
        disable_dns_server: no nameserver is written.
        gateway_route: style `gateway` (flag guestnet-gateway-route).
    """

    disable_default_route: bool = False
    disable_dns_server: bool = False
    gateway_route: bool = False


class StyleChoice(NamedTuple):
    """The default-route style in use and, for status and journal, why."""

    style: Style
    reason: str


def choose_link(links: Iterable[Link], mac: str) -> Link | None:
    """Return the interface dom0 manages, by address and driver, whatever its name (#7284: eth0 became enX0).

    Args:
        links: all interfaces, each with its driver where the address fits.
        mac: the address from QubesDB, lower case.

    Returns:
        The link, or None while there is none.
    """
    fitting = [link for link in links if link.mac == mac and link.driver in DRIVERS]
    return min(fitting, key=lambda link: (DRIVERS.index(link.driver), link.ifindex), default=None)


SMALLEST_MTU6 = 1280  # RFC 8200; below it the kernel has no IPv6 on an interface


def ipv6_missing(disabled: str | None, mtu: int, *, networkmanager: bool = False) -> str:
    """Return why IPv6 is impossible on an interface and thus left out, as its owner wishes (B129); "" if possible.

    Args:
        disabled: net.ipv6.conf.IFACE.disable_ipv6, None if there is no such setting.
        mtu: MTU of the interface, in bytes; 0 if unknown.
        networkmanager: NetworkManager configures the interface, and sets that sysctl itself: first to 1, finally to 0.
    """
    if disabled is None:
        return (
            f"its MTU is {mtu}, below {SMALLEST_MTU6}" if 0 < mtu < SMALLEST_MTU6 else "the kernel does not support it"
        )
    return "" if networkmanager or disabled == "0" else "sysctl disable_ipv6"


def choose_style(flags: Flags, configured: Style | None, fallback: str) -> StyleChoice:
    """Return the style `gateway` if the flag, the file or a fall-back requires it, else `device`.

    Args:
        flags: flags of this qube.
        configured: style from guestnet.toml, None if not set.
        fallback: the reason of the fall-back on this interface, "" for none.
    """
    if flags.gateway_route:
        return StyleChoice(Style.GATEWAY, "service flag guestnet-gateway-route")
    if configured is Style.GATEWAY:
        return StyleChoice(Style.GATEWAY, "guestnet.toml")
    if fallback:
        return StyleChoice(Style.GATEWAY, f"fall-back: {fallback}")
    return StyleChoice(Style.DEVICE, "guestnet.toml" if configured else "default")


def tunables(name: str) -> frozenset[Tunable]:
    """Return the settings of an uplink that must be written before its link goes up.

    Args:
        name: of the interface.
    """
    return frozenset(Tunable((family, "conf", name, key), value) for family, key, value in _UNASKED)


def desired(settings: UplinkSettings, style: Style, flags: Flags, rank: int = 0, mtu: int = 0) -> State:
    """Return the desired state for the settings. It has nothing of a held family, which `plan` leaves unchanged.

    Args:
        settings: validated settings of this interface.
        style: default-route style of IPv4. IPv6 always goes by the gateway: NDP has no catch-all proxy.
        flags: of this qube.
        rank: 0 for the interface of /qubes-mac, 1 and up for further ones.
        mtu: in bytes, 0 to leave it unchanged.
    """
    addresses: set[IPInterface] = set()
    neighbours: set[Neighbour] = set()
    routes: set[Route] = set()
    for family in (settings.ipv4, settings.ipv6):
        if family is None:
            continue
        addresses.add(family.interface)
        if family.gateway is not None and not settings.custom:
            neighbours.add(Neighbour(family.gateway))
        routes.update(_routes(family, settings, style, flags, rank))
    return State(bool(addresses), GROUP_UPLINK, frozenset(addresses), frozenset(neighbours), frozenset(routes), mtu)


def device_route(family: Family, settings: UplinkSettings, style: Style, rank: int) -> bool:
    """Return whether the default route of this family is a device route.

    It needs no gateway (B139), but a peer that answers for others, as Qubes providers do. A further interface without
    a gateway, or one whose peer is no such provider (`custom`), is not where everything goes.
    """
    asks = family.gateway is not None or not (settings.custom or rank)
    return family.interface.version == IPV4 and style is Style.DEVICE and asks


def _routes(family: Family, settings: UplinkSettings, style: Style, flags: Flags, rank: int) -> Iterable[Route]:
    version, gateway = family.interface.version, family.gateway
    metric = METRIC_BASE[version] + METRIC_STEP * rank
    by_device = device_route(family, settings, style, rank)
    if gateway is not None and (not by_device or flags.disable_default_route) and not gateway.is_link_local:
        # Scope link, so that a VPN's plain `via GATEWAY` route is accepted (#7123). Link-local is on every link anyway.
        yield Route(ipaddress.ip_network(gateway), metric=metric)
    if flags.disable_default_route:
        return
    if by_device:
        yield Route(DEFAULT[version], metric=metric)
    elif gateway is not None:  # a qube may give IPv6 to others and have no gateway itself (core-agent-linux af476ef0)
        yield Route(DEFAULT[version], gateway, onlink=True, metric=metric)
