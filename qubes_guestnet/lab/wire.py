# SPDX-License-Identifier: GPL-2.0-or-later
"""Words between an interactive lab and its commands: JSON, one object a line, descriptors beside the first one."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from typing import Any

_CHUNK = 65536
_DESCRIPTORS = 3
Message = dict[str, Any]


class Channel:
    """One end.

    Args:
        connection: a stream socket, from now on the channel's.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._rest = b""
        self.descriptors: list[int] = []

    def fileno(self) -> int:
        """Return the descriptor, readable when messages came, or the end."""
        return self._socket.fileno()

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send one message; OSError if the peer is gone."""
        data = json.dumps(message).encode() + b"\n"
        sent = socket.send_fds(self._socket, [data], descriptors) if descriptors else 0
        self._socket.sendall(data[sent:])

    def receive(self) -> list[Message] | None:
        """Return what came, [] when it is not a whole message yet; None at the end. Waits when nothing came."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, _CHUNK, _DESCRIPTORS)
        except ConnectionError:
            return None
        self.descriptors += descriptors
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def limit(self, seconds: float) -> None:
        """From now on nothing waits longer than so many seconds for the other end; TimeoutError."""
        self._socket.settimeout(seconds)

    def close(self) -> None:
        """Close the connection, and the descriptors left in `descriptors`."""
        self._socket.close()
        while self.descriptors:
            os.close(self.descriptors.pop())
