# SPDX-License-Identifier: GPL-2.0-or-later
"""Knock at every port of an address from a qube, as nmap would: raw packets, and whatever comes back."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from typing import NamedTuple

from . import frames, probes
from .dom0 import INTERFACE, Vm
from .namespaces import LabError
from .provider import BACKEND_MAC

PORTS = range(1, 65536)
_ETHERNET, _IP = 14, 20
_DESTINATION_PORT = _ETHERNET + _IP + 2
_TCP_CHECKSUM, _UDP_CHECKSUM = _ETHERNET + _IP + 16, _ETHERNET + _IP + 6
_SYN_ACK, _RESET = 0x12, 0x04
_PORT = struct.Struct("!H")
_BUFFER_SIZE = 4 << 20
# A busy kernel drops what is more than a thousand packets ahead of it (net.core.netdev_max_backlog).
_AT_ONCE = 512
_BARRIER_SECONDS = 2.0


class Found(NamedTuple):
    """What came back.

    Attributes:
        open: ports that took a connection, or answered a datagram.
        closed: ports that a kernel reported as closed, so that no rule filtered them.
        prohibited: how often it was said that this is prohibited.
        others: addresses of all that answered but the one that was asked.
    """

    open: tuple[int, ...]
    closed: tuple[int, ...]
    prohibited: int
    others: frozenset[str]


def tcp(vm: Vm, address: str, ports: range = PORTS) -> Found:
    """Ask for a connection to each port; `vm` asks by its own address."""
    return _scan(vm, address, frames.syn(vm.visible_address, address, 0), _TCP_CHECKSUM, ports)


def udp(vm: Vm, address: str, ports: range = PORTS, payload: bytes = b"scan") -> Found:
    """Send a datagram to each port."""
    return _scan(vm, address, frames.udp(vm.visible_address, address, 0, payload), _UDP_CHECKSUM, ports)


def _scan(vm: Vm, address: str, packet: bytes, checksum_at: int, ports: range) -> Found:
    # One packet in which the port changes, and with it the checksum (RFC 1624).
    frame = bytearray(frames.framed(packet, vm.mac, BACKEND_MAC))
    base = ~_PORT.unpack_from(frame, checksum_at)[0] & 0xFFFF
    answers = _Answers(address)
    with (
        vm.running.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(frames.ETH_P_IP)) as packets,
        contextlib.closing(probes.Echo(vm.running, address)) as echoes,
    ):
        packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_SIZE)
        packets.bind((INTERFACE, frames.ETH_P_IP))
        for port in ports:
            total = base + port
            _PORT.pack_into(frame, _DESTINATION_PORT, port)
            _PORT.pack_into(frame, checksum_at, ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF or 0xFFFF)
            packets.send(frame)
            if port % _AT_ONCE == 0 or port == ports[-1]:
                _wait(echoes)
                answers.read(packets)
    return answers.found()


def _wait(echoes: probes.Echo) -> None:
    """Until a ping is answered: it is behind all others in the same queues."""
    echoes.send()
    while select.select([echoes], [], [], _BARRIER_SECONDS)[0]:
        if echoes.answered():
            return
    raise LabError("a ping during the scan was not answered")


class _Answers:
    """What comes back, in the terms of `Found`."""

    def __init__(self, address: str) -> None:
        self._asked = socket.inet_aton(address)
        self._open: set[int] = set()
        self._closed: set[int] = set()
        self._prohibited = 0
        self._others: set[str] = set()

    def read(self, packets: socket.socket) -> None:
        """Take all there is."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._take(packets.recv(2048, socket.MSG_DONTWAIT)[_ETHERNET:])
        _, lost = struct.unpack("=II", packets.getsockopt(263, 6, 8))
        if lost:
            raise LabError(f"the kernel dropped {lost} captured answers")

    def _take(self, packet: bytes) -> None:
        payload = packet[(packet[0] & 15) * 4 :]
        if packet[12:16] != self._asked:
            self._others.add(socket.inet_ntoa(packet[12:16]))
        elif packet[9] == socket.IPPROTO_TCP:
            (self._closed if payload[13] & _RESET else self._open).add(_PORT.unpack_from(payload)[0])
        elif packet[9] == socket.IPPROTO_UDP:
            self._open.add(_PORT.unpack_from(payload)[0])
        elif packet[9] == socket.IPPROTO_ICMP and payload[0] == 3:
            if payload[1] == 3:
                self._closed.add(_PORT.unpack_from(payload, 8 + _IP + 2)[0])
            else:
                self._prohibited += 1

    def found(self) -> Found:
        return Found(tuple(sorted(self._open)), tuple(sorted(self._closed)), self._prohibited, frozenset(self._others))
