# SPDX-License-Identifier: GPL-2.0-or-later
"""TCP echo server of the world's host: `python3 -m qubes_guestnet.lab.echo PORT …`."""

from __future__ import annotations

import selectors
import socket
import sys
from collections.abc import Iterable

_CHUNK = 65536


def serve(ports: Iterable[int]) -> None:
    """Echo on each port, IPv4 and IPv6, until killed."""
    selector = selectors.DefaultSelector()
    for port in ports:
        listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        selector.register(listener, selectors.EVENT_READ, True)
    while True:
        for key, _ in selector.select():
            ready = key.fileobj
            assert isinstance(ready, socket.socket)
            if key.data:
                selector.register(ready.accept()[0], selectors.EVENT_READ, False)
            elif not _echo(ready):
                selector.unregister(ready)
                ready.close()


def _echo(connection: socket.socket) -> bool:
    """Echo one piece of data; return False if the other end is gone."""
    try:
        data = connection.recv(_CHUNK)
        connection.sendall(data)
    except OSError:
        return False
    return bool(data)


if __name__ == "__main__":
    serve(int(word) for word in sys.argv[1:])
