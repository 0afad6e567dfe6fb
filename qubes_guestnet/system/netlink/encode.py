# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages of the routing netlink that change something: an operation as a message.

The message classes are pyroute2's, loaded one by one (see `deferred_imports`).
"""

from __future__ import annotations

from ...core.plan import Op, Verb
from ...core.values import IPV4, IPAddress
from .. import deferred_imports
from .decode import FAMILY, IFF_UP, RT_TABLE_MAIN, RTN_UNICAST, RTNH_F_ONLINK
from .wire import HEADER

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from typing import Any

# linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h, linux/neighbour.h
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
RTM_SETLINK = 19
RTM_NEWADDR, RTM_DELADDR = 20, 21
RTM_NEWROUTE, RTM_DELROUTE = 24, 25
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
IFA_F_NODAD = 0x2
NTF_USE = 0x1
NUD_REACHABLE, NUD_STALE, NUD_DELAY, NUD_PROBE = 0x2, 0x4, 0x8, 0x10
NUD_FAILED, NUD_NOARP, NUD_PERMANENT = 0x20, 0x40, 0x80
NUD_VALID = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_NOARP | NUD_PERMANENT


def packed(message: Any, kind: int, flags: int, sequence: int) -> bytes:
    """Return a message as it goes over the socket.

    Args:
        message: of pyroute2, or what follows the header.
        kind: message type.
        flags: NLM_F_….
        sequence: number that the answer will have.
    """
    if isinstance(message, bytes):
        return HEADER.pack(HEADER.size + len(message), kind, flags, sequence, 0) + message
    message["header"] = {"type": kind, "flags": flags, "sequence_number": sequence, "pid": 0}
    message.reset()
    message.encode()
    return bytes(message.data)


def _link_class(nlmsg: Any) -> Any:
    class linkmsg(nlmsg):  # type: ignore[misc]
        """struct ifinfomsg with the attributes we need. pyroute2's ifinfmsg loads a plugin a link type: 25 ms, 3 MB."""

        prefix = "IFLA_"
        fields = (("family", "B"), ("__pad", "B"), ("ifi_type", "H"), ("index", "i"), ("flags", "I"), ("change", "I"))
        nla_map = (
            (4, "IFLA_MTU", "uint32"),
            (27, "IFLA_GROUP", "uint32"),
        )

    return linkmsg


# One of each class, and the octets that linux/rtnetlink.h says they are, behind the header.
_SAMPLES: tuple[tuple[dict[str, int], tuple[tuple[str, str | int], ...], str], ...] = (
    ({"index": 5}, (("IFLA_GROUP", 1),), "00000000050000000000000000000000" "08001b0001000000"),
    ({"family": 2, "dst_len": 32, "table": 254, "proto": 81, "scope": 253, "type": 1}, (
        ("RTA_OIF", 5), ("RTA_DST", "10.137.0.1"), ("RTA_GATEWAY", "10.137.0.2"), ("RTA_PRIORITY", 7)),
        "02200000fe51fd0100000000" "0800040005000000" "080001000a890001" "080005000a890002" "0800060007000000"),
    ({"family": 10, "prefixlen": 128, "flags": 2, "index": 5}, (("IFA_LOCAL", "fd09::1"), ("IFA_ADDRESS", "fd09::1")),
        "0a80020005000000" "14000200fd090000000000000000000000000001" "14000100fd090000000000000000000000000001"),
    ({"family": 2, "ifindex": 5, "state": 128}, (("NDA_DST", "10.137.0.1"), ("NDA_LLADDR", "fe:ff:ff:ff:ff:ff")),
        "020000000500000080000000" "080001000a890001" "0a000200feffffffffff0000"),
)  # fmt: skip


def _right(*classes: Any) -> bool:
    """Return whether pyroute2's classes pack what the kernel reads."""
    made = (_link_class(classes[0]), *classes[1:])
    return all(_octets(made_class, *sample) for made_class, sample in zip(made, _SAMPLES, strict=True))


def _octets(message_class: Any, fields: dict[str, int], attributes: Any, expected: str) -> bool:
    message = message_class()
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = list(attributes)
    return packed(message, 1, 0, 1)[HEADER.size :] == bytes.fromhex(expected)


_CLASSES = ("netlink.nlmsg", "netlink.rtnl.rtmsg.rtmsg", "netlink.rtnl.ifaddrmsg.ifaddrmsg", "netlink.rtnl.ndmsg.ndmsg")
_nlmsg, rtmsg, ifaddrmsg, ndmsg = deferred_imports.load("pyroute2", _CLASSES, _right)
linkmsg = _link_class(_nlmsg)


def neighbour_message(ifindex: int, address: IPAddress, flags: int = 0) -> Any:
    """Return an order about one entry of the neighbour cache."""
    message = ndmsg()
    message["family"], message["ifindex"], message["flags"] = FAMILY[address.version], ifindex, flags
    message["attrs"] = [("NDA_DST", str(address))]
    return message


def encode(op: Op) -> tuple[Any, int, int]:
    """Return an operation as message, message type and flags."""
    message, kind, flags = _ENCODERS[op.verb](op)
    return message, kind, flags


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
            # dom0 assigns each address once and the link has only two ends: duplicate detection would only cost a
            # second
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
