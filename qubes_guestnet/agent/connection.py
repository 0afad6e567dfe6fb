# SPDX-License-Identifier: GPL-2.0-or-later
"""The resident agent's connections to QubesDB, opened and closed together."""

from __future__ import annotations

from ..core import settings
from ..errors import StoreError
from ..system.qubesdb import store as qubesdb
from ..system.signals import Signals
from ..system.systemd import INFO, WARNING, log

_MOST_SEEN = 4096


class Connection:
    """A pair of connections to QubesDB: one for watches, one for reads."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self._watches: qubesdb.Watches | None = None
        self._store: qubesdb.Store | None = None
        self.attempts = 0
        self.watched, self.prefixes = settings.WATCHED, settings.UPLINK_PREFIXES
        self._seen: dict[str, None] = {}  # what watches told of since the firewall's entries were read
        self._aside, self._fresh = False, True

    @property
    def up(self) -> bool:
        """Return whether both are open."""
        return self._store is not None

    def open(self) -> None:
        """Connect; set the watches before the first read, or a change between the two would be lost."""
        try:
            self._watches = qubesdb.connect_watches(self.watched)
            self._store = qubesdb.connect()
        except OSError as error:  # out of file descriptors
            raise StoreError(f"QubesDB cannot be reached: {error.strerror or error}") from None
        self._signals.register(self._watches.fileno())
        self._fresh = True

    def watch(self, watched: tuple[str, ...], prefixes: tuple[str, ...]) -> bool:
        """Watch and read these from now on; return whether they differ from the former ones. Raises StoreError."""
        if (self.watched, self.prefixes) == (watched, prefixes):
            return False
        self.close()
        self.watched, self.prefixes = watched, prefixes
        self.open()
        return True

    def close(self) -> None:
        """Close both; do nothing if they are closed."""
        if self._watches is not None:
            if self._store is not None:
                self._signals.unregister(self._watches.fileno())
            self._watches.close()
        if self._store is not None:
            self._store.close()
        self._watches = self._store = None

    def fileno(self) -> int:
        """Return the descriptor for poll; -1 while closed."""
        return self._watches.fileno() if self._watches is not None else -1

    def drain(self) -> bool:
        """Consume pending watch events; return whether there were any. Raises StoreError."""
        if self._watches is None or not self._watches.drain():
            return False
        for path in self._watches.paths:  # each in the place of its last event
            self._seen.pop(path, None)
            self._seen[path] = None
        if len(self._seen) > _MOST_SEEN:
            from ..core.firewall import entries  # of a list with very many rules

            self._seen = dict.fromkeys(entries.gathered(self._seen))
        if len(self._seen) > _MOST_SEEN:
            self._seen, self._fresh = {}, True
        return True

    @property
    def paths(self) -> tuple[str, ...]:
        """Return the paths that the watches reported last."""
        return self._watches.paths if self._watches is not None else ()

    # --- for the firewall of single qubes ------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """See `provider.firewall.Source`."""
        return self._fresh or bool(self._seen)

    def read(self) -> tuple[dict[str, bytes], tuple[str, ...], tuple[str, ...], bool]:
        """See `provider.firewall.Source`. Other paths that the watches report meanwhile are kept for `take_aside`."""
        from ..core.firewall import entries  # few providers

        if self._store is None:
            raise StoreError("QubesDB is not connected")
        fresh, seen = self._fresh, tuple(self._seen)
        found = qubesdb.read_all(self._store, (entries.FOLDER,))
        self._seen, self._fresh = {}, False
        if self.drain():
            self._aside = self._aside or not self.paths or bool(entries.others(self.paths))
        meanwhile, self._seen = tuple(self._seen), {}
        return found, seen, meanwhile, fresh

    def take_aside(self) -> bool:
        """Return, once, whether watches reported other entries while those of the firewall were read."""
        aside, self._aside = self._aside, False
        return aside

    def entries(self) -> dict[str, bytes]:
        """Read all relevant entries; in a provider also those about its client qubes.

        Raises:
            StoreError: QubesDB does not answer.
        """
        if self._store is None:
            raise StoreError("QubesDB is not connected")
        return qubesdb.read_all(self._store, self.prefixes)

    def failed(self, error: StoreError) -> None:
        """Count an attempt; the first of an outage is logged."""
        self.attempts += 1
        if self.attempts == 1:
            log(WARNING, f"{error}; the configuration stays, trying again")

    def answered(self) -> None:
        """End an outage, if there was one."""
        if self.attempts:
            log(INFO, f"QubesDB answers again after {self.attempts} attempts")
        self.attempts = 0
