# SPDX-License-Identifier: GPL-2.0-or-later
"""A QubesDB daemon in memory, for the lab: the wire protocol, limits and errors of the one inside a qube.

`Hub` is the protocol: bytes of clients in, bytes for clients out, no sockets. `Daemon` is the loop that carries the
bytes. The real daemon waits for a client that does not read, keeps events for it without limit, and ends on a failed
assertion when a 257th client comes or, before 2026, when everything is removed; this one goes on serving the others.
"""

from __future__ import annotations

import os
import re
import selectors
import socket
import stat
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping

from qubes_guestnet.errors import ConfigError, StoreError, shown
from qubes_guestnet.system import qubesdb_wire as wire
from qubes_guestnet.system.qubesdb import READ_ONLY, READ_WRITE

# A client that does not read its events is dropped at this many bytes; a whole database is far smaller.
BACKLOG_LIMIT = 8 << 20
# The C client takes a header in one read() and gives up on a shorter one. The kernel queues a send of this size in one
# piece or not at all, so whole messages in pieces up to this size never show it half a header.
PIECE = 16384
_CHUNK = 65536
_SOCKET_QUEUE = 128
_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")


class Client:
    """What the hub knows of one connection.

    Args:
        writable: came in by the read-write socket.
    """

    def __init__(self, *, writable: bool) -> None:
        self.writable = writable
        self.inbox = bytearray()
        self.outbox: deque[bytes] = deque()
        self.out_bytes = 0
        self.watches: list[bytes] = []
        self.refused: bytes | None = None  # path to answer ERROR for, once `discard` more bytes were dropped
        self.discard = 0
        self.closing = False  # ends once the outbox is sent

    def put(self, kind: int, path: bytes = b"", data: bytes = b"") -> None:
        """Queue one message for this client."""
        message = wire.pack(kind, path, data)
        self.outbox.append(message)
        self.out_bytes += len(message)

    def sent(self, count: int) -> None:
        """The first `count` bytes of the outbox went out."""
        self.out_bytes -= count
        while count:
            message = self.outbox.popleft()
            if count < len(message):
                self.outbox.appendleft(message[count:])
                return
            count -= len(message)

    def take(self, size: int) -> bytes:
        """The first `size` bytes of the inbox, removed from it."""
        taken = bytes(self.inbox[:size])
        del self.inbox[:size]
        return taken


class Hub:
    """The database, its clients and the protocol.

    Args:
        entries: what is in the database from the start.
        each_removal: whether removing a folder causes an event for every entry that was in it, as daemons from 2026 on
            do. Those of Qubes 4.3 send one event, with the folder's path, and a watch of one entry in it stays silent.

    Raises:
        ConfigError: an entry cannot be stored.
    """

    def __init__(self, entries: Mapping[bytes, bytes] | None = None, *, each_removal: bool = False) -> None:
        self._values: dict[bytes, bytes] = {}
        self._paths: list[bytes] = []  # in the order of strcmp()
        self._each_removal = each_removal
        self.clients: set[Client] = set()
        self.woken: set[Client] = set()  # have new events in their outbox; the loop empties it
        for path, value in (entries or {}).items():
            if not self._store(path, value):
                raise ConfigError(f"{shown(path)} is not a QubesDB entry", "it must begin, and not end, with a slash")

    def connect(self, *, writable: bool) -> Client:
        """A new client."""
        client = Client(writable=writable)
        self.clients.add(client)
        return client

    def disconnect(self, client: Client) -> None:
        """The client went away, and its watches with it."""
        self.clients.discard(client)
        self.woken.discard(client)

    def step(self, client: Client) -> bool:
        """Answer one message of the client's inbox, if a whole one is there.

        Returns:
            False when more bytes must come first, or none are wanted any more (`client.closing`).
        """
        if client.refused is None and not client.closing:
            if len(client.inbox) < wire.HEADER_SIZE:
                return False
            header = wire.unpack(client.inbox)
            if header.kind <= wire.CMD_UNWATCH:  # of an unknown type not even the path is looked at
                header = header._replace(path=header.path[: wire.PATH_SIZE - 1])
            if not self._complete(client, header):
                return False
            del client.inbox[: wire.HEADER_SIZE]
            self._handle(client, header)
        if client.refused is not None:
            client.discard -= len(client.take(min(client.discard, len(client.inbox))))
            if client.discard:
                return False
            client.put(wire.RESP_ERROR, client.refused)
            client.refused = None
        return not client.closing

    def _acceptable(self, client: Client, header: wire.Header) -> bool:
        """Whether the header passes the checks; else its data is dropped and ERROR answered."""
        if header.kind > wire.CMD_UNWATCH or not wire.valid_path(header.path) or header.length >= wire.DATA_LIMIT:
            return False
        if header.kind in (wire.CMD_WRITE, wire.CMD_RM) and not client.writable:
            return False
        return header.length == 0 or header.kind not in (wire.CMD_RM, wire.CMD_LIST, wire.CMD_MULTIREAD)

    def _complete(self, client: Client, header: wire.Header) -> bool:
        """Whether the data that the command will look at is there."""
        wanted = header.kind == wire.CMD_WRITE and self._acceptable(client, header)
        return not wanted or len(client.inbox) >= wire.HEADER_SIZE + header.length

    def _handle(self, client: Client, header: wire.Header) -> None:
        kind, path, length = header
        if not self._acceptable(client, header):
            client.refused, client.discard = path, length
        elif kind == wire.CMD_READ:
            self._read(client, path, length)
        elif kind == wire.CMD_WRITE:
            self._write(client, path, client.take(length))
        elif kind == wire.CMD_MULTIREAD:
            # The whole database goes backwards: it was meant to fill a sorted list on the other side.
            for found in self._below(path) if path else reversed(self._paths):
                client.put(wire.RESP_MULTIREAD, found, self._values[found])
            client.put(wire.RESP_MULTIREAD)
        elif kind == wire.CMD_LIST:
            for found in self._below(path):
                client.put(wire.RESP_LIST, found)
            client.put(wire.RESP_LIST)
        elif kind == wire.CMD_RM:
            self._remove(client, path)
        elif kind == wire.CMD_WATCH:  # data, if any, is left in the stream, here and below, as by the real one
            client.watches.append(path)
            client.put(wire.RESP_OK, path)
        elif path in client.watches:
            client.watches.remove(path)  # one of them, if it was set more than once
            client.put(wire.RESP_OK, path)
        else:
            client.put(wire.RESP_NOENT, path)

    def _read(self, client: Client, path: bytes, length: int) -> None:
        if length:
            client.closing = True  # the one mistake that costs the connection without an answer
        elif path in self._values:
            client.put(wire.RESP_READ, path, self._values[path])
        else:
            client.put(wire.RESP_NOENT, path)

    def _write(self, client: Client, path: bytes, value: bytes) -> None:
        if b"\0" in value:
            client.put(wire.RESP_ERROR, path)
        elif not self._store(path, value):
            client.put(wire.RESP_ERROR, path)
            client.closing = True
        else:
            client.put(wire.RESP_OK, path)
            self._fire(path)

    def _remove(self, client: Client, path: bytes) -> None:
        removed = self._below(path) if path.endswith(b"/") else [path] if path in self._values else []
        if not removed:
            client.put(wire.RESP_NOENT, path)
            return
        start = bisect_left(self._paths, removed[0])
        del self._paths[start : start + len(removed)]
        for gone in removed:
            del self._values[gone]
        client.put(wire.RESP_OK, path)
        for event in removed if self._each_removal else [path]:
            self._fire(event)

    def _store(self, path: bytes, value: bytes) -> bool:
        if not path.startswith(b"/") or path.endswith(b"/") or not wire.valid_path(path):
            return False
        if path not in self._values:
            self._paths.insert(bisect_left(self._paths, path), path)
        self._values[path] = value
        return True

    def _below(self, prefix: bytes) -> list[bytes]:
        """The paths that begin with the prefix; they are neighbours in the sorted list."""
        start = stop = bisect_left(self._paths, prefix)
        while stop < len(self._paths) and self._paths[stop].startswith(prefix):
            stop += 1
        return self._paths[start:stop]

    def _fire(self, path: bytes) -> None:
        """One event for each watch that matches, also to the client that caused it, also when nothing changed."""
        for client in self.clients:
            for watch in client.watches:
                if path.startswith(watch) if watch.endswith(b"/") else path == watch:
                    client.put(wire.RESP_WATCH, path)
                    self.woken.add(client)
            if client.out_bytes > BACKLOG_LIMIT:
                client.outbox.clear()
                client.out_bytes = 0
                client.closing = True


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
                pass  # nobody there
            else:
                raise StoreError(f"{path} is served already", "stop that daemon, or give another --dir")
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
        """Something can be read from, or sent to, this client."""
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


def parse_entries(text: bytes, name: str) -> dict[bytes, bytes]:
    """Entries from a file: one `/path = value` a line, as `multiread` prints them.

    Empty lines and lines that begin with `#` are left out. In values, two hex digits after a backslash and an x are
    that byte.

    Args:
        text: content of the file.
        name: of the file, for the message.

    Raises:
        ConfigError: a line is no entry.
    """
    entries = {}
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip() or line.startswith(b"#"):
            continue
        path, equals, value = line.partition(b"=")
        if not equals:
            raise ConfigError(f"{name}, line {number}: {shown(line)} is no entry", "write `/path = value`")
        value = value.removeprefix(b" ") if path.endswith(b" ") else value
        entries[path.strip()] = unescape(value)
    return entries


def escape(value: bytes) -> str:
    r"""A value as the command line tools of QubesDB print it: what is not printable ASCII becomes \xNN."""
    return "".join([chr(byte) if 0x20 <= byte < 0x80 else f"\\x{byte:02x}" for byte in value])


def unescape(text: bytes) -> bytes:
    """The value that `escape` printed."""
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), text)
