# SPDX-License-Identifier: GPL-2.0-or-later
"""Send raw frames, as a hostile qube does, and capture all frames of its interfaces."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from typing import NamedTuple

from .namespaces import LabError
from .provider import BACKEND_MAC
from .qube import Qube

ETH_P_ALL, ETH_P_IP, ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_BUFFER_SIZE = 4 << 20
_TCP, _UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
_ICMP, _ICMP6 = 1, 58
_SYN = 0x02
_HOPS = 64
_WINDOW = 1024


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp(source: str, destination: str, port: int, payload: bytes, source_port: int = 40000) -> bytes:
    """Return an IP packet of the family of the addresses, with a datagram in it."""
    header = struct.pack("!HHHH", source_port, port, 8 + len(payload), 0)
    whole = header + payload
    # 0 would mean "no checksum", which IPv6 does not take (RFC 768, RFC 8200).
    total = checksum(_pseudo(source, destination, _UDP, len(whole)) + whole) or 0xFFFF
    return _packet(source, destination, _UDP, whole[:6] + struct.pack("!H", total) + whole[8:])


def syn(source: str, destination: str, port: int, source_port: int = 40000) -> bytes:
    """Return an IP packet that asks for a TCP connection."""
    header = struct.pack("!HHIIBBHHH", source_port, port, 1, 0, 5 << 4, _SYN, _WINDOW, 0, 0)
    total = checksum(_pseudo(source, destination, _TCP, len(header)) + header)
    return _packet(source, destination, _TCP, header[:16] + struct.pack("!H", total) + header[18:])


def icmp(source: str, destination: str, kind: int, code: int, rest: int, data: bytes) -> bytes:
    """Return an ICMP message of the family of the addresses; `rest` is the word behind the checksum."""
    whole = struct.pack("!BBHI", kind, code, 0, rest) + data
    six = ":" in source
    total = checksum((_pseudo(source, destination, _ICMP6, len(whole)) if six else b"") + whole)
    return _packet(source, destination, _ICMP6 if six else _ICMP, whole[:2] + struct.pack("!H", total) + whole[4:])


def _pseudo(source: str, destination: str, protocol: int, length: int) -> bytes:
    ends = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
    return ends + struct.pack("!IBBBB", length, 0, 0, 0, protocol)


def _packet(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    ends = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
    if len(ends) > 8:
        return struct.pack("!IHBB", 6 << 28, len(payload), protocol, _HOPS) + ends + payload
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, _HOPS, protocol, 0) + ends
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def framed(packet: bytes, source: str, destination: str = BACKEND_MAC) -> bytes:
    """Return an Ethernet frame with an IP packet; the ends are addresses of interfaces."""
    kind = ETH_P_IP if packet[0] >> 4 == 4 else ETH_P_IPV6
    return b"".join(bytes.fromhex(mac.replace(":", "")) for mac in (destination, source)) + struct.pack(
        "!H", kind
    ) + packet  # fmt: skip


def source(frame: bytes) -> str:
    """Return the address an IP packet in a frame comes from, "" for what is no IP packet."""
    kind = int.from_bytes(frame[12:14], "big")
    if kind == ETH_P_IP:
        return str(ipaddress.IPv4Address(frame[26:30]))
    return str(ipaddress.IPv6Address(frame[22:38])) if kind == ETH_P_IPV6 else ""


def is_ipv6(frame: bytes) -> bool:
    """Return whether there is an IPv6 packet in a frame."""
    return int.from_bytes(frame[12:14], "big") == ETH_P_IPV6


class Frame(NamedTuple):
    """One frame: on which interface, whether it was sent there or received, and its octets."""

    interface: str
    outgoing: bool
    octets: bytes


class Tap:
    """Capture of all frames of a qube's present and later interfaces until it is closed.

    Args:
        qube: whose.
    """

    def __init__(self, qube: Qube) -> None:
        self._name = qube.name
        self._socket = qube.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_SIZE)
        self._socket.setblocking(False)
        self._seen: list[Frame] = []

    def fileno(self) -> int:
        """Return the descriptor, readable when frames came."""
        return self._socket.fileno()

    def frames(self, interface: str = "") -> list[Frame]:
        """Return all frames of one interface, or of all; LabError if any was lost, because then silence proves
        nothing.
        """
        with contextlib.suppress(BlockingIOError):
            while True:
                octets, (name, _, kind, *_) = self._socket.recvfrom(1 << 17)
                self._seen.append(Frame(name, kind == socket.PACKET_OUTGOING, octets))
        _, lost = struct.unpack("=II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        if lost:
            raise LabError(f"the kernel dropped {lost} captured frames of {self._name}")
        return [frame for frame in self._seen if interface in ("", frame.interface)]

    def with_octets(self, octets: bytes, interface: str = "") -> list[Frame]:
        """Return the frames that contain these octets."""
        return [frame for frame in self.frames(interface) if octets in frame.octets]

    def close(self) -> None:
        """End the capture."""
        self._socket.close()


def send(qube: Qube, interface: str, *frames: bytes) -> None:
    """Send frames by an interface of a qube, bypassing its kernel's stack."""
    with qube.socket(socket.AF_PACKET, socket.SOCK_RAW) as packets:
        for frame in frames:
            packets.sendto(frame, (interface, 0))
