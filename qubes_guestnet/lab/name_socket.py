# SPDX-License-Identifier: GPL-2.0-or-later
"""The socket of the name look-up in a qube without systemd: the program starts when a client waits, and may end.

python3 -m qubes_guestnet.lab.name_socket [ARGUMENT OF PYTHON …]
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections.abc import Sequence

from ..system.names_client import NAME
from ..system.paths import Paths

FIRST_SOCKET = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
PROGRAM = ("-I", "-m", "qubes_guestnet.names")
_PAUSE_SECONDS = 0.2  # between two starts


def listening(path: str) -> socket.socket:
    """Return the socket, for root alone as in the unit; its path is there once it listens."""
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    new = f"{path}.new"
    if os.path.exists(new):
        os.unlink(new)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.bind(new)
    os.chmod(new, 0o600)
    made.listen(16)
    os.rename(new, path)
    return made


def serve(server: socket.socket, arguments: Sequence[str]) -> None:
    """Start the program for each client that finds none, for ever.

    Args:
        server: listens.
        arguments: of Python.
    """
    while True:
        select.select([server], [], [])
        process = os.fork()
        if not process:
            os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
            os.dup2(server.fileno(), FIRST_SOCKET)
            os.set_inheritable(FIRST_SOCKET, True)
            os.execv(sys.executable, [sys.executable, *arguments])
        print(f"started {process}", flush=True)
        os.waitpid(process, 0)
        time.sleep(_PAUSE_SECONDS)


if __name__ == "__main__":
    serve(listening(os.path.join(Paths().run, NAME)), tuple(sys.argv[1:]) or PROGRAM)
