# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's routing netlink: observe an interface, apply one operation, be woken by changes.

The message classes are pyroute2's, loaded one by one (see `lean`). The socket is our own few lines and not its
`IPRoute`: that costs 25 MB and 0.17 s, against 3 MB and 15 ms for the classes alone (design, budgets).
"""

from __future__ import annotations

import array
import errno
import fcntl
import ipaddress
import itertools
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from ..core.plan import REMEDIES, Meaning, Op, Verb, meaning
from ..core.values import IPV4, IPAddress, IPInterface, Link, Neighbour, Route, State
from ..errors import KernelError, Vanished
from . import lean

_nlmsg: Any = lean.submodule("pyroute2.netlink").nlmsg
_rtmsg: Any = lean.submodule("pyroute2.netlink.rtnl.rtmsg").rtmsg
_ifaddrmsg: Any = lean.submodule("pyroute2.netlink.rtnl.ifaddrmsg").ifaddrmsg
_ndmsg: Any = lean.submodule("pyroute2.netlink.rtnl.ndmsg").ndmsg

# linux/netlink.h, linux/rtnetlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_GETLINK, RTM_SETLINK = 16, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NETLINK_DROP_MEMBERSHIP, NETLINK_GET_STRICT_CHK = 270, 1, 2, 12
RTNLGRP_LINK, RTNLGRP_NEIGH = 1, 3
# What another program can take away from us: links, addresses, routes of both families.
RTNLGRP_WATCHED = (RTNLGRP_LINK, 5, 7, 9, 11)
IFF_UP, IFF_RUNNING = 0x1, 0x40
RT_TABLE_MAIN, RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RTN_UNICAST = 254, 0, 253, 1
RTNH_F_ONLINK, RTM_F_CLONED = 0x4, 0x200
IFA_F_NODAD = 0x2
NTF_USE = 0x1
NUD_INCOMPLETE, NUD_REACHABLE, NUD_FAILED, NUD_NOARP, NUD_PERMANENT = 0x1, 0x2, 0x20, 0x40, 0x80
NUD_VALID = NUD_REACHABLE | 0x4 | 0x8 | 0x10 | NUD_NOARP | NUD_PERMANENT  # STALE, DELAY, PROBE
RTEXT_FILTER_SKIP_STATS = 0x8
SIOCETHTOOL, ETHTOOL_GDRVINFO = 0x8946, 3  # linux/sockios.h, linux/ethtool.h

RECEIVE_BYTES = 1 << 16  # the kernel sends dumps in pieces of at most 32 KiB
ANSWER_SECONDS = 5.0  # the kernel answers within the send() itself; this only bounds the unthinkable
DUMP_TRIES = 8

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


class _linkmsg(_nlmsg):  # type: ignore[misc]
    """struct ifinfomsg with the attributes we need. pyroute2's own ifinfmsg loads a plugin a link type: 25 ms, 3 MB."""

    prefix = "IFLA_"
    fields = (("family", "B"), ("__pad", "B"), ("ifi_type", "H"), ("index", "i"), ("flags", "I"), ("change", "I"))
    nla_map = (
        (1, "IFLA_ADDRESS", "l2addr"),
        (3, "IFLA_IFNAME", "asciiz"),
        (27, "IFLA_GROUP", "uint32"),
        (29, "IFLA_EXT_MASK", "uint32"),
    )


class Kernel:
    """One request socket. Every read asks the kernel afresh; nothing is cached.

    Raises:
        KernelError: from every method, when the kernel refuses.
    """

    def __init__(self) -> None:
        self._socket = _open()
        self._socket.settimeout(ANSWER_SECONDS)
        # Linux 4.20: the kernel filters dumps, so that 250 vifs or a full routing table cost nothing.
        self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        self._sequence = itertools.count(1)

    def close(self) -> None:
        """Close the socket; the kernel state stays."""
        self._socket.close()

    def links(self, macs: frozenset[str]) -> tuple[Link, ...]:
        """The interfaces with one of these addresses.

        Args:
            macs: link-layer addresses, lower case.
        """
        message = _linkmsg()
        message["attrs"] = [("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)]
        found = []
        for reply in self._dump(message, RTM_GETLINK, _linkmsg):
            mac = reply.get_attr("IFLA_ADDRESS")
            if mac in macs:
                flags, name = reply["flags"], reply.get_attr("IFLA_IFNAME")
                up, running = bool(flags & IFF_UP), bool(flags & IFF_RUNNING)
                group = reply.get_attr("IFLA_GROUP") or 0
                found.append(Link(reply["index"], name, mac, up=up, running=running, group=group, driver=driver(name)))
        return tuple(found)

    def observe(self, link: Link, neighbours: Iterable[IPAddress]) -> State:
        """What the interface has now.

        Args:
            link: from `links`, not older than this pass.
            neighbours: the neighbour addresses of interest; the cache as a whole can hold thousands of entries, one
                for every destination of a device route.
        """
        entries = (self.neighbour(link.ifindex, address) for address in neighbours)
        return State(
            up=link.up,
            group=link.group,
            addresses=frozenset(self._addresses(link.ifindex)),
            neighbours=frozenset(entry for entry in entries if entry is not None),
            routes=frozenset(self._routes(link.ifindex)),
        )

    def neighbour(self, index: int, address: IPAddress) -> Neighbour | None:
        """One entry of the neighbour cache, or None. `mac` is "" while the kernel still asks or has given up."""
        state, mac = self.neighbour_state(index, address)
        return Neighbour(address, mac, permanent=bool(state & NUD_PERMANENT)) if state else None

    def neighbour_state(self, index: int, address: IPAddress) -> tuple[int, str]:
        """NUD state bits (0: no entry) and link-layer address of a neighbour."""
        message = _neighbour_message(index, address)
        try:
            reply = next(iter(self._request(message, RTM_GETNEIGH, 0, _ndmsg)), None)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EINVAL):
                return 0, ""
            raise
        if reply is None:
            return 0, ""
        return reply["state"], reply.get_attr("NDA_LLADDR") or ""

    def solicit(self, index: int, address: IPAddress) -> None:
        """Have the kernel resolve a neighbour now, as if a packet went there (NTF_USE)."""
        message = _neighbour_message(index, address)
        message["flags"] = NTF_USE
        self._command("neighbour use", message, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE)

    def apply(self, op: Op) -> None:
        """Carry out one operation. An answer that means "already so" is success.

        Raises:
            Vanished: the interface is gone.
            KernelError: anything else; `retryable` says whether waiting can help.
        """
        message, kind, flags = _ENCODERS[op.verb](op)
        self._command(str(op), message, kind, flags, op.verb)

    def _command(self, words: str, message: Any, kind: int, flags: int, verb: Verb = Verb.NEIGHBOUR_SET) -> None:
        try:
            self._request(message, kind, flags | NLM_F_ACK, None)
        except OSError as error:
            number = error.errno or errno.EIO
            what = meaning(verb, number)
            if what is Meaning.VANISHED:
                raise Vanished(words, number) from None
            if what is not Meaning.DONE:
                raise KernelError(words, number, REMEDIES.get(number, ""), what is Meaning.RETRY) from None

    def _addresses(self, index: int) -> Iterator[IPInterface]:
        message = _ifaddrmsg()
        message["index"] = index
        for reply in self._dump(message, RTM_GETADDR, _ifaddrmsg):
            text = reply.get_attr("IFA_LOCAL") or reply.get_attr("IFA_ADDRESS")
            if reply["index"] == index and text is not None:
                address = ipaddress.ip_interface(f"{text}/{reply['prefixlen']}")
                if address.version == IPV4 or not address.is_link_local:
                    yield address

    def _routes(self, index: int) -> Iterator[Route]:
        for family in (socket.AF_INET, socket.AF_INET6):
            message = _rtmsg()
            message["family"] = family
            message["attrs"] = [("RTA_TABLE", RT_TABLE_MAIN), ("RTA_OIF", index)]
            for reply in self._dump(message, RTM_GETROUTE, _rtmsg):
                if reply.get_attr("RTA_OIF") == index:
                    route = _decode_route(reply)
                    if route is not None:
                        yield route

    def _dump(self, message: Any, kind: int, reply_class: Any) -> list[Any]:
        for _ in range(DUMP_TRIES):
            try:
                return self._request(message, kind, NLM_F_DUMP, reply_class)
            except InterruptedError:
                continue  # the table changed under the dump; half a table must not reach the planner
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.ENODEV):
                    return []  # a kernel without IPv6 has no IPv6 routes; ENOENT: no such table yet
                raise KernelError(f"netlink dump {kind}", error.errno or 0) from None
        raise KernelError(f"netlink dump {kind}", errno.EINTR)

    def _request(self, message: Any, kind: int, flags: int, reply_class: Any) -> list[Any]:
        sequence = next(self._sequence)
        message["header"] = {"type": kind, "flags": flags | NLM_F_REQUEST, "sequence_number": sequence, "pid": 0}
        message.reset()
        message.encode()
        self._socket.send(message.data)
        replies: list[Any] = []
        interrupted = False
        while True:
            data = self._socket.recv(RECEIVE_BYTES)
            for offset, length, reply_kind, reply_flags, reply_sequence in _messages(data):
                if reply_sequence != sequence:
                    continue  # the tail of a request that was given up
                interrupted |= bool(reply_flags & NLM_F_DUMP_INTR)
                if reply_kind in (NLMSG_ERROR, NLMSG_DONE):
                    _raise_errno(data, offset, length)
                    if interrupted:
                        raise InterruptedError(errno.EINTR, "dump interrupted")
                    return replies
                replies.append(_decode(reply_class, data, offset))
                if flags & (NLM_F_DUMP | NLM_F_ACK) == 0:
                    return replies


class Events:
    """A socket that becomes readable when links, addresses or routes change. What changed is not looked at."""

    def __init__(self) -> None:
        self._socket = _open()
        self._socket.setblocking(False)
        for group in RTNLGRP_WATCHED:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)

    def fileno(self) -> int:
        """For poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def neighbours(self, wanted: bool) -> None:
        """Listen to neighbour changes too, or not. Only while a probe runs: a device route makes one a destination."""
        option = NETLINK_ADD_MEMBERSHIP if wanted else NETLINK_DROP_MEMBERSHIP
        self._socket.setsockopt(SOL_NETLINK, option, RTNLGRP_NEIGH)

    def drain(self) -> bool:
        """Eat what is there. True if there was anything; an overrun (ENOBUFS) is one more reason to look."""
        seen = False
        while True:
            try:
                if not self._socket.recv(1):
                    return seen
            except BlockingIOError:
                return seen
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError("netlink events", error.errno or 0) from None
            seen = True


def driver(name: str) -> str:
    """Driver of an interface by ETHTOOL_GDRVINFO, "" when it has none to tell.

    Not by sysfs: in a container /sys shows the host's interfaces.
    """
    info = array.array("B", struct.pack("I", ETHTOOL_GDRVINFO).ljust(196, b"\0"))
    request = struct.pack("16sP", name.encode()[:15], info.buffer_info()[0]).ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        try:
            fcntl.ioctl(control, SIOCETHTOOL, request)
        except OSError:
            return ""
    return info.tobytes()[4:36].split(b"\0", 1)[0].decode("ascii", "replace")


def _open() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    made.bind((0, 0))
    return made


def _messages(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence = struct.unpack_from("IHHI", data, offset)
        yield offset, length, kind, flags, sequence
        offset += (max(length, 16) + 3) & ~3


def _raise_errno(data: bytes, offset: int, length: int) -> None:
    """NLMSG_ERROR and NLMSG_DONE both carry the negative errno first; 0 is success."""
    number = struct.unpack_from("i", data, offset + 16)[0] if length >= 20 else 0
    if number:
        raise OSError(-number, "netlink")


def _decode(message_class: Any, data: bytes, offset: int) -> Any:
    message = message_class(data, offset=offset)
    message.decode()
    return message


def _decode_route(reply: Any) -> Route | None:
    """A route of the main table, or None for what is not a unicast route (blackholes, the cache)."""
    if reply["type"] != RTN_UNICAST or reply["flags"] & RTM_F_CLONED or reply.get_attr("RTA_TABLE") != RT_TABLE_MAIN:
        return None
    any_address = "0.0.0.0" if reply["family"] == socket.AF_INET else "::"
    destination = reply.get_attr("RTA_DST") or any_address
    gateway = reply.get_attr("RTA_GATEWAY")
    return Route(
        ipaddress.ip_network(f"{destination}/{reply['dst_len']}"),
        ipaddress.ip_address(gateway) if gateway else None,
        onlink=bool(gateway and reply["flags"] & RTNH_F_ONLINK),
        metric=reply.get_attr("RTA_PRIORITY") or 0,
        protocol=reply["proto"],
    )


def _link_message(op: Op) -> Any:
    message = _linkmsg()
    message["index"] = op.ifindex
    return message


def _encode_link_group(op: Op) -> tuple[Any, int, int]:
    message = _link_message(op)
    message["attrs"] = [("IFLA_GROUP", op.subject)]
    return message, RTM_SETLINK, 0


def _encode_link_flags(flags: int) -> Any:
    def encode(op: Op) -> tuple[Any, int, int]:
        message = _link_message(op)
        message["flags"], message["change"] = flags, IFF_UP
        return message, RTM_SETLINK, 0

    return encode


def _encode_address(kind: int, flags: int) -> Any:
    def encode(op: Op) -> tuple[Any, int, int]:
        interface: Any = op.subject
        message = _ifaddrmsg()
        message["family"], message["prefixlen"] = FAMILY[interface.version], interface.network.prefixlen
        message["index"] = op.ifindex
        message["attrs"] = [("IFA_LOCAL", str(interface.ip)), ("IFA_ADDRESS", str(interface.ip))]
        if interface.version != IPV4:
            # dom0 hands out each address once and nobody else is on the link: duplicate detection only costs a second
            message["flags"] = IFA_F_NODAD
        return message, kind, flags

    return encode


def _neighbour_message(index: int, address: IPAddress) -> Any:
    message = _ndmsg()
    message["family"], message["ifindex"] = FAMILY[address.version], index
    message["attrs"] = [("NDA_DST", str(address))]
    return message


def _encode_neighbour_set(op: Op) -> tuple[Any, int, int]:
    neighbour: Any = op.subject
    message = _neighbour_message(op.ifindex, neighbour.address)
    message["state"] = NUD_PERMANENT
    message["attrs"].append(("NDA_LLADDR", neighbour.mac))
    return message, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE


def _encode_neighbour_del(op: Op) -> tuple[Any, int, int]:
    address: Any = op.subject
    return _neighbour_message(op.ifindex, address), RTM_DELNEIGH, 0


def _encode_route(kind: int, flags: int) -> Any:
    def encode(op: Op) -> tuple[Any, int, int]:
        route: Any = op.subject
        message = _rtmsg()
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
    Verb.LINK_GROUP: _encode_link_group,
    Verb.LINK_UP: _encode_link_flags(IFF_UP),
    Verb.LINK_DOWN: _encode_link_flags(0),
    Verb.ADDRESS_ADD: _encode_address(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL),
    Verb.ADDRESS_DEL: _encode_address(RTM_DELADDR, 0),
    Verb.NEIGHBOUR_SET: _encode_neighbour_set,
    Verb.NEIGHBOUR_DEL: _encode_neighbour_del,
    Verb.ROUTE_ADD: _encode_route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_APPEND),
    Verb.ROUTE_DEL: _encode_route(RTM_DELROUTE, 0),
}
