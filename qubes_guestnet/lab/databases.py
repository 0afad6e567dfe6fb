# SPDX-License-Identifier: GPL-2.0-or-later
"""The QubesDB daemons of a lab's qubes; dom0's writes are single and recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..errors import StoreError
from ..system.qubesdb import store as qubesdb
from .namespaces import LabError
from .qube import QUBESDB_FOLDER
from .vm import Vm

WRITE, RM = "write", "rm"


class Operation(NamedTuple):
    """One operation of dom0.

    Args:
        verb: `write` and `rm` of an entry; `create`, `attach`, `detach`, `pause`, `resume`, `ask`, `end`, `delete`.
        qube: the name of the qube it was done to; of an interface, that of the provider.
        what: the entry, the interface, or the service that was asked.
        value: of the entry; of an interface, what xenstore says of it.
    """

    verb: str
    qube: str
    what: str = ""
    value: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.verb, self.qube, self.what))) + (f" = {self.value}" if self.value else "")


class Databases:
    """dom0's connections to every QubesDB.

    Attributes:
        operations: all operations, in order.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def did(self, verb: str, vm: Vm, what: str = "", value: str = "") -> None:
        """Record an operation."""
        self.operations.append(Operation(verb, vm.name, what, value))

    def start_store(self, vm: Vm) -> None:
        """Start its QubesDB daemon with dom0's entries, at the start of the qube and after a crash of the daemon."""
        vm.running.start_store({key: value.decode() for key, value in vm.database.items()})

    def write(self, vm: Vm, key: str, value: str | bytes) -> None:
        """Write one entry. While the qube's daemon is down dom0 stores the entry until the daemon's next start."""
        self.do_all(vm, [(WRITE, key, value)])

    def write_all(self, vm: Vm, entries: Mapping[str, str]) -> None:
        """Write several, one after the other."""
        self.do_all(vm, [(WRITE, key, value) for key, value in entries.items()])

    def remove(self, vm: Vm, key: str) -> None:
        """Remove one entry, or with a slash at the end all below. dom0 does the second to firewall rules alone."""
        self.do_all(vm, [(RM, key, "")])

    def do_all(self, vm: Vm, operations: Iterable[tuple[str, str, str | bytes]]) -> None:
        """Carry out operations, one after the other, by one connection as dom0 does.

        Args:
            vm: whose QubesDB. While its daemon is down dom0 stores the entries until the daemon's next start.
            operations: `WRITE` or `RM`, key, and value.
        """
        daemon = vm.running.store_daemon
        store = self._connect(vm) if daemon is not None and daemon.running else None
        try:
            for verb, key, value in operations:
                raw = value.encode() if isinstance(value, str) else value
                self.did(verb, vm, key, raw.decode(errors="replace"))
                if verb == WRITE:
                    vm.database[key] = raw
                else:
                    _forget(vm.database, key)
                if store is not None and verb == WRITE:
                    store.write(key, raw)
                elif store is not None:
                    store.rm(key)
        finally:
            if store is not None:
                store.close()

    def read_all(self, vm: Vm) -> dict[str, bytes]:
        """Return every entry its QubesDB daemon has now."""
        store = self._connect(vm)
        try:
            return store.multiread("/")
        finally:
            store.close()

    def _connect(self, vm: Vm) -> qubesdb.Store:
        try:
            return qubesdb.connect(writable=True, directory=str(vm.running.path(QUBESDB_FOLDER)))
        except StoreError as error:
            raise LabError(f"QubesDB of {vm.name}: {error}") from error


def _forget(database: dict[str, bytes], key: str) -> None:
    for each in [each for each in database if each == key or (key.endswith("/") and each.startswith(key))]:
        del database[each]
