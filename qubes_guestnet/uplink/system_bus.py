# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent's connection to the system bus, which is reopened after each loss."""

from __future__ import annotations

import os
import time

from ..system import dir_watch, networkmanager, programs, retry_pause
from ..system.dbus import resolved
from ..system.systemd import WARNING, log

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..system.dbus import bus as dbus


class BusHolder:
    """The system bus: opened when it exists, reopened when it returns, and never waited for.

    The pauses between attempts grow, because any program can end each connection with an overlong message or a flood
    (B111). Until then resolvectl is used.
    """

    SERVICES = (resolved.SERVICE, networkmanager.SERVICE)
    LASTING_SECONDS = 60.0  # after a connection of this age the pauses start again from the shortest

    def __init__(self, resident: bool) -> None:
        self._resident = resident
        self._bus: dbus.Bus | None = None
        self._library = True
        self._folder, self._names = dir_watch.Folders(), dir_watch.Folders()
        self._command: resolved.ByCommand | None = None
        self._following = False
        self._attempts = 0
        self._opened = self._again = float("-inf")
        self._told = False

    def fileno(self) -> int:
        """-1 while closed."""
        return self._bus.fileno() if self._bus is not None else -1

    def open(self) -> None:
        """Connect if the bus exists and is not connected yet."""
        if not self._resident and not resolved.present():
            return
        from ..system.dbus import bus as dbus  # 0.7 ms that `apply` pays only where the bus exists

        if self._resident:
            self._watch(dbus.ADDRESS if self._library else f"{resolved.FOLDER}/x")
        if self._bus is not None or not self._library or not os.path.exists(dbus.ADDRESS):
            return
        if time.monotonic() < self._again:
            return
        try:
            bus = dbus.Bus()
        except ImportError as error:
            self._library = False
            if not isinstance(error, ModuleNotFoundError):
                log(WARNING, f"{error}; using resolvectl for systemd-resolved")
            return
        except dbus.BusError:
            self._pause()
            return
        try:
            if self._resident:
                for service in self.SERVICES:
                    bus.watch_owner(service)
                if self._following:
                    bus.watch_properties(resolved.SERVICE)
        except dbus.BusError as error:
            bus.close()
            self._lost(error)
            return
        self._bus, self._opened = bus, time.monotonic()

    def due(self) -> float | None:
        """Return the time of the next pass (monotonic clock), None if none is needed. Call it after each pass.

        A pass is needed to reopen the bus, or at once if a change was reported during a call of this pass.
        """
        now = time.monotonic()
        if self._bus is not None:
            return now if self._bus.signalled() else None
        return self._again if self._resident and self._again > now else None

    def _pause(self) -> None:
        self._attempts += 1
        self._again = time.monotonic() + retry_pause.pause(self._attempts)

    def _lost(self, error: dbus.BusError) -> None:
        from ..system.dbus import bus as dbus

        # The age of the connection and not of the outage: where a stalled bus accepts no client, each attempt stops the
        # agent for half a second, and the pauses have to stay long for as long as that goes on (B111).
        if self._bus is not None and time.monotonic() - self._opened > self.LASTING_SECONDS:
            self._attempts, self._told = 0, False
        self._bus = None
        self._pause()
        if isinstance(error, (dbus.TooLong, dbus.Crowded)) and not self._told:
            self._told = True
            log(WARNING, f"{error}; the connection is closed, and opened again with pauses. Some program in this qube "
                "sends such messages to this service")  # fmt: skip

    def follow_names(self) -> None:
        """See OtherServices.follow_names. Without a bus, only the folder's changes wake the agent."""
        if not self._following and self._bus is not None:
            self._bus.close()
            self._bus = None  # the next connection subscribes when it opens
        self._following = True
        self._names.watch((resolved.FOLDER,))

    def drain(self) -> bool:
        """See OtherServices.drain."""
        if self._bus is None:
            return False
        from ..system.dbus import bus as dbus

        try:
            return self._bus.drain()
        except dbus.BusError as error:
            self._bus.close()
            self._lost(error)
            return True

    def instead(self) -> resolved.ByBus | resolved.ByCommand | None:
        """Return resolvectl for systemd-resolved if the bus ended the connection during a call; else None.

        A connection that is new and that another program waits for ends just then: in the pass that opened it.
        """
        if self._bus is None or not self._bus.ended:
            return None
        self.drain()
        return self.resolved()

    def resolved(self) -> resolved.ByBus | resolved.ByCommand | None:
        """Return the way to systemd-resolved; None for none."""
        if self._bus is not None:
            return resolved.ByBus(self._bus)
        if self._command is None:
            program = programs.find("resolvectl")
            self._command = resolved.ByCommand(program) if program else None
        return self._command

    def _watch(self, path: str) -> None:
        """Wake the agent by a change in the nearest existing folder above `path`."""
        if self._bus is not None:
            return
        folder = os.path.dirname(path)
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        self._folder.watch((folder,))
