# SPDX-License-Identifier: GPL-2.0-or-later
"""List network devices by ioctl, because a pass without changes must cost almost nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from ..errors import KernelError
from . import plain_socket as socket

_SIOCGIFMTU, _SIOCGIFFLAGS = 0x8921, 0x8913  # linux/sockios.h
_IFF_UP = 0x1  # linux/if.h
_REQUEST = struct.Struct("=16si20x")  # struct ifreq


def listed() -> tuple[tuple[int, str, int], ...]:
    """Return (index, name, MTU) of every device; MTU 0 for one that disappears meanwhile.

    Raises:
        KernelError: the kernel refuses.
    """
    try:
        # The ioctl works on a socket of any family; with this one the unit needs no AF_INET (RestrictAddressFamilies).
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
            return tuple((index, name, _mtu(control, name)) for index, name in socket.if_nameindex())
    except OSError as error:
        raise KernelError("ip link show", error.errno or errno.EIO) from None


def names() -> dict[int, str]:
    """Map the index of each device to its name.

    Raises:
        KernelError: the kernel refuses, or there is no free descriptor.
    """
    try:
        return dict(socket.if_nameindex())
    except OSError as error:
        raise KernelError("ip link show", error.errno or errno.EIO) from None


def up() -> dict[int, bool]:
    """Map the index of each device to whether it is up (IFF_UP); omit one that disappears meanwhile.

    Raises:
        KernelError: the kernel refuses.
    """
    found = {}
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
            for index, name in socket.if_nameindex():
                try:
                    answer = fcntl.ioctl(control, _SIOCGIFFLAGS, _REQUEST.pack(os.fsencode(name), 0))
                except OSError:
                    continue
                found[index] = bool(_REQUEST.unpack(answer)[1] & _IFF_UP)
    except OSError as error:
        raise KernelError("ip link show", error.errno or errno.EIO) from None
    return found


def counters() -> str:
    """/proc/net/dev: packets and bytes of every device of this network namespace; "" where it cannot be read."""
    try:
        with open("/proc/self/net/dev", encoding="utf-8", errors="replace") as table:
            return table.read()
    except OSError:
        return ""


def _mtu(control: socket.socket, name: str) -> int:
    try:
        answer = fcntl.ioctl(control, _SIOCGIFMTU, _REQUEST.pack(os.fsencode(name), 0))
    except OSError:
        return 0
    return int(_REQUEST.unpack(answer)[1])
