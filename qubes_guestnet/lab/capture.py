# SPDX-License-Identifier: GPL-2.0-or-later
"""Count the frames on a provider's vifs, and look for DHCP, with a raw packet socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
from typing import NamedTuple, NoReturn

from .qube import Qube

_ETH_P_ALL = 3
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_SO_RCVBUFFORCE = 33
_BUFFER_SIZE = 4 << 20
_ETHERNET = 14
_IPV4, _IPV6, _ARP = 0x0800, 0x86DD, 0x0806
_TCP, _UDP = 6, 17
_DHCP_PORTS = frozenset((67, 68, 546, 547))
_SNAP = 2048


class Frames(NamedTuple):
    """Counts of frames. `lost`: frames that the kernel dropped unread; `dhcp` then proves nothing."""

    all: int
    arp: int
    ipv4: int
    ipv6: int
    dhcp: int
    lost: int


class Capture:
    """Count the frames on all present and later vifs of a provider until `stop`.

    A separate process counts: the lab's process is busy, and a full buffer would lose frames.
    """

    def __init__(self, provider: Qube, interfaces: str = "vif") -> None:
        packets = provider.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        try:
            packets.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_SIZE)
        except PermissionError:  # needs real root
            packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_SIZE)
        self._answer, say = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _count(packets, interfaces, say)
        os.close(say)
        packets.close()

    def stop(self) -> Frames:
        """End the capture, and return its counts."""
        os.kill(self._pid, signal.SIGTERM)
        with open(self._answer, encoding="ascii") as answer:
            frames = Frames(*json.load(answer))
        os.waitpid(self._pid, 0)
        return frames


def ports(frame: bytes) -> tuple[int, ...]:
    """Return the source and destination port of an Ethernet frame with UDP or TCP; () for any other.

    Fragments and IPv6 packets with extension headers count as others.
    """
    (kind,) = struct.unpack_from("!H", frame, 12)
    packet = frame[_ETHERNET:]
    if kind == _IPV4 and len(packet) >= 24 and packet[9] in (_UDP, _TCP):
        return struct.unpack_from("!HH", packet, (packet[0] & 15) * 4)
    if kind == _IPV6 and len(packet) >= 44 and packet[6] in (_UDP, _TCP):
        return struct.unpack_from("!HH", packet, 40)
    return ()


def is_dhcp(frame: bytes) -> bool:
    """Return whether an Ethernet frame is DHCP or DHCPv6, by its ports: no TCP is ever on them."""
    return not _DHCP_PORTS.isdisjoint(ports(frame))


class _Stop(Exception):
    pass


def _count(packets: socket.socket, interfaces: str, say: int) -> NoReturn:
    def stop(_number: int, _frame: object) -> None:
        raise _Stop

    seen = {_ARP: 0, _IPV4: 0, _IPV6: 0}
    total = dhcp = 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    try:
        while True:
            frame, (interface, kind, *_) = packets.recvfrom(_SNAP)
            # The name is "" if the interface disappeared before its last frames were read.
            if interface and not interface.startswith(interfaces):
                continue
            total += 1
            dhcp += is_dhcp(frame)
            if kind in seen:
                seen[kind] += 1
    except _Stop:
        pass
    packets.setblocking(False)
    _, lost = struct.unpack("=II", packets.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
    os.write(say, json.dumps([total, *seen.values(), dhcp, lost]).encode())
    os._exit(0)
