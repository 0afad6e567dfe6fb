# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's routing netlink: observe an interface, apply one operation, be woken by changes.

The socket is our own few lines and not pyroute2's `IPRoute`: that costs 25 MB and 0.17 s, against 3 MB and 15 ms for
its message classes alone (design, budgets).
"""

from __future__ import annotations

import array
import errno
import fcntl
import itertools
import struct
from collections.abc import Callable, Iterable, Iterator

from ...core.plan import REMEDIES, Meaning, Op, Verb, meaning
from ...core.values import IPAddress, IPInterface, Link, Neighbour, Route, State, Tunable
from ...errors import KernelError, Vanished
from .. import plain_socket as socket
from .. import procfs_sysctl
from . import decode, encode, wire

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from typing import Any

    from ...core.dns.resolv_conf import TunnelFacts

# linux/rtnetlink.h
RTNLGRP_LINK, RTNLGRP_NEIGH = 1, 3
# What another program can take away from us: links, addresses, routes of both families.
RTNLGRP_WATCHED = (RTNLGRP_LINK, 5, 7, 9, 11, 24, 25)
# RTM_NEWLINK, RTM_DELLINK, and the same of addresses and routes
_CHANGES = {16: "link", 17: "link", 20: "address", 21: "address", 24: "route", 25: "route"}
SIOCGIFINDEX, SIOCETHTOOL, ETHTOOL_GDRVINFO = 0x8933, 0x8946, 3  # linux/sockios.h, linux/ethtool.h

DUMP_TRIES = 8
# Answers to the question for a route: none, one that is unreachable, prohibited or a black hole, no such family.
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ESRCH, errno.EAFNOSUPPORT)
VIF_DRIVERS = ("vif", "veth")  # the latter in the lab

_Fits = Callable[[bytes], bool]


class Kernel:
    """One request socket. Every read asks the kernel afresh; nothing is cached.

    Raises:
        KernelError: from every method, when the kernel refuses.
    """

    def __init__(self) -> None:
        try:
            self._socket = wire.opened(socket.NETLINK_ROUTE)
            self._socket.settimeout(wire.ANSWER_SECONDS)
            # Linux 4.20: the kernel filters dumps, so that 250 vifs or a full routing table cost nothing.
            self._socket.setsockopt(wire.SOL_NETLINK, wire.NETLINK_GET_STRICT_CHK, 1)
        except OSError as error:
            raise KernelError("netlink socket", error.errno or errno.EIO) from None
        self._sequence = itertools.count(1)

    def close(self) -> None:
        """Close the socket; the kernel state stays."""
        self._socket.close()

    def links(self, macs: frozenset[str]) -> tuple[Link, ...]:
        """Return the interfaces with one of these addresses.

        Args:
            macs: link-layer addresses, lower case.
        """
        octets = [bytes.fromhex(mac.replace(":", "")) for mac in macs]
        for _ in range(DUMP_TRIES):
            # The 250 other interfaces of a provider are not decoded.
            replies = self._dump(
                decode.links_question(), decode.RTM_GETLINK, decode.LinkReply, lambda raw: _holds(raw, octets)
            )
            fitting = [reply for reply in replies if reply.get_attr("IFLA_ADDRESS") in macs]
            links = tuple(decode.decode_link(reply, driver(reply.get_attr("IFLA_IFNAME"))) for reply in fitting)
            # A driver is asked for by name. Renamed meanwhile, the interface would seem to have none, and so to be
            # gone, and with it the record of what we made on it.
            if all(_index(link.name) == link.ifindex for link in links):
                return links
        raise KernelError("netlink links", errno.EAGAIN, retryable=True)

    def link_named(self, name: str) -> Link | None:
        """Return the interface of this name, or None; one question, however many others there are.

        Args:
            name: at most 15 characters.
        """
        for _ in range(DUMP_TRIES):
            try:
                (reply,) = self._request(decode.link_question(name), decode.RTM_GETLINK, 0, decode.LinkReply)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return None
                raise KernelError(f"netlink link {name}", error.errno or errno.EIO) from None
            link = decode.decode_link(reply, driver(name))
            if link.name != name:
                return None  # it is the other name (IFLA_ALT_IFNAME) of one that is called differently
            if _index(name) == link.ifindex:  # else the driver may be another's, see `links`
                return link
        raise KernelError(f"netlink link {name}", errno.EAGAIN, retryable=True)

    def vifs(self) -> tuple[Link, ...]:
        """Return the vifs: named as Xen names them, and made by Xen or, in the lab, a veth."""
        for _ in range(DUMP_TRIES):
            replies = self._dump(decode.links_question(), decode.RTM_GETLINK, decode.LinkReply, decode.may_be_vif)
            names = [(reply, reply.get_attr("IFLA_IFNAME")) for reply in replies]
            links = [decode.decode_link(reply, driver(name)) for reply, name in names if decode.is_vif_name(name)]
            if all(_index(link.name) == link.ifindex for link in links):
                return tuple(link for link in links if link.driver in VIF_DRIVERS)
        raise KernelError("netlink vifs", errno.EAGAIN, retryable=True)

    def observe(self, link: Link, neighbours: Iterable[IPAddress], settings: Iterable[Tunable] = ()) -> State:
        """Return what the interface has now.

        Args:
            link: from `links`, not older than this pass.
            neighbours: the neighbour addresses of interest; the cache as a whole can hold thousands of entries, one
                for every destination of a device route.
            settings: of the interface, whose values are asked for.

        Raises:
            FileError: a setting cannot be read.
        """
        entries = (self.neighbour(link.ifindex, address) for address in neighbours)
        return State(
            up=link.up,
            group=link.group,
            addresses=frozenset(self._addresses(link.ifindex)),
            neighbours=frozenset(entry for entry in entries if entry is not None),
            routes=frozenset(self._routes(link.ifindex)),
            mtu=link.mtu,
            tunables=frozenset(_as_it_is(settings)),
        )

    def neighbour(self, ifindex: int, address: IPAddress) -> Neighbour | None:
        """Return one entry of the neighbour cache, or None. `mac` is "" while the kernel still asks or has given up."""
        state, mac = self.neighbour_state(ifindex, address)
        return Neighbour(address, mac, permanent=bool(state & encode.NUD_PERMANENT)) if state else None

    def neighbour_state(self, ifindex: int, address: IPAddress) -> tuple[int, str]:
        """NUD state bits (0: no entry) and link-layer address of a neighbour."""
        question = decode.neighbour_question(ifindex, address)
        try:
            reply = next(iter(self._request(question, decode.RTM_GETNEIGH, 0, decode.NeighbourReply)), None)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EINVAL):
                return 0, ""
            raise KernelError(f"netlink neighbour {address}", error.errno or errno.EIO) from None
        if reply is None:
            return 0, ""
        return reply["state"], reply.get_attr("NDA_LLADDR") or ""

    def way(self, address: IPAddress, source: IPAddress | None = None, ifindex: int = 0) -> int:
        """Return the interface index of the route to this address; 0 if there is no route.

        Args:
            address: the destination.
            source: of a packet that is forwarded, or that is for this qube; None for one that this qube sends.
            ifindex: where it came in. The kernel has no route for it if that interface forwards nothing.
        """
        reply = self._route(decode.way_question(address, source, ifindex), address)
        return reply.get_attr("RTA_OIF") or 0 if reply is not None else 0

    def own_address(self, address: IPAddress) -> IPAddress | None:
        """Return the address that this qube has towards another one; None if there is no route."""
        reply = self._route(decode.way_question(address), address)
        found: IPAddress | None = reply.get_attr("RTA_PREFSRC") if reply is not None else None
        return found

    def _route(self, question: bytes, address: IPAddress) -> Any:
        try:
            replies = self._request(question, decode.RTM_GETROUTE, 0, decode.RouteReply)
        except OSError as error:
            if error.errno in _NO_WAY:
                return None
            raise KernelError(f"ip route get {address}", error.errno or errno.EIO) from None
        return replies[0] if replies else None

    def tunnels(self, servers: Iterable[IPAddress], ours: Iterable[int]) -> TunnelFacts:
        """Return the facts that may indicate a VPN, see `core.dns.resolv_conf`.

        Args:
            servers: whose way out counts.
            ours: interface indexes of this qube's uplinks.
        """
        from .. import tunnels  # only where another program writes resolv.conf

        return tunnels.look(self.way, servers, frozenset(ours))

    def ipv6_disabled(self, link: Link) -> str | None:
        """Return its sysctl disable_ipv6, "0" or "1"; None when there is no IPv6 on it, or in this kernel."""
        return procfs_sysctl.read(("ipv6", "conf", link.name, "disable_ipv6"))

    def solicit(self, ifindex: int, address: IPAddress) -> None:
        """Make the kernel resolve a neighbour now, as for a packet to it (NTF_USE)."""
        message = encode.neighbour_message(ifindex, address, encode.NTF_USE)
        self._command("neighbour use", message, encode.RTM_NEWNEIGH, encode.NLM_F_CREATE | encode.NLM_F_REPLACE)

    def solicit_again(self, ifindex: int, address: IPAddress) -> None:
        """Make the kernel repeat its request now; packets that wait for the answer stay queued.

        A deletion of the unresolved entry would have these packets refused, as by an unreachable host: 2 of 61 pings at
        a restart of the agent in an upgrade. A fresh state (NUD_NONE, 0) has the next use send a request at once.
        """
        message = encode.neighbour_message(ifindex, address)
        self._command(f"neighbour change {address} nud none", message, encode.RTM_NEWNEIGH, encode.NLM_F_REPLACE)
        self.solicit(ifindex, address)

    def forget(self, ifindex: int, address: IPAddress) -> None:
        """Drop what the kernel has learned about a neighbour; the next packet to it has to ask."""
        message = encode.neighbour_message(ifindex, address)
        self._command(f"neighbour del {address}", message, encode.RTM_DELNEIGH, 0, Verb.NEIGHBOUR_DEL)

    def apply(self, op: Op) -> None:
        """Carry out one operation. An answer that means "already so" is success.

        Raises:
            Vanished: the interface is gone.
            KernelError: anything else; `retryable` says whether waiting can help.
            FileError: a setting cannot be written.
        """
        if isinstance(op.subject, Tunable):
            procfs_sysctl.write(op.subject.path, op.subject.value)
            return
        message, kind, flags = encode.encode(op)
        self._command(str(op), message, kind, flags, op.verb)

    def _command(self, words: str, message: Any, kind: int, flags: int, verb: Verb = Verb.NEIGHBOUR_SET) -> None:
        try:
            self._request(message, kind, flags | wire.NLM_F_ACK, None)
        except OSError as error:
            number = error.errno or errno.EIO
            what = meaning(verb, number)
            if what is Meaning.VANISHED:
                raise Vanished(words, number) from None
            if what is not Meaning.DONE:
                raise KernelError(words, number, REMEDIES.get(number, ""), what is Meaning.RETRY) from None

    def _addresses(self, ifindex: int) -> Iterator[IPInterface]:
        for reply in self._dump(decode.addresses_question(ifindex), decode.RTM_GETADDR, decode.AddressReply):
            address = decode.decode_address(reply, ifindex)
            if address is not None:
                yield address

    def _routes(self, ifindex: int) -> Iterator[Route]:
        for family in (socket.AF_INET, socket.AF_INET6):
            question = decode.routes_question(ifindex, family)
            for reply in self._dump(question, decode.RTM_GETROUTE, decode.RouteReply, decode.matters):
                yield from decode.decode_routes(reply, ifindex)

    def _dump(self, message: Any, kind: int, reply_class: Any, fits: _Fits = lambda _raw: True) -> list[Any]:
        for _ in range(DUMP_TRIES):
            try:
                return self._request(message, kind, wire.NLM_F_DUMP, reply_class, fits)
            except InterruptedError:
                continue  # the table changed under the dump; half a table must not reach the planner
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.ENODEV):
                    return []  # a kernel without IPv6 has no IPv6 routes; ENOENT: no such table yet
                raise KernelError(f"netlink dump {kind}", error.errno or errno.EIO) from None
        raise KernelError(f"netlink dump {kind}", errno.EINTR)

    def _request(
        self,
        message: Any,
        kind: int,
        flags: int,
        reply_class: Any,
        fits: _Fits = lambda _raw: True,
    ) -> list[Any]:
        sequence = next(self._sequence)
        self._socket.send(encode.packed(message, kind, flags | wire.NLM_F_REQUEST, sequence))
        replies: list[Any] = []
        interrupted = False
        while True:
            data = self._socket.recv(wire.RECEIVE_BYTES)
            for offset, length, reply_kind, reply_flags, reply_sequence in wire.messages(data):
                if reply_sequence != sequence:
                    continue  # the tail of a request that was given up
                interrupted |= bool(reply_flags & wire.NLM_F_DUMP_INTR)
                if reply_kind in (wire.NLMSG_ERROR, wire.NLMSG_DONE):
                    wire.raise_errno(data, offset, length)
                    if interrupted:
                        raise InterruptedError(errno.EINTR, "dump interrupted")
                    return replies
                if fits(data[offset : offset + length]):
                    reply = reply_class(data, offset)
                    reply.decode()
                    replies.append(reply)
                if flags & (wire.NLM_F_DUMP | wire.NLM_F_ACK) == 0:
                    return replies


class Events(wire.Listener):
    """A socket that becomes readable when links, addresses or routes change."""

    def __init__(self) -> None:
        super().__init__(socket.NETLINK_ROUTE, RTNLGRP_WATCHED, "netlink events")

    def changed(self) -> frozenset[str]:
        """Return the kinds of changes since the last call: "link", "address", "route"."""
        kinds, self.kinds = self.kinds, set()
        return frozenset(_CHANGES[kind] for kind in kinds if kind in _CHANGES)

    def neighbours(self, wanted: bool) -> None:
        """Listen to neighbour changes too, or not. Only while a probe runs: a device route makes one a destination.

        Raises:
            KernelError: the kernel refuses.
        """
        option = wire.NETLINK_ADD_MEMBERSHIP if wanted else wire.NETLINK_DROP_MEMBERSHIP
        try:
            self._socket.setsockopt(wire.SOL_NETLINK, option, RTNLGRP_NEIGH)
        except OSError as error:
            raise KernelError("netlink events of neighbours", error.errno or errno.EIO) from None


def driver(name: str) -> str:
    """Return the driver of an interface by ETHTOOL_GDRVINFO, "" when it has none to tell.

    Not by sysfs: in a container /sys shows the host's interfaces.
    """
    info = array.array("B", struct.pack("I", ETHTOOL_GDRVINFO).ljust(196, b"\0"))
    request = struct.pack("16sP", name.encode()[:15], info.buffer_info()[0]).ljust(40, b"\0")
    # The ioctl works on a socket of any family; with this one the unit needs no AF_INET (RestrictAddressFamilies).
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        try:
            fcntl.ioctl(control, SIOCETHTOOL, request)
        except OSError:
            return ""
    return info.tobytes()[4:36].split(b"\0", 1)[0].decode("ascii", "replace")


def _index(name: str) -> int:
    """Return the index of the interface that has this name now, 0 when none has."""
    request = struct.pack("16si", name.encode()[:15], 0).ljust(40, b"\0")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        try:
            answer = fcntl.ioctl(control, SIOCGIFINDEX, request)
        except OSError:
            return 0
    index: int = struct.unpack_from("i", answer, 16)[0]
    return index


def _as_it_is(settings: Iterable[Tunable]) -> Iterator[Tunable]:
    for setting in settings:
        value = procfs_sysctl.read(setting.path)
        if value is not None:
            yield setting._replace(value=value)


def _holds(raw: bytes, octets: Iterable[bytes]) -> bool:
    return any(mac in raw for mac in octets)
