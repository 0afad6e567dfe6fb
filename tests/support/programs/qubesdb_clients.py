# SPDX-License-Identifier: GPL-2.0-or-later
"""The two clients of the store behind one fixture, so that one test body runs over both.

`direct` speaks the protocol; `binding` goes through the stand-in; `library` goes through the installed binding, whose
socket is compiled in: see test_store_contract.py for the mount namespace it needs.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator

import pytest

from qubes_guestnet.system.qubesdb import store as qubesdb
from qubes_guestnet.system.qubesdb.direct import READ_WRITE
from tests.support.programs import qubesdb_standin
from tests.support.programs.qubesdb_faulty import Running

LIBRARY = "GUESTNET_TEST_REAL_QUBESDB"
KINDS = ["library"] if LIBRARY in os.environ else ["direct", "binding"]
ENTRIES = {
    b"/qubes-ip": b"10.137.0.7",
    b"/qubes-ip6": b"",
    b"/qubes-mac": b"00:16:3e:5e:6c:00",
    b"/net-config/00:16:3e:5e:6c:01/ip": b"10.1.0.1",
    b"/net-config/00:16:3e:5e:6c:01/custom": b"",
    b"/long": b"x" * 3071,
    b"/bytes": bytes(range(1, 256)),
}


class Kind:
    """One client, and the folder whose daemon it talks to.

    Args:
        name: see the module.
        directory: of the sockets.
    """

    def __init__(self, name: str, directory: str) -> None:
        self.name = name
        self.directory = directory
        self._opened: list[qubesdb.Store | qubesdb.Watches] = []

    @property
    def _forced(self) -> str | None:
        return self.directory if self.name == "direct" else None

    def connect(self, *, writable: bool = False, timeout: float = 5.0) -> qubesdb.Store:
        """A store; closed at the end of the test."""
        store = qubesdb.connect(writable=writable, directory=self._forced, timeout=timeout)
        self._opened.append(store)
        return store

    def watches(self, *paths: str, timeout: float = 5.0) -> qubesdb.Watches:
        """Watches; closed at the end of the test."""
        watches = qubesdb.connect_watches(paths, directory=self._forced, timeout=timeout)
        self._opened.append(watches)
        return watches

    def serve(self, entries: dict[bytes, bytes] | None = None) -> Running:
        """A daemon for it."""
        return Running(self.directory, ENTRIES if entries is None else entries)

    def close(self) -> None:
        """Close what the test opened."""
        for opened in self._opened:
            opened.close()


def folder() -> Iterator[str]:
    """A folder whose name is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="qdb-") as name:
        yield name


def kind_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kind]:
    """Body of a fixture with `params=KINDS`."""
    monkeypatch.delenv(qubesdb.DIRECTORY_VARIABLE, raising=False)
    folders: Iterable[str] = ["/var/run/qubes"] if request.param == "library" else folder()
    for directory in folders:
        if request.param == "binding":
            monkeypatch.setitem(sys.modules, "qubesdb", qubesdb_standin)
            monkeypatch.setattr(qubesdb_standin, "SOCKET", os.path.join(directory, READ_WRITE))
            monkeypatch.setattr(qubesdb, "DIRECTORY", directory)
        kind = Kind(request.param, directory)
        yield kind
        kind.close()
