# SPDX-License-Identifier: GPL-2.0-or-later
"""A VPN in a qube of the lab: a tunnel with a name server at its end, and what must never be on the uplink.

The tunnel is a veth, which every kernel has; what matters of it is that it is neither the uplink nor a vif. At its end
a name server answers everything, with an address that the world never gives.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from typing import NoReturn

from .capture import ports
from .namespaces import LabError
from .qube import Qube

DEVICE = "wg0"
SERVER, ADDRESS, ADDRESS6 = "10.64.0.1", "10.64.9.2", "fd64::2"
INSIDE = "192.0.2.77"
"""What every name is at the end of the tunnel."""
MARK = b"guestnet-behind"
_PEER, _MACS = "peer", ("02:00:00:00:00:0a", "02:00:00:00:00:0b")
_ETH_P_ALL, _SOL_PACKET, _PACKET_STATISTICS = 3, 263, 6
_BUFFER, _RECEIVE_BUFFER = 65536, 4 << 20
_PAUSE_SECONDS = 0.002
_HEADER = struct.Struct("!6H")
_ANSWER = 0x8180
_NAME_PORTS = frozenset({53, 853})


class Tunnel:
    """The tunnel of one qube, which goes up and down.

    Args:
        qube: that has the VPN.
        ipv6: it carries IPv6 too.
    """

    def __init__(self, qube: Qube, *, ipv6: bool) -> None:
        self.qube, self.ipv6 = qube, ipv6
        self._ruled: tuple[str, ...] = ()  # families with rules that lead into it
        self.end = Qube("vpn-end")
        self.end.wire(f"ip address add {SERVER}/32 dev lo; ip link set lo up")
        self._names = _forked(self.end.socket(socket.AF_INET, socket.SOCK_DGRAM), _serve)

    def up(self) -> None:
        """The device, up and with its addresses; no route leads to it yet but the one to its server's net.

        Both ends know each other without ARP, as those of a tunnel do: a first question is not lost.
        """
        self.qube.wire(f"""
            ip link add {DEVICE} address {_MACS[0]} type veth peer name {_PEER} address {_MACS[1]} netns {self.end.pid}
        """)
        self.end.wire(f"""
            ip link set {_PEER} up; ip route add {ADDRESS} dev {_PEER}
            ip neighbour add {ADDRESS} lladdr {_MACS[0]} nud permanent dev {_PEER}
        """)
        self.qube.wire(f"""
            ip address add {ADDRESS}/32 dev {DEVICE}; ip link set {DEVICE} up
            ip neighbour add {SERVER} lladdr {_MACS[1]} nud permanent dev {DEVICE}
            ip route add 10.64.0.0/16 dev {DEVICE}
            {f"ip -6 address add {ADDRESS6}/64 dev {DEVICE} nodad" if self.ipv6 else ""}
        """)

    def everything(self) -> None:
        """Route all packets of the qubes into it, by a table of its own, as wg-quick does."""
        self._ruled = ("-4", "-6") if self.ipv6 else ("-4",)
        for family in self._ruled:
            self.qube.wire(f"""
                ip {family} route add default dev {DEVICE} table 51820
                ip {family} rule add not fwmark 51820 table 51820
                ip {family} rule add table main suppress_prefixlength 0
            """)

    def halves(self) -> None:
        """The same by two halves of the default route, as OpenVPN does."""
        self.qube.wire(f"ip route add 0.0.0.0/1 dev {DEVICE}; ip route add 128.0.0.0/1 dev {DEVICE}")
        if self.ipv6:
            self.qube.wire(f"ip -6 route add ::/1 dev {DEVICE}; ip -6 route add 8000::/1 dev {DEVICE}")

    def down(self) -> None:
        """The device goes, and with it its routes; the rules too."""
        self.qube.wire(f"ip link delete {DEVICE}")
        for family in self._ruled:
            self.qube.wire(f"""
                ip {family} rule del not fwmark 51820 table 51820
                ip {family} rule del table main suppress_prefixlength 0
            """)
        self._ruled = ()

    def close(self) -> None:
        """Stop its name server."""
        os.kill(self._names, signal.SIGKILL)
        os.waitpid(self._names, 0)


class Uplink:
    """Looks at what is on the uplink of a qube that has a VPN.

    Args:
        qube: the one with the VPN.
        interface: its uplink.
    """

    def __init__(self, qube: Qube, interface: str) -> None:
        self._packets = qube.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        self._packets.bind((interface, _ETH_P_ALL))
        self._packets.setblocking(False)

    def leaked(self) -> int:
        """Return frames since the last look that come from the qubes behind, by what they carry.

        Raises:
            LabError: some were lost before they were looked at.
        """
        found = sum(MARK in frame for frame in self._frames())
        if lost := self._lost():
            raise LabError(f"{lost} frames were lost before they were looked at")
        return found

    def questions(self) -> int:
        """Return frames since the last look that are for a port of names (53, 853), and those that were lost."""
        return sum(not _NAME_PORTS.isdisjoint(ports(frame)[1:]) for frame in self._frames()) + self._lost()

    def _frames(self) -> Iterator[bytes]:
        while True:
            try:
                yield self._packets.recv(_BUFFER)
            except BlockingIOError:
                return

    def _lost(self) -> int:
        return int(struct.unpack("=II", self._packets.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1])

    def close(self) -> None:
        """No more of it."""
        self._packets.close()


class Chatter:
    """Questions and packets that a qube goes on sending, some hundred a second, each with the mark in it.

    Args:
        qube: behind the one with the VPN.
        virtual: the virtual DNS addresses.
        targets: addresses outside, of either family.
    """

    def __init__(self, qube: Qube, virtual: tuple[str, ...], targets: tuple[str, ...]) -> None:
        sockets = {version: qube.socket(version, socket.SOCK_DGRAM) for version in (socket.AF_INET, socket.AF_INET6)}

        def chat(_unused: socket.socket) -> NoReturn:
            question = b"\1\2" + _HEADER.pack(0x0100, 1, 0, 0, 0, 0)[:10] + bytes([len(MARK)]) + MARK + b"\0\0\1\0\1"
            while True:
                for address, port, data in (
                    *((address, port, question) for address in virtual for port in _NAME_PORTS),
                    *((address, 9, MARK) for address in targets),
                ):
                    try:
                        sockets[socket.AF_INET6 if ":" in address else socket.AF_INET].sendto(data, (address, port))
                    except OSError:
                        continue  # it was refused, or there is no route for a moment
                time.sleep(_PAUSE_SECONDS)

        self._pid = _forked(sockets[socket.AF_INET], chat)
        for each in sockets.values():
            each.close()

    def stop(self) -> None:
        """End it."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _forked(own: socket.socket, action: object) -> int:
    """Start a process that does this with the socket until it is ended; return its number."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            assert callable(action)
            action(own)
        finally:
            os._exit(1)
    return pid


def _serve(names: socket.socket) -> NoReturn:
    """Answer every question with one address."""
    names.bind((SERVER, 53))
    while True:
        question, client = names.recvfrom(_BUFFER)
        record = b"\xc0\x0c" + struct.pack("!2HIH", 1, 1, 1, 4) + socket.inet_aton(INSIDE)
        with contextlib.suppress(OSError):  # the tunnel went meanwhile
            names.sendto(question[:2] + struct.pack("!5H", _ANSWER, 1, 1, 0, 0) + question[12:] + record, client)
