# SPDX-License-Identifier: GPL-2.0-or-later
"""The QubesDB of the lab without its sockets: bytes of clients in, bytes for clients out.

Bytes, limits and errors are those of the daemon inside a qube. Where that one keeps events for a client without limit,
or ends (before 2026 when everything is removed), this one goes on.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping

from ..errors import ConfigError, shown
from ..system.qubesdb import wire

# A client that does not read its events is dropped at this many bytes; a whole database is far smaller.
BACKLOG_LIMIT = 8 << 20


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
        """Return the first `size` bytes of the inbox, removed from it."""
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
        """Return a new client."""
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
        """Return whether the header passes the checks; else its data is dropped and ERROR answered."""
        if header.kind > wire.CMD_UNWATCH or not wire.valid_path(header.path) or header.length >= wire.DATA_LIMIT:
            return False
        if header.kind in (wire.CMD_WRITE, wire.CMD_RM) and not client.writable:
            return False
        return header.length == 0 or header.kind not in (wire.CMD_RM, wire.CMD_LIST, wire.CMD_MULTIREAD)

    def _complete(self, client: Client, header: wire.Header) -> bool:
        """Return whether the data that the command will look at is there."""
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
        """Return the paths that begin with the prefix; they are neighbours in the sorted list."""
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
