# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames as they cross an interface of a qube, and whether their checksums are right."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address

from qubes_guestnet.lab.qube import Qube

_ETH_P_ALL, _ETH_P_IP = 3, 0x0800
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_ICMP, _TCP, _UDP = 1, 6, 17


class Wire:
    """Keeps all frames of one interface, both ways, from now on.

    Args:
        qube: whose.
        interface: which must be there.
    """

    def __init__(self, qube: Qube, interface: str) -> None:
        self._socket = qube.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind((interface, _ETH_P_ALL))
        self._socket.setblocking(False)
        self._sent: list[bytes] = []
        self._received: list[bytes] = []

    def _drain(self) -> None:
        try:
            while True:
                frame, (_, _, kind, *_) = self._socket.recvfrom(1 << 17)
                (self._sent if kind == socket.PACKET_OUTGOING else self._received).append(frame)
        except BlockingIOError:
            pass
        _, lost = struct.unpack("=II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        assert lost == 0, f"{lost} frames were lost, so this proves nothing"

    def frames(self) -> list[bytes]:
        """All so far, those that were sent first."""
        self._drain()
        return self._sent + self._received

    def received(self) -> list[bytes]:
        """IPv4 packets, without Ethernet header, that came in so far."""
        self._drain()
        return [frame[14:] for frame in self._received if frame[12:14] == struct.pack("!H", _ETH_P_IP)]

    def mentions(self, address: str) -> list[str]:
        """Frames that have this address anywhere, as hexadecimal digits."""
        octets = IPv4Address(address).packed
        return [frame.hex(" ", 4) for frame in self.frames() if octets in frame]


def sum_of(data: bytes) -> int:
    """Internet checksum (RFC 1071) of data that has its checksum in it: 0 when it is right."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def faults(packet: bytes) -> list[str]:
    """What checksums of an IPv4 packet, and of a header that an ICMP error quotes, are wrong."""
    header = (packet[0] & 15) * 4
    (length,) = struct.unpack_from("!H", packet, 2)
    body, protocol = packet[header:length], packet[9]
    pseudo = packet[12:20] + struct.pack("!BBH", 0, protocol, len(body))
    found = ["IP"] * bool(sum_of(packet[:header]))
    if protocol == _ICMP:
        found += ["ICMP"] * bool(sum_of(body))
        if body[0] in (3, 4, 11, 12):
            found += ["quoted IP"] * bool(sum_of(body[8 : 8 + (body[8] & 15) * 4]))
    elif protocol == _TCP or (protocol == _UDP and body[6:8] != b"\0\0"):
        found += ["TCP" if protocol == _TCP else "UDP"] * bool(sum_of(pseudo + body))
    return found
