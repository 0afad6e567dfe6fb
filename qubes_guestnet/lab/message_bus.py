# SPDX-License-Identifier: GPL-2.0-or-later
"""Become dbus-broker with the listening socket and the journal that it expects from systemd.

    python -m qubes_guestnet.lab.message_bus SOCKET CONFIG

Its journal messages go to standard error.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from typing import NoReturn

from .namespaces import die_with_parent

JOURNAL = "/run/systemd/journal/socket"
LISTEN_FD = 3  # the first one of sd_listen_fds(3)
_LONGEST = 1 << 16


def main(path: str, config: str) -> NoReturn:
    """Pass the sockets to the program, and execute it."""
    with _bound(socket.SOCK_DGRAM, JOURNAL) as journal:
        if os.fork() == 0:
            die_with_parent()
            _tell(journal)
    listener = _bound(socket.SOCK_STREAM, path)
    listener.listen(64)
    os.chmod(path, 0o666)
    if listener.fileno() != LISTEN_FD:
        os.dup2(listener.fileno(), LISTEN_FD)
    os.set_inheritable(LISTEN_FD, True)
    environment = {**os.environ, "LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    words = ["dbus-broker-launch", "--scope", "system", "--config-file", config]
    os.execvpe(words[0], words, environment)


def _bound(kind: int, path: str) -> socket.socket:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    made = socket.socket(socket.AF_UNIX, kind)
    made.bind(path)
    return made


def _tell(journal: socket.socket) -> NoReturn:
    while True:
        lines = journal.recv(_LONGEST).decode(errors="replace").splitlines()
        print(*(line for line in lines if line.startswith("MESSAGE=")), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
