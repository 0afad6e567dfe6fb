# SPDX-License-Identifier: GPL-2.0-or-later
"""Real packets from inside a qube, and what its kernel does while they flow.

Sockets are made in the qube's network and used from the lab's process: no ping program is needed, and a probe costs no
process start that would hide the latency it measures.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import socket
import struct
import time

from .qube import Qube

_ECHO_REQUEST = {4: 8, 6: 128}
_ECHO_REPLY = {4: 0, 6: 129}
_ICMP_HEADER = struct.Struct("!BBHHH")
_BUFFER = 65536
_ANSWERED = 0x8000
_NETLINK_HEADER = struct.Struct("=IHHII")
_ROUTE_MESSAGE = struct.Struct("=8BI")
_RTM_NEWADDR = 20
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_NLM_DUMP = 0x301
_NLMSG_DONE = 3
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV4_ROUTE, _RTMGRP_IPV6_IFADDR, _RTMGRP_IPV6_ROUTE = 0x10, 0x40, 0x100, 0x400
_RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY = 4, 5, 6
_MAIN_TABLE = 254


class Echo:
    """ICMP echoes from a qube to one address, all alike: an answer to any of them is an answer.

    Args:
        qube: sender.
        address: target.
    """

    def __init__(self, qube: Qube, address: str) -> None:
        self._version = ipaddress.ip_address(address).version
        family, protocol = (socket.AF_INET, socket.IPPROTO_ICMP) if self._version == 4 else (socket.AF_INET6, 58)
        self._address = address
        self._mark = os.urandom(8)
        self._socket = qube.socket(family, socket.SOCK_RAW, protocol)

    def fileno(self) -> int:
        """Return the descriptor, readable when something came, which need not be an answer."""
        return self._socket.fileno()

    def send(self) -> bool:
        """Send one; False when the qube's kernel refuses, as without a route."""
        try:
            self._socket.sendto(_echo_request(self._version, self._mark), (self._address, 0))
        except OSError:
            return False
        return True

    def answered(self) -> bool:
        """Return whether what came is an answer; to be called when it is readable."""
        packet, sender = self._socket.recvfrom(_BUFFER)
        payload = packet[(packet[0] & 15) * 4 :] if self._version == 4 else packet
        return bool(
            sender[0] == self._address and payload[0] == _ECHO_REPLY[self._version] and payload.endswith(self._mark)
        )

    def close(self) -> None:
        """No more of it."""
        self._socket.close()


def ping(qube: Qube, address: str, timeout: float = 1.0) -> float | None:
    """Send one ICMP echo from the qube; return the round trip in seconds, or None: no answer in time, or no route."""
    with contextlib.closing(Echo(qube, address)) as echoes:
        start = time.monotonic()
        if not echoes.send():
            return None
        while (left := start + timeout - time.monotonic()) > 0 and select.select([echoes], [], [], left)[0]:
            if echoes.answered():
                return time.monotonic() - start
    return None


def _echo_request(version: int, mark: bytes) -> bytes:
    identifier = os.getpid() & 0xFFFF
    packet = _ICMP_HEADER.pack(_ECHO_REQUEST[version], 0, 0, identifier, 1) + mark
    if version == 6:  # the kernel fills in the checksum of ICMPv6
        return packet
    total = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return _ICMP_HEADER.pack(_ECHO_REQUEST[version], 0, checksum, identifier, 1) + mark


def query(client: socket.socket, server: str, name: str, timeout: float = 1.0) -> bool:
    """Ask `server` for the IPv4 address of `name` by UDP; whether an answer with an address came in time (seconds)."""
    mark = os.urandom(2)
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    try:
        client.sendto(mark + struct.pack("!5H", 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1", (server, 53))
        if not select.select([client], [], [], timeout)[0]:
            return False
        answer = client.recv(_BUFFER)
    except OSError:
        return False
    flags, _, answers = struct.unpack_from("!3H", answer, 2)
    return answer.startswith(mark) and bool(flags & _ANSWERED) and answers > 0


def resolve(qube: Qube, name: str, version: int = 4, timeout: float = 10.0) -> list[str]:
    """Return addresses of `name` by the C library of the qube, with its resolv.conf; [] when it cannot be resolved."""
    done = qube.run(
        "getent", f"ahostsv{version}", name, check=False, timeout=timeout, env={"RES_OPTIONS": "timeout:1 attempts:2"}
    )
    addresses = (line.split()[0] for line in done.stdout.splitlines())
    found = dict.fromkeys(address for address in addresses if ipaddress.ip_address(address).version == version)
    # For AAAA getent also gives IPv4 addresses mapped into IPv6, which are not what was asked for.
    return [address for address in found if not address.startswith("::ffff:")]


def echo(qube: Qube, address: str, port: int, timeout: float = 2.0) -> bool:
    """Return whether a TCP connection from the qube gets back what it sends."""
    family = socket.AF_INET if ipaddress.ip_address(address).version == 4 else socket.AF_INET6
    mark = os.urandom(16)
    with qube.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        try:
            client.connect((address, port))
            client.sendall(mark)
            return client.recv(_BUFFER) == mark
        except OSError:
            return False


class KernelEvents:
    """What the kernel of a qube announces about addresses and routes: raw rtnetlink, none of our own code.

    Args:
        qube: whose network to listen to, from now on.
    """

    def __init__(self, qube: Qube) -> None:
        self._socket = qube.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        groups = _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV6_IFADDR | _RTMGRP_IPV6_ROUTE
        self._socket.bind((0, groups))

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def wait_for_address(self, address: str, timeout: float = 5.0) -> float | None:
        """Wait until `address` is added; the moment (monotonic seconds) or None when it is not in time."""
        wanted = ipaddress.ip_address(address).packed
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            if not select.select([self._socket], [], [], left)[0]:
                return None
            data = self._socket.recv(_BUFFER)
            now = time.monotonic()
            if any(kind == _RTM_NEWADDR and wanted in body for kind, body in _messages(data)):
                return now
        return None

    def default_routes(self) -> list[tuple[bool, tuple[int, bytes, bytes, bytes]]]:
        """Drain: (added, identity) of each default route of the main table that came or went, in order."""
        found = []
        while select.select([self._socket], [], [], 0)[0]:
            for kind, body in _messages(self._socket.recv(_BUFFER)):
                if kind in (_RTM_NEWROUTE, _RTM_DELROUTE) and (identity := _default_route(body)):
                    found.append((kind == _RTM_NEWROUTE, identity))
        return found


class RouteTable:
    """Asks the kernel of a qube for its IPv4 routes over and over, cheaply: 0.1 ms and no process each time."""

    def __init__(self, qube: Qube, interface: str) -> None:
        self._socket = qube.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.settimeout(5.0)
        (link,) = qube.ip("link", "show", "dev", interface)
        self._interface = struct.pack("=I", link["ifindex"])

    def default_routes(self) -> int:
        """Return how many default routes by the interface the main table has at this moment."""
        header = _NETLINK_HEADER.pack(_NETLINK_HEADER.size + _ROUTE_MESSAGE.size, _RTM_GETROUTE, _NLM_DUMP, 1, 0)
        self._socket.send(header + _ROUTE_MESSAGE.pack(socket.AF_INET, *[0] * 8))
        count = 0
        while True:
            for kind, body in _messages(self._socket.recv(_BUFFER)):
                if kind == _NLMSG_DONE:
                    return count
                route = _default_route(body) if kind == _RTM_NEWROUTE else None
                count += route is not None and route[1] == self._interface


def _messages(data: bytes) -> list[tuple[int, bytes]]:
    """(type, body) of each netlink message in a packet."""
    found = []
    while len(data) >= _NETLINK_HEADER.size:
        length, kind, *_ = _NETLINK_HEADER.unpack_from(data)
        found.append((kind, data[_NETLINK_HEADER.size : length]))
        data = data[(length + 3) & ~3 :]
    return found


def _default_route(body: bytes) -> tuple[int, bytes, bytes, bytes] | None:
    """Family, interface, gateway and metric of a default route of the main table; None for any other route."""
    family, prefix_length, _, _, table, *_ = _ROUTE_MESSAGE.unpack_from(body)
    if prefix_length != 0 or table != _MAIN_TABLE:
        return None
    attributes: dict[int, bytes] = {}
    rest = body[_ROUTE_MESSAGE.size :]
    while len(rest) >= 4:
        length, kind = struct.unpack_from("=HH", rest)
        attributes[kind] = rest[4:length]
        rest = rest[(length + 3) & ~3 :]
    found = (attributes.get(kind, b"") for kind in (_RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY))
    interface, gateway, metric = found
    return family, interface, gateway, metric
