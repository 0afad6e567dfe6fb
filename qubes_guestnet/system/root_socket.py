# SPDX-License-Identifier: GPL-2.0-or-later
"""The listening sockets of the resident agent: messages keep their boundaries, and only root can connect."""

from __future__ import annotations

import os
import stat

from ..errors import FileError
from . import plain_socket as socket


def listen(path: str, queue: int) -> socket.socket:
    """Return a non-blocking SOCK_SEQPACKET socket that listens.

    Args:
        path: of the socket; its folder must exist. One that a former agent left is replaced.
        queue: connections that may wait.

    Raises:
        FileError: it cannot be made.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        _remove_stale(path)
        made.bind(path)
        os.chmod(path, 0o600)  # before listen(): until then no process can connect
        made.listen(queue)
        made.setblocking(False)
    except OSError as error:
        made.close()
        raise FileError(path, error, "run as root") from None
    return made


def _remove_stale(path: str) -> None:
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        return
