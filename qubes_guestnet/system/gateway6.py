# SPDX-License-Identifier: GPL-2.0-or-later
"""Test with one ping whether the IPv6 gateway rejects this qube, for `check`.

A provider without IPv6 from dom0 rejects all IPv6 as administratively prohibited; one with IPv6 answers pings. Silence
does not count as a rejection: other implementations of a provider may not answer.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

ANSWER_SECONDS = 1.0
_ECHO_REQUEST = 128  # RFC 4443, 4.1


def refuses(gateway: str, ifindex: int) -> bool:
    """Return whether a ping is "administratively prohibited" (RFC 4443, 3.1); False if no ping can be sent.

    Args:
        gateway: an IPv6 address, may be link-local.
        ifindex: of the interface that it is behind.
    """
    try:
        ping = _ping_socket()
    except PermissionError:
        return False  # neither root nor in net.ipv4.ping_group_range: the provider cannot be tested
    with ping:
        ping.settimeout(ANSWER_SECONDS)
        try:
            # Connected, so that the kernel reports the error to this socket.
            ping.connect((gateway, 0, 0, ifindex))
            ping.send(struct.pack("!BBHHH", _ECHO_REQUEST, 0, 0, 0, 1) + os.urandom(8))
            ping.recv(512)
        except OSError as error:
            return error.errno == errno.EACCES
    return False


def _ping_socket() -> socket.socket:
    try:
        return socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMPV6)
    except PermissionError:
        return socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMPV6)
