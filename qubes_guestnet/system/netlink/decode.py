# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests of the routing netlink about an interface, and the replies as values.

pyroute2 is only used for changes (`encode`): observing an interface takes six requests, for which it needs
0.5 ms, and this module 0.1 ms. `vif online` observes twice within its 10 ms.
"""

from __future__ import annotations

import ipaddress
import struct
import sys

from ...core.values import DEFAULT, IPV4, IPV6, ROUTE_PROTOCOL, IPAddress, IPInterface, Link, Route
from .. import plain_socket as socket
from .wire import HEADER, attribute, attributes

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    _Readers = dict[int, tuple[str, Callable[[bytes], Any]]]

# linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h
RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, RTM_GETNEIGH = 18, 22, 26, 30
_IFINFOMSG, _IFADDRMSG = struct.Struct("=BxHiII"), struct.Struct("=BBBBI")
_RTMSG, _RTNEXTHOP, _NDMSG = struct.Struct("=BBBBBBBBI"), struct.Struct("=HBxi"), struct.Struct("=BxxxiHBB")
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_GROUP, IFLA_EXT_MASK = 1, 3, 4, 27, 29
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_SRC, RTA_IIF, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_MULTIPATH, RTA_TABLE = (
    1, 2, 3, 4, 5, 6, 7, 9, 15,
)  # fmt: skip
NDA_DST, NDA_LLADDR = 1, 2
# Not IFF_RUNNING for the carrier: a new interface also has it until the kernel updates it, up to a second later.
IFF_UP, IFF_LOWER_UP = 0x1, 0x10000
RT_TABLE_MAIN, RTN_UNICAST = 254, 1
RTNH_F_ONLINK, RTM_F_CLONED = 0x4, 0x200
RTEXT_FILTER_SKIP_STATS = 0x8

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

_UINT32 = struct.Struct("=I")
_WITHOUT_COUNTERS = attribute(IFLA_EXT_MASK, _UINT32.pack(RTEXT_FILTER_SKIP_STATS))


# --- questions: what follows the header ----------------------------------------------------------------------------


def link_question(name: str) -> bytes:
    """For the one link of this name."""
    return _IFINFOMSG.pack(0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, name.encode() + b"\0") + _WITHOUT_COUNTERS


def links_question() -> bytes:
    """For a dump of all links, without their counters."""
    return _IFINFOMSG.pack(0, 0, 0, 0, 0) + _WITHOUT_COUNTERS


def addresses_question(ifindex: int) -> bytes:
    """For a dump of the addresses of one link."""
    return _IFADDRMSG.pack(0, 0, 0, 0, ifindex)


def routes_question(ifindex: int, family: int) -> bytes:
    """For a dump of the routes of the main table out of one link."""
    filters = ((RTA_TABLE, RT_TABLE_MAIN), (RTA_OIF, ifindex))
    return _RTMSG.pack(family, *bytes(8)) + b"".join(attribute(kind, _UINT32.pack(value)) for kind, value in filters)


def way_question(address: IPAddress, source: IPAddress | None = None, ifindex: int = 0) -> bytes:
    """For the route that a packet to this address would take, by all rules and tables.

    Args:
        address: its destination.
        source: its sender; None for this qube.
        ifindex: where it came in; 0 for nowhere.
    """
    length = address.max_prefixlen
    question = _RTMSG.pack(FAMILY[address.version], length, length if source is not None else 0, *bytes(6))
    question += attribute(RTA_DST, address.packed)
    if source is not None:
        question += attribute(RTA_SRC, source.packed)
    return question + (attribute(RTA_IIF, _UINT32.pack(ifindex)) if ifindex else b"")


def neighbour_question(ifindex: int, address: IPAddress) -> bytes:
    """For one entry of the neighbour cache."""
    return _NDMSG.pack(FAMILY[address.version], ifindex, 0, 0, 0) + attribute(NDA_DST, address.packed)


# --- answers -------------------------------------------------------------------------------------------------------


def _number(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)


def _mac(value: bytes) -> str:
    return value.hex(":")


def _name(value: bytes) -> str:
    return value.rstrip(b"\0").decode("utf-8", "replace")


def _hops(value: bytes) -> list[tuple[int, IPAddress | None, int]]:
    """Return link, gateway and flags of each hop."""
    found, offset = [], 0
    while offset + _RTNEXTHOP.size <= len(value):
        length, flags, oif = _RTNEXTHOP.unpack_from(value, offset)
        own = attributes(value, offset + _RTNEXTHOP.size, offset + length)
        gateways = [ipaddress.ip_address(value[begin:end]) for kind, begin, end in own if kind == RTA_GATEWAY]
        found.append((oif, gateways[0] if gateways else None, flags))
        offset += (max(length, _RTNEXTHOP.size) + 3) & ~3
    return found


_LINK_READERS: _Readers = {
    IFLA_ADDRESS: ("IFLA_ADDRESS", _mac),
    IFLA_IFNAME: ("IFLA_IFNAME", _name),
    IFLA_MTU: ("IFLA_MTU", _number),
    IFLA_GROUP: ("IFLA_GROUP", _number),
}
_ADDRESS_READERS: _Readers = {
    IFA_ADDRESS: ("IFA_ADDRESS", ipaddress.ip_address),
    IFA_LOCAL: ("IFA_LOCAL", ipaddress.ip_address),
}
_ROUTE_READERS: _Readers = {
    RTA_DST: ("RTA_DST", ipaddress.ip_address),
    RTA_OIF: ("RTA_OIF", _number),
    RTA_GATEWAY: ("RTA_GATEWAY", ipaddress.ip_address),
    RTA_PRIORITY: ("RTA_PRIORITY", _number),
    RTA_PREFSRC: ("RTA_PREFSRC", ipaddress.ip_address),
    RTA_MULTIPATH: ("RTA_MULTIPATH", _hops),
    RTA_TABLE: ("RTA_TABLE", _number),
}
_NEIGHBOUR_READERS: _Readers = {NDA_LLADDR: ("NDA_LLADDR", _mac)}


class _Reply:
    """A reply of the kernel, parsed by `decode`, with the interface of pyroute2's messages."""

    fixed: struct.Struct
    fields: tuple[str, ...]
    readers: _Readers

    def __init__(self, data: bytes, offset: int) -> None:
        self._data, self._offset = data, offset
        self._values: dict[str, Any] = {}

    def decode(self) -> None:
        """Parse it."""
        begin = self._offset + HEADER.size
        self._values.update(zip(self.fields, self.fixed.unpack_from(self._data, begin), strict=True))
        end = self._offset + HEADER.unpack_from(self._data, self._offset)[0]
        for kind, value, stop in attributes(self._data, begin + self.fixed.size, end):
            if kind in self.readers:
                name, read = self.readers[kind]
                self._values[name] = read(self._data[value:stop])

    def __getitem__(self, field: str) -> Any:
        return self._values[field]

    def get_attr(self, name: str) -> Any:
        """Return an attribute, or None."""
        return self._values.get(name)


class LinkReply(_Reply):
    """A reply about one interface."""

    fixed, fields = _IFINFOMSG, ("family", "ifi_type", "index", "flags", "change")
    readers = _LINK_READERS


class AddressReply(_Reply):
    """A reply about one address."""

    fixed, fields = _IFADDRMSG, ("family", "prefixlen", "flags", "scope", "index")
    readers = _ADDRESS_READERS


class RouteReply(_Reply):
    """A reply about one route."""

    fixed = _RTMSG
    fields = ("family", "dst_len", "src_len", "tos", "table", "proto", "scope", "type", "flags")
    readers = _ROUTE_READERS


class NeighbourReply(_Reply):
    """A reply about one neighbour."""

    fixed, fields = _NDMSG, ("family", "ifindex", "state", "flags", "ndm_type")
    readers = _NEIGHBOUR_READERS


def may_be_vif(raw: bytes) -> bool:
    """Return whether a message may be about a vif, by its bytes alone, so that other interfaces cost little."""
    return b"vif" in raw


def is_vif_name(name: str) -> bool:
    """Return whether Xen names an interface so."""
    from ...core.vif_name import parse_name  # a provider's, and only when it looks for all of them

    try:
        parse_name(name)
    except ValueError:
        return False
    return True


def decode_link(reply: Any, driver: str) -> Link:
    """Return a link; its driver comes from ethtool and not from the message."""
    flags, name, mac = reply["flags"], reply.get_attr("IFLA_IFNAME"), reply.get_attr("IFLA_ADDRESS")
    up, running = bool(flags & IFF_UP), bool(flags & IFF_LOWER_UP)
    group, mtu = reply.get_attr("IFLA_GROUP") or 0, reply.get_attr("IFLA_MTU") or 0
    return Link(reply["index"], name, mac, up=up, running=running, group=group, driver=driver, mtu=mtu)


def decode_address(reply: Any, ifindex: int) -> IPInterface | None:
    """Return an address of this link; None for another link's, and for IPv6 link-local ones, which the kernel adds."""
    found = reply.get_attr("IFA_LOCAL") or reply.get_attr("IFA_ADDRESS")
    if reply["index"] != ifindex or found is None:
        return None
    if found.version != IPV4 and found.is_link_local:
        return None
    return ipaddress.ip_interface((found, reply["prefixlen"]))


def matters(raw: bytes) -> bool:
    """Return whether to decode a route: ours, or one of the same destination. Ten thousand others would cost half a
    second.

    Args:
        raw: header and struct rtmsg, the latter with family, dst_len and protocol at 0, 1 and 5.
    """
    host = 32 if raw[16] == socket.AF_INET else 128
    return raw[21] == ROUTE_PROTOCOL or raw[17] in (0, host)


def decode_routes(reply: Any, ifindex: int) -> Iterator[Route]:
    """Yield the unicast routes of the main table out of this link in one message.

    IPv6 shows routes of the same metric with a gateway each as one of several hops. An agent killed between the route
    by the new gateway and the removal of the old one would see neither if it were not taken apart.
    """
    if reply["type"] != RTN_UNICAST or reply["flags"] & RTM_F_CLONED or reply.get_attr("RTA_TABLE") != RT_TABLE_MAIN:
        return
    nowhere = DEFAULT[IPV4 if reply["family"] == socket.AF_INET else IPV6].network_address
    destination = ipaddress.ip_network((reply.get_attr("RTA_DST") or nowhere, reply["dst_len"]))
    one = (reply.get_attr("RTA_OIF"), reply.get_attr("RTA_GATEWAY"), reply["flags"])
    for oif, gateway, flags in reply.get_attr("RTA_MULTIPATH") or (one,):
        if oif == ifindex:
            yield Route(
                destination,
                gateway,
                onlink=bool(gateway and flags & RTNH_F_ONLINK),
                metric=reply.get_attr("RTA_PRIORITY") or 0,
                protocol=reply["proto"],
            )
