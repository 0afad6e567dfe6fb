# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages of the routing netlink: an operation or a question as a message, a reply as a value.

The message classes are pyroute2's, loaded one by one (see `lean`).
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys

from ..core.plan import Op, Verb
from ..core.values import IPV4, ROUTE_PROTOCOL, IPAddress, IPInterface, Link, Route
from . import lean
from .netlink_wire import HEADER, attributes

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/lean)
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_nlmsg: Any = lean.submodule("pyroute2.netlink").nlmsg
rtmsg: Any = lean.submodule("pyroute2.netlink.rtnl.rtmsg").rtmsg
ifaddrmsg: Any = lean.submodule("pyroute2.netlink.rtnl.ifaddrmsg").ifaddrmsg
ndmsg: Any = lean.submodule("pyroute2.netlink.rtnl.ndmsg").ndmsg

# linux/rtnetlink.h, linux/if_link.h, linux/neighbour.h
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
RTM_GETLINK, RTM_SETLINK = 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
# Not IFF_RUNNING for the carrier: a new interface has it too until the kernel has looked, up to a second later.
IFF_UP, IFF_LOWER_UP = 0x1, 0x10000
RT_TABLE_MAIN, RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RTN_UNICAST = 254, 0, 253, 1
RTNH_F_ONLINK, RTM_F_CLONED = 0x4, 0x200
IFA_F_NODAD = 0x2
NTF_USE = 0x1
NUD_REACHABLE, NUD_STALE, NUD_DELAY, NUD_PROBE = 0x2, 0x4, 0x8, 0x10
NUD_FAILED, NUD_NOARP, NUD_PERMANENT = 0x20, 0x40, 0x80
NUD_VALID = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_NOARP | NUD_PERMANENT
RTEXT_FILTER_SKIP_STATS = 0x8

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


class linkmsg(_nlmsg):  # type: ignore[misc]
    """struct ifinfomsg with the attributes we need. pyroute2's own ifinfmsg loads a plugin a link type: 25 ms, 3 MB."""

    prefix = "IFLA_"
    fields = (("family", "B"), ("__pad", "B"), ("ifi_type", "H"), ("index", "i"), ("flags", "I"), ("change", "I"))
    nla_map = (
        (1, "IFLA_ADDRESS", "l2addr"),
        (3, "IFLA_IFNAME", "asciiz"),
        (4, "IFLA_MTU", "uint32"),
        (27, "IFLA_GROUP", "uint32"),
        (29, "IFLA_EXT_MASK", "uint32"),
    )


def _number(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)


_LINK_FIELDS = struct.Struct("=BxHiII")
_LINK_READERS: dict[int, tuple[str, Any]] = {
    1: ("IFLA_ADDRESS", lambda value: value.hex(":")),
    3: ("IFLA_IFNAME", lambda value: value.rstrip(b"\0").decode("utf-8", "replace")),
    4: ("IFLA_MTU", _number),
    27: ("IFLA_GROUP", _number),
}


class LinkReply:
    """What the kernel tells of one interface, read as `linkmsg` would: pyroute2 takes 0.2 ms, and there may be 250."""

    def __init__(self, data: bytes, offset: int) -> None:
        self._data, self._offset = data, offset
        self._values: dict[str, Any] = {}

    def decode(self) -> None:
        """Read it."""
        begin = self._offset + HEADER.size
        _, _, self._values["index"], self._values["flags"], _ = _LINK_FIELDS.unpack_from(self._data, begin)
        end = self._offset + HEADER.unpack_from(self._data, self._offset)[0]
        for kind, value, stop in attributes(self._data, begin + _LINK_FIELDS.size, end):
            if kind in _LINK_READERS:
                name, read = _LINK_READERS[kind]
                self._values[name] = read(self._data[value:stop])

    def __getitem__(self, field: str) -> Any:
        return self._values[field]

    def get_attr(self, name: str) -> Any:
        """As pyroute2's."""
        return self._values.get(name)


def link_question(name: str) -> Any:
    """For the one link of this name."""
    message = linkmsg()
    message["attrs"] = [("IFLA_IFNAME", name), ("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)]
    return message


def may_be_vif(raw: bytes) -> bool:
    """Whether it is worth reading: a look at the bytes is all that interfaces of others cost."""
    return b"vif" in raw


def is_vif_name(name: str) -> bool:
    """Whether Xen names an interface so."""
    from ..core.vif import parse_name  # a provider's, and only when it looks for all of them

    try:
        parse_name(name)
    except ValueError:
        return False
    return True


def links_question() -> Any:
    """For a dump of all links, without their counters."""
    message = linkmsg()
    message["attrs"] = [("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)]
    return message


def addresses_question(ifindex: int) -> Any:
    """For a dump of the addresses of one link."""
    message = ifaddrmsg()
    message["index"] = ifindex
    return message


def routes_question(ifindex: int, family: int) -> Any:
    """For a dump of the routes of the main table out of one link."""
    message = rtmsg()
    message["family"] = family
    message["attrs"] = [("RTA_TABLE", RT_TABLE_MAIN), ("RTA_OIF", ifindex)]
    return message


def neighbour_message(ifindex: int, address: IPAddress, flags: int = 0) -> Any:
    """For one entry of the neighbour cache, as a question or an order."""
    message = ndmsg()
    message["family"], message["ifindex"], message["flags"] = FAMILY[address.version], ifindex, flags
    message["attrs"] = [("NDA_DST", str(address))]
    return message


def encode(op: Op) -> tuple[Any, int, int]:
    """An operation as message, message type and flags."""
    message, kind, flags = _ENCODERS[op.verb](op)
    return message, kind, flags


def decode(message_class: Any, data: bytes, offset: int) -> Any:
    """The message at an offset of what the socket gave."""
    message = message_class(data, offset=offset)
    message.decode()
    return message


def decode_link(reply: Any, driver: str) -> Link:
    """A link; its driver comes from ethtool and not from the message."""
    flags, name, mac = reply["flags"], reply.get_attr("IFLA_IFNAME"), reply.get_attr("IFLA_ADDRESS")
    up, running = bool(flags & IFF_UP), bool(flags & IFF_LOWER_UP)
    group, mtu = reply.get_attr("IFLA_GROUP") or 0, reply.get_attr("IFLA_MTU") or 0
    return Link(reply["index"], name, mac, up=up, running=running, group=group, driver=driver, mtu=mtu)


def decode_address(reply: Any, ifindex: int) -> IPInterface | None:
    """An address of this link; None for another link's, and for an IPv6 link-local one, which is the kernel's."""
    text = reply.get_attr("IFA_LOCAL") or reply.get_attr("IFA_ADDRESS")
    if reply["index"] != ifindex or text is None:
        return None
    address = ipaddress.ip_interface(f"{text}/{reply['prefixlen']}")
    return None if address.version != IPV4 and address.is_link_local else address


def matters(raw: bytes) -> bool:
    """Whether a route is worth decoding: ours, or to where ours go. A user's ten thousand would cost half a second.

    Args:
        raw: header and struct rtmsg, the latter with family, dst_len and protocol at 0, 1 and 5.
    """
    host = 32 if raw[16] == socket.AF_INET else 128
    return raw[21] == ROUTE_PROTOCOL or raw[17] in (0, host)


def decode_routes(reply: Any, ifindex: int) -> Iterator[Route]:
    """The unicast routes of the main table out of this link in one message.

    IPv6 shows routes of the same metric with a gateway each as one of several hops. An agent killed between the route
    by the new gateway and the removal of the old one would see neither if it were not taken apart.
    """
    if reply["type"] != RTN_UNICAST or reply["flags"] & RTM_F_CLONED or reply.get_attr("RTA_TABLE") != RT_TABLE_MAIN:
        return
    any_address = "0.0.0.0" if reply["family"] == socket.AF_INET else "::"
    destination = ipaddress.ip_network(f"{reply.get_attr('RTA_DST') or any_address}/{reply['dst_len']}")
    hops = [(hop["oif"], hop.get_attr("RTA_GATEWAY"), hop["flags"]) for hop in reply.get_attr("RTA_MULTIPATH") or ()]
    for oif, gateway, flags in hops or [(reply.get_attr("RTA_OIF"), reply.get_attr("RTA_GATEWAY"), reply["flags"])]:
        if oif == ifindex:
            yield Route(
                destination,
                ipaddress.ip_address(gateway) if gateway else None,
                onlink=bool(gateway and flags & RTNH_F_ONLINK),
                metric=reply.get_attr("RTA_PRIORITY") or 0,
                protocol=reply["proto"],
            )


def _link_message(op: Op) -> Any:
    message = linkmsg()
    message["index"] = op.ifindex
    return message


def _encode_link_number(attribute: str) -> Any:
    def encode(op: Op) -> tuple[Any, int, int]:
        message = _link_message(op)
        message["attrs"] = [(attribute, op.subject)]
        return message, RTM_SETLINK, 0

    return encode


def _encode_link_flags(flags: int) -> Any:
    def encode(op: Op) -> tuple[Any, int, int]:
        message = _link_message(op)
        message["flags"], message["change"] = flags, IFF_UP
        return message, RTM_SETLINK, 0

    return encode


def _encode_address(kind: int, flags: int) -> Any:
    def encode(op: Op) -> tuple[Any, int, int]:
        interface: Any = op.subject
        message = ifaddrmsg()
        message["family"], message["prefixlen"] = FAMILY[interface.version], interface.network.prefixlen
        message["index"] = op.ifindex
        message["attrs"] = [("IFA_LOCAL", str(interface.ip)), ("IFA_ADDRESS", str(interface.ip))]
        if interface.version != IPV4:
            # dom0 hands out each address once and nobody else is on the link: duplicate detection only costs a second
            message["flags"] = IFA_F_NODAD
        return message, kind, flags

    return encode


def _encode_neighbour_set(op: Op) -> tuple[Any, int, int]:
    neighbour: Any = op.subject
    message = neighbour_message(op.ifindex, neighbour.address)
    message["state"] = NUD_PERMANENT
    message["attrs"].append(("NDA_LLADDR", neighbour.mac))
    return message, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE


def _encode_neighbour_del(op: Op) -> tuple[Any, int, int]:
    address: Any = op.subject
    return neighbour_message(op.ifindex, address), RTM_DELNEIGH, 0


def _encode_route(kind: int, flags: int) -> Any:
    def encode(op: Op) -> tuple[Any, int, int]:
        route: Any = op.subject
        message = rtmsg()
        message["family"], message["dst_len"] = FAMILY[route.destination.version], route.destination.prefixlen
        message["table"], message["type"], message["proto"] = RT_TABLE_MAIN, RTN_UNICAST, route.protocol
        device_route = route.gateway is None and route.destination.version == IPV4
        message["scope"] = RT_SCOPE_LINK if device_route else RT_SCOPE_UNIVERSE
        message["flags"] = RTNH_F_ONLINK if route.onlink else 0
        message["attrs"] = [("RTA_OIF", op.ifindex)]
        if route.destination.prefixlen:
            message["attrs"].append(("RTA_DST", str(route.destination.network_address)))
        if route.gateway is not None:
            message["attrs"].append(("RTA_GATEWAY", str(route.gateway)))
        if route.metric:
            message["attrs"].append(("RTA_PRIORITY", route.metric))
        return message, kind, flags

    return encode


_ENCODERS: dict[Verb, Any] = {
    Verb.LINK_GROUP: _encode_link_number("IFLA_GROUP"),
    Verb.LINK_MTU: _encode_link_number("IFLA_MTU"),
    Verb.LINK_UP: _encode_link_flags(IFF_UP),
    Verb.LINK_DOWN: _encode_link_flags(0),
    Verb.ADDRESS_ADD: _encode_address(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL),
    Verb.ADDRESS_DEL: _encode_address(RTM_DELADDR, 0),
    Verb.NEIGHBOUR_SET: _encode_neighbour_set,
    Verb.NEIGHBOUR_DEL: _encode_neighbour_del,
    Verb.ROUTE_ADD: _encode_route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_APPEND),
    Verb.ROUTE_DEL: _encode_route(RTM_DELROUTE, 0),
}
