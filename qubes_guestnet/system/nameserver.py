# SPDX-License-Identifier: GPL-2.0-or-later
"""Test with one UDP query whether a name server answers, for `check`.

A resolver library would not do: the query must go to this server only, and any answer counts, also a refusal.
"""

from __future__ import annotations

import os
import socket
import struct
import time

ANSWER_SECONDS = 2.0
_TRIES = 2
_RECURSION_DESIRED, _TYPE_NS, _CLASS_IN, _PORT = 0x0100, 2, 1, 53


def answers(server: str) -> bool:
    """Return whether an IPv4 nameserver answers a query for the root's servers (RFC 1035, 4.1) in time.

    Args:
        server: its address, with a port where it is not 53.
    """
    host, _, port = server.partition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        for _ in range(_TRIES):
            identifier = os.urandom(2)
            query = identifier + struct.pack("!HHHHH", _RECURSION_DESIRED, 1, 0, 0, 0)
            query += b"\0" + struct.pack("!HH", _TYPE_NS, _CLASS_IN)
            deadline = time.monotonic() + ANSWER_SECONDS / _TRIES
            try:
                sock.connect((host, int(port or _PORT)))
                sock.send(query)
                while (left := deadline - time.monotonic()) > 0:
                    sock.settimeout(left)
                    if sock.recv(512)[:2] == identifier:
                        return True
            except OSError:
                continue  # unreachable, refused or silent: the caller names the server
    return False
