# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's QubesDB daemon with faults, for tests. Writing to `/fault` sets the next one; nothing is stored there.

- `cut N`: the next answer to each connection that asks stops after N bytes and the connection is closed; N may be 0
- `delay S`: every answer comes S seconds late (the daemon itself goes on; events are late too)
- `hang`: nothing is read, accepted or answered any more, as by a stopped process
- `drip N`: everything is sent in pieces of N bytes, however much that splits headers
- `none`: none of these

`python3 -m tests.support.programs.qubesdb_faulty --dir DIR [--set KEY=VALUE …]` runs one, and a second one in its
place may be started once it ended. For a daemon that hangs from outside, SIGSTOP the ordinary one.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType

from qubes_guestnet.lab import store_cli
from qubes_guestnet.lab.store import Daemon
from qubes_guestnet.lab.store_hub import Client, Hub

FAULT = b"/fault"


class FaultyHub(Hub):
    """Takes the orders."""

    fault: tuple[str, float] = ("none", 0)

    def _write(self, client: Client, path: bytes, value: bytes) -> None:
        super()._write(client, path, value)
        if path == FAULT:
            super()._remove(Client(writable=True), path)
            name, _, number = value.decode().partition(" ")
            self.fault = (name, float(number or 0))


class FaultyDaemon(Daemon):
    """Carries them out.

    Args:
        directory: where the sockets are made.
        hub: the database.
    """

    def __init__(self, directory: str, hub: Hub) -> None:
        assert isinstance(hub, FaultyHub)
        super().__init__(directory, hub)
        self._faulty = hub
        self._released = threading.Event()

    def stop(self) -> None:
        """As the ordinary one, also out of a hang."""
        self._released.set()
        super().stop()

    def _serve_client(self, client: Client) -> None:
        if self._faulty.fault[0] == "hang":
            self._released.wait()
        super()._serve_client(client)

    def _send(self, connection: socket.socket, client: Client) -> int:
        name, number = self._faulty.fault
        if client.outbox and FAULT in client.outbox[0]:
            return super()._send(connection, client)  # the order itself is answered
        if name == "cut":
            self._faulty.fault = ("none", 0)
            connection.send(b"".join(client.outbox)[: int(number)])
            raise OSError("cut")
        if name == "delay":
            self._released.wait(number)
        if name == "drip":
            piece = b"".join(client.outbox)[: int(number)]
            time.sleep(0.0002)  # let the reader see each piece
            return connection.send(piece)
        return super()._send(connection, client)


class Running(AbstractContextManager["Running"]):
    """A daemon in a thread, for `with`.

    Args:
        directory: where the sockets are made.
        entries: what is in the database from the start.
        each_removal: see `Hub`.
    """

    def __init__(
        self, directory: str, entries: Mapping[bytes, bytes] | None = None, *, each_removal: bool = False
    ) -> None:
        self.path = directory
        self.hub = FaultyHub(entries, each_removal=each_removal)
        self.daemon = FaultyDaemon(directory, self.hub)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.failure: BaseException | None = None
        self._thread.start()

    def _run(self) -> None:
        try:
            self.daemon.serve()
        except BaseException as error:  # reported by stop()
            self.failure = error
        finally:
            self.daemon.close()

    def stop(self) -> None:
        """End it; fails if it failed."""
        if self._thread.is_alive():
            self.daemon.stop()
        self._thread.join(10)
        assert not self._thread.is_alive(), "the daemon does not end"
        if self.failure:
            raise self.failure

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


if __name__ == "__main__":
    sys.exit(store_cli.main(hub=FaultyHub, daemon=FaultyDaemon))
