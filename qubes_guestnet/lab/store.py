# SPDX-License-Identifier: GPL-2.0-or-later
"""A QubesDB daemon in memory, for the lab: sockets in a folder, and the protocol (`store_hub.py`) behind them.

The real daemon waits for a client that does not read its answers, and ends on a failed assertion when a 257th client
comes; this one goes on serving the others.
"""

from __future__ import annotations

import os
import selectors
import socket
import stat

from ..errors import StoreError
from ..system.qubesdb import wire
from ..system.qubesdb.direct import READ_ONLY, READ_WRITE
from .store_hub import Client, Hub

# The C client takes a header in one read() and gives up on a shorter one. The kernel queues a send of this size in one
# piece or not at all, so whole messages in pieces up to this size never show it half a header.
PIECE = 16384
_CHUNK = 65536
_SOCKET_QUEUE = 128


class Daemon:
    """The loop: sockets in a folder, and a hub behind them. No client ever makes it wait.

    The sockets are bound and listening when the constructor returns.

    Args:
        directory: where qubesdb.sock and qubesdb.ro.sock are made.
        hub: the database.

    Raises:
        StoreError: another daemon serves there, or the sockets cannot be made.
    """

    def __init__(self, directory: str, hub: Hub) -> None:
        self._hub = hub
        self._sockets: dict[Client, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._bound: list[tuple[str, int]] = []
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        try:
            for name in (READ_WRITE, READ_ONLY):
                self._listen(os.path.join(directory, name))
        except OSError as error:
            self.close()
            raise StoreError(f"{directory}: {error.strerror or error}", "give another --dir") from error
        except StoreError:
            self.close()
            raise

    def stop(self) -> None:
        """Make serve() return. From any thread or signal handler."""
        self._wake.send(b"x")

    def serve(self) -> None:
        """Serve until stop()."""
        while True:
            for key, _events in self._selector.select():
                if key.fileobj is self._woken:
                    return
                if isinstance(key.data, Client):
                    self._serve_client(key.data)
                elif isinstance(key.fileobj, socket.socket):
                    self._accept(key.fileobj, writable=key.data == READ_WRITE)

    def close(self) -> None:
        """Close everything and remove the sockets, if they are still ours."""
        for client in list(self._sockets):
            self._drop(client)
        for key in list((self._selector.get_map() or {}).values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        self._wake.close()
        for path, inode in self._bound:
            try:
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
            except FileNotFoundError:
                pass
        self._bound.clear()

    def _listen(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(path)
            except OSError:
                pass  # no daemon listens
            else:
                raise StoreError(f"another daemon already serves {path}", "stop that daemon, or give another --dir")
        try:
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)  # of a daemon that was killed
        except FileNotFoundError:
            pass
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(path)
            self._bound.append((path, os.stat(path).st_ino))
            os.chmod(path, 0o666)
            listener.listen(_SOCKET_QUEUE)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
        self._selector.register(listener, selectors.EVENT_READ, os.path.basename(path))

    def _accept(self, listener: socket.socket, *, writable: bool) -> None:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        if len(self._sockets) >= wire.MAX_CLIENTS:
            connection.close()
            return
        connection.setblocking(False)
        client = self._hub.connect(writable=writable)
        self._sockets[client] = connection
        self._selector.register(connection, selectors.EVENT_READ, client)

    def _serve_client(self, client: Client) -> None:
        """Serve a client that is readable or writable."""
        if client not in self._sockets:
            return  # dropped earlier in this round
        if not client.outbox and not self._receive(client):
            return
        self._flush(client)
        # As the real one: nothing is taken from a client that has not read its answers. That bounds the outbox.
        while not client.outbox and not client.closing and self._hub.step(client):
            self._flush(client)
            while self._hub.woken:
                self._flush(self._hub.woken.pop())
        self._flush(client)

    def _receive(self, client: Client) -> bool:
        try:
            data = self._sockets[client].recv(_CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return False
        client.inbox += data
        return True

    def _flush(self, client: Client) -> None:
        """Send what the client takes now, and listen for the right thing from here on."""
        connection = self._sockets.get(client)
        if connection is None:
            return
        try:
            while client.outbox:
                client.sent(self._send(connection, client))
        except BlockingIOError:
            self._selector.modify(connection, selectors.EVENT_WRITE, client)
            return
        except OSError:
            self._drop(client)
            return
        if client.closing:
            self._drop(client)
        else:
            self._selector.modify(connection, selectors.EVENT_READ, client)

    def _send(self, connection: socket.socket, client: Client) -> int:
        """Send some whole messages; how many bytes went."""
        size = count = 0
        for message in client.outbox:
            if count and size + len(message) > PIECE:
                break
            size += len(message)
            count += 1
        piece = b"".join([client.outbox[index] for index in range(count)])
        return connection.send(piece, socket.MSG_NOSIGNAL)

    def _drop(self, client: Client) -> None:
        self._hub.disconnect(client)
        connection = self._sockets.pop(client, None)
        if connection is not None:
            self._selector.unregister(connection)
            connection.close()
