# SPDX-License-Identifier: GPL-2.0-or-later
"""The owned record on disk, and the lock that serialises the passes of several processes."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from types import TracebackType

from ..core import owned_state
from ..errors import FileError
from . import files

LOCK_SECONDS = 5.0
_POLL_SECONDS = 0.005


class Ledger:
    """The record, held under the lock between `with` and its end.

    Args:
        folder: /run/qubes-guestnet; made 0755 when missing.
        reading: only read, without a lock and without write permission.

    Attributes:
        record: as it is on disk; empty when there is none.

    Raises:
        FileError: the folder cannot be written, or another process holds the lock for longer than 5 s.
    """

    def __init__(self, folder: str, *, reading: bool = False) -> None:
        self._folder = folder
        self._reading = reading
        self._path = os.path.join(folder, "owned")
        self._lock = -1
        self.record = owned_state.Record()

    def __enter__(self) -> Ledger:
        if self._reading:
            self._load()
            return self
        path = os.path.join(self._folder, "lock")
        try:
            os.makedirs(self._folder, mode=0o755, exist_ok=True)
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise FileError(path, error, "run as root") from None
        try:
            self._take(path)
            self._load()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._reading:
            os.close(self._lock)

    def _load(self) -> None:
        data = files.read(self._path)
        self.record = owned_state.parse(data) if data is not None else owned_state.Record()

    def save(self, changed: owned_state.Record) -> None:
        """Write the record if it differs; without fsync, because /run does not survive a reboot.

        `record` is the changed one from now on, also after a failure: the rest of the pass relies on it.
        """
        if changed != self.record:
            self.record = changed
            files.publish(self._path, owned_state.render(changed), sync=False)

    def _take(self, path: str) -> None:
        # flock() without a limit would block the agent while a command is suspended
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EINTR) or time.monotonic() > deadline:
                    raise FileError(
                        path, error, "another qubes-guestnet process holds the lock; is it suspended?"
                    ) from None
            time.sleep(_POLL_SECONDS)
