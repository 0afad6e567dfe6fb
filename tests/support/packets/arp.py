# SPDX-License-Identifier: GPL-2.0-or-later
"""ARP at one end of a cable: frames as an attacker makes them, and whether one is answered."""

from __future__ import annotations

import select
import socket
import time
from ipaddress import ip_address

from qubes_guestnet.lab.patience import patient
from qubes_guestnet.lab.qube import Qube
from tests.support.packets import icmp

ASKS, ANSWERS = 1, 2
BROADCAST = "ff:ff:ff:ff:ff:ff"
_ETH_P_ARP = 0x0806
# A test is a process of its own, whose end is the end of them all.
_open: list[socket.socket] = []


class Speaker:
    """A host that speaks ARP on an interface.

    Args:
        qube: whose.
        interface: which must be there.
        peer: MAC address of the other end.
    """

    def __init__(self, qube: Qube, interface: str, peer: str) -> None:
        self._peer = peer
        self._socket = qube.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ARP))
        self._socket.bind((interface, _ETH_P_ARP))
        _open.append(self._socket)

    def say(self, operation: int, sender: str, sender_mac: str, target: str, *, broadcast: bool = False) -> None:
        """Send one frame."""
        ends = (BROADCAST if broadcast else self._peer, sender_mac)
        head = b"".join(bytes.fromhex(mac.replace(":", "")) for mac in ends)
        self._socket.send(head + b"\x08\x06" + icmp.arp(operation, sender, sender_mac, target))

    def is_answered(self, sender: str, sender_mac: str, target: str, within_s: float = 0.5) -> bool:
        """Return whether the other end answers an ARP request for an address.

        Args:
            sender, sender_mac: of the request.
            target: that is asked for.
            within_s: for an answer that has to come, any time that a busy machine needs.
        """
        self.say(ASKS, sender, sender_mac, target, broadcast=True)
        end = time.monotonic() + within_s
        while select.select([self._socket], [], [], max(0.0, end - time.monotonic()))[0]:
            body = self._socket.recv(2000)[14:]
            if body[6:8] == b"\0\2" and body[14:18] == ip_address(target).packed:
                return True
        return False

    def must_be_answered(self, sender: str, sender_mac: str, target: str) -> None:
        """The same for one that has to be; what was sent before was judged by then."""
        assert self.is_answered(sender, sender_mac, target, patient(10.0)), (sender, sender_mac, target)
