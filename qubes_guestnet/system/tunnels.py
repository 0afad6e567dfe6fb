# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that a VPN may have: without a link layer, or with a default route. It decides nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterable

from ..core.dns.resolv_conf import TunnelFacts, Way
from ..core.values import IPAddress
from ..errors import KernelError
from . import devices
from . import plain_socket as socket

_ROUTES = "/proc/net/route"
_SIOCGIFFLAGS, _SIOCGIFHWADDR = 0x8913, 0x8927  # linux/sockios.h
_FLAGS, _HARDWARE = struct.Struct("=16sh22x"), struct.Struct("=16sH22x")  # struct ifreq
_IFF_UP, _RTF_UP = 0x1, 0x1
# linux/if_arp.h. What a network of machines has: Ethernet (bridges, VLANs, tap and vxlan too), loopback, IEEE 802.x,
# FireWire, InfiniBand, 802.11 and its monitors, 802.15.4, CAN, netlink and vsock monitors, 6LoWPAN. Frames of all other
# types begin with the packet: PPP 512, raw IP of modems 519, IP in IP 768 (also VTI of IPsec), the same over IPv6 769,
# SIT 776, GRE 778, GRE over IPv6 823, none at all 65534 (tun, WireGuard, xfrm of IPsec), and what will be added.
_WITH_LINK_LAYER = frozenset({1, 6, 24, 32, 280, 772, 801, 802, 803, 804, 805, 824, 825, 826})
# tun, WireGuard and xfrm; PPP; raw IP. Of other types the kernel makes a device of its own, which is always down.
_OF_A_CLIENT = frozenset({512, 519, 65534})
_NOWHERE = "00000000"
# Masks of 0.0.0.0/0 and of 0.0.0.0/1, as the kernel prints them.
_DEFAULTS = frozenset({"00000000", "00000080"})


def look(way: Callable[[IPAddress], int], servers: Iterable[IPAddress], ours: frozenset[int]) -> TunnelFacts:
    """Return all facts. Devices of ours, lo, and what Xen and our fake addresses call theirs are left out.

    Args:
        way: the interface index of the device by which packets to an address leave.
        servers: whose way counts.
        ours: interface indexes of this qube's uplinks.

    Raises:
        KernelError: the kernel does not say.
    """
    foreign = {
        index: name
        for index, name in devices.names().items()
        if index not in ours and name != "lo" and not name.startswith("vif")
    }
    ways = tuple(Way(server, foreign.get(way(server), "")) for server in servers)
    up = links(foreign.values())
    return TunnelFacts(ways, up, defaults(foreign.values()), links(set(foreign.values()).difference(up), up=False))


def links(names: Iterable[str], *, up: bool = True) -> tuple[str, ...]:
    """Return those of the devices that are up and have no link layer; or those that are down and a VPN client's.

    Raises:
        KernelError: it does not say.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
            return tuple(name for name in names if _is_tunnel(control, name, up))
    except OSError as error:
        raise KernelError("ip link show", error.errno or errno.EIO) from None


def _is_tunnel(control: socket.socket, name: str, up: bool) -> bool:
    try:
        request = os.fsencode(name)
        flags = _FLAGS.unpack(fcntl.ioctl(control, _SIOCGIFFLAGS, _FLAGS.pack(request, 0)))[1]
        kind = _HARDWARE.unpack(fcntl.ioctl(control, _SIOCGIFHWADDR, _HARDWARE.pack(request, 0)))[1]
    except OSError:
        return False  # it went just now
    if not up:
        return not flags & _IFF_UP and kind in _OF_A_CLIENT
    return bool(flags & _IFF_UP) and kind not in _WITH_LINK_LAYER


def defaults(names: Iterable[str]) -> tuple[str, ...]:
    """Return those of the devices that carry a default route of IPv4, or the first half of one, in the main table."""
    found, wanted = dict[str, None](), frozenset(names)
    try:
        with open(_ROUTES, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                words = line.split()
                default = len(words) > 7 and words[1] == _NOWHERE and words[7] in _DEFAULTS
                if default and words[0] in wanted and int(words[3], 16) & _RTF_UP:
                    found[words[0]] = None
    except OSError:
        return ()  # no IPv4
    return tuple(found)
