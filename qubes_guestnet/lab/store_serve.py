# SPDX-License-Identifier: GPL-2.0-or-later
"""Serve a QubesDB until a signal: what `qubes-guestnet lab store` does without a verb.

Run as `python3 -m qubes_guestnet.lab.store_serve FOLDER [KEY=VALUE…]` it is the daemon of a qube of the lab. Each qube
has one, so it imports no command line: it starts in 25 ms of processor time, `lab store` in 70.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable

from ..errors import GuestnetError, UsageError, printable
from ..system.qubesdb.direct import READ_WRITE
from . import interruption
from .store import Daemon
from .store_hub import Hub

TYPE_CHECKING = False  # of `typing`, which costs 5 ms
if TYPE_CHECKING:
    from types import FrameType


def entries_of(words: Iterable[str]) -> dict[bytes, bytes]:
    """Return the entries that KEY=VALUE words give; UsageError: one has no `=`."""
    entries = {}
    for text in words:
        path, equals, value = os.fsencode(text).partition(b"=")
        if not equals:
            raise UsageError(f"--set {text}: there is no `=`", "write --set KEY=VALUE")
        entries[path] = value
    return entries


def serve(directory: str, hub: Hub, entries: int, daemon: type[Daemon] = Daemon) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        directory: where the sockets are made.
        hub: the database.
        entries: how many it has, for the line that says that it is ready.
        daemon: what to serve with.

    Returns:
        The exit status.

    Raises:
        StoreError: the sockets cannot be made.
    """
    serving = daemon(directory, hub)
    ended_by: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        ended_by.append(number)
        serving.stop()

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        print(f"ready: serving {directory}/{READ_WRITE} with {entries} entries", flush=True)
        serving.serve()
    finally:
        serving.close()
    if signal.SIGINT in ended_by:
        interruption.say()
    return 0


def main(directory: str, *words: str) -> int:
    """Serve KEY=VALUE words; return the exit status, 1 after an error, which is told."""
    try:
        entries = entries_of(words)
        return serve(directory, Hub(entries), len(entries))
    except GuestnetError as error:
        print(f"qubes-guestnet: {printable(str(error))}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
