# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets made and heard by packet sockets, so that no kernel at the ends decides what may be sent.

Each carries a word that tells its sender and its purpose.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import NamedTuple

from qubes_guestnet.lab.qube import Qube
from tests.support.eventually import eventually
from tests.support.packets.wire import sum_of

# Of a word: to its end of the packet.
MARK = b"GUESTNET "
UDP, ICMP, ICMP6 = 17, 1, 58
_ETH = {4: 0x0800, 6: 0x86DD}
_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_IGNORE_OUTGOING, _PACKET_STATISTICS = 263, 23, 6
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
# A test is a process of its own, whose end is the end of them all.
_open: list[socket.socket] = []


class Packet(NamedTuple):
    """One that was heard: its word, where it was from and for, and its protocol."""

    word: str
    source: str
    target: str
    protocol: int


class Port:
    """One end of a cable: sends whatever it is told to, and hears what comes in by it from now on.

    Args:
        qube: whose.
        interface: which must be there.
        peer: MAC address of the other end.
    """

    def __init__(self, qube: Qube, interface: str, peer: str) -> None:
        self._peer = bytes.fromhex(peer.replace(":", ""))
        self._socket = qube.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        self._socket.bind((interface, _ETH_P_ALL))
        self._socket.setblocking(False)
        _open.append(self._socket)
        self.packets: list[bytes] = []

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    def send(self, source: str, target: str, word: str, *, sport: int = 1024, dport: int = 9, times: int = 1) -> None:
        """Send a datagram that says `word`."""
        frame = self.frame(packet_of(source, target, udp(source, target, sport, dport, MARK + word.encode()), UDP))
        for _ in range(times):
            self._socket.send(frame)

    def send_packet(self, packet: bytes) -> None:
        """Send an IP packet as it is."""
        self._socket.send(self.frame(packet))

    def shoot(self, frame: bytes) -> None:
        """Send a frame; one that cannot be sent now is lost, as on any cable."""
        with contextlib.suppress(OSError):
            self._socket.send(frame)

    def frame(self, packet: bytes) -> bytes:
        """An Ethernet frame to the other end."""
        return self._peer + b"\x02\0\0\0\0\x77" + struct.pack("!H", _ETH[packet[0] >> 4]) + packet

    def heard(self) -> list[Packet]:
        """Marked packets so far, in order; also those that an error quotes, with the error's own addresses."""
        self.drain()
        return [understood(packet) for packet in self.packets if MARK in packet]

    def drain(self) -> None:
        """Take in what came; packets that were lost would make every absence worthless."""
        try:
            while True:
                frame = self._socket.recv(1 << 16)
                if frame[12:14] in (b"\x08\0", b"\x86\xdd"):
                    self.packets.append(frame[14:])
        except BlockingIOError:
            pass
        _, lost = struct.unpack("=II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        assert lost == 0, f"{lost} frames were lost, so this proves nothing"

    def forget(self) -> None:
        """Start anew: what came so far counts no more."""
        self.drain()
        self.packets.clear()

    def hears(self, wanted: Callable[[Packet], bool], deadline_s: float = 1.0) -> bool:
        """Whether such a packet came, or comes in time."""
        try:
            return eventually(lambda: any(map(wanted, self.heard())), deadline_s)
        except AssertionError:
            return False

    def words(self) -> set[str]:
        """The words of datagrams so far."""
        return {packet.word for packet in self.heard() if packet.protocol == UDP}


class Inside(Port):
    """Datagrams that the provider's own stack has accepted: a raw socket is behind the input rules."""

    def __init__(self, qube: Qube, version: int = 4) -> None:
        self._socket = qube.socket(_FAMILIES[version], socket.SOCK_RAW, UDP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.setblocking(False)
        _open.append(self._socket)
        self._version = version
        self.packets = []

    def drain(self) -> None:
        """See Port."""
        try:
            while True:
                packet, (sender, *_) = self._socket.recvfrom(1 << 16)
                # IPv6 gives no header: one that says as much.
                self.packets.append(packet if self._version == 4 else packet_of(sender, "::1", packet, UDP))
        except BlockingIOError:
            pass


@contextlib.contextmanager
def listening(*ports: Port) -> Iterator[None]:
    """While it lasts, take in what comes all the time: the kernel's buffers are small."""
    over = threading.Event()
    failures: list[BaseException] = []

    def listen() -> None:
        try:
            while not over.wait(0.01):
                for port in ports:
                    port.drain()
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not failures, failures


def udp(source: str, target: str, sport: int, dport: int, data: bytes) -> bytes:
    """A datagram with a right checksum."""
    addresses = ip_address(source).packed + ip_address(target).packed
    length = 8 + len(data)
    header = struct.pack("!HHHH", sport, dport, length, 0)
    total = sum_of(addresses + struct.pack("!HH", UDP, length) + header + data) or 0xFFFF
    return header[:6] + struct.pack("!H", total) + data


def packet_of(source: str, target: str, body: bytes, protocol: int, hops: int = 64) -> bytes:
    """An IP packet of either family, with a right checksum."""
    own, other = ip_address(source), ip_address(target)
    if own.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(body), protocol, hops) + own.packed + other.packed + body
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, hops, protocol, 0) + own.packed + other.packed
    return header[:10] + struct.pack("!H", sum_of(header)) + header[12:] + body


def understood(packet: bytes) -> Packet:
    """What a marked packet says."""
    word = packet.partition(MARK)[2].partition(b"\0")[0].decode("ascii", "replace")
    if packet[0] >> 4 == 4:
        return Packet(word, str(ip_address(packet[12:16])), str(ip_address(packet[16:20])), packet[9])
    return Packet(word, str(ip_address(packet[8:24])), str(ip_address(packet[24:40])), packet[6])
