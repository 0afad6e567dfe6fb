# SPDX-License-Identifier: GPL-2.0-or-later
"""The socket by which the hotplug command passes its work to the resident agent: one request, one reply.

SOCK_SEQPACKET preserves message boundaries, so there are no partial requests. Only root may connect: the mode of the
socket and the peer credentials (SO_PEERCRED) are checked.
"""

from __future__ import annotations

import errno
import select
import struct
import time

from ..errors import FileError
from . import plain_socket as socket
from . import root_socket
from .systemd import WARNING, log

NAME = "vif.sock"  # in our folder below /run
# A message is a few lines; a longer one is not from our command.
LONGEST = 65536
CLIENT_SECONDS = 0.5  # for a client that neither sends nor reads
_QUEUE = 256  # as many vifs as can appear at once; further clients wait
_CREDENTIALS = struct.Struct("3i")  # struct ucred: process, user, group
_NOT_LISTENING = (errno.ENOENT, errno.ECONNREFUSED)


class Reply:
    """Answer one request: call it once with the reply. Without a reply the client sees the connection close."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def __call__(self, data: bytes) -> None:
        """Send the reply and close. A client that is gone meanwhile is ignored: the work is done."""
        try:
            self._connection.send(data)
        except OSError as error:
            log(WARNING, f"vif.sock: cannot send an answer: {error.strerror or error}")
        self.close()

    def awaited(self) -> bool:
        """Return whether the client still waits. A client that gave up does the work itself, or has ended (B118)."""
        # Not by recv(): on a socket with a time limit that waits, also with MSG_DONTWAIT.
        poll = select.poll()
        poll.register(self._connection, 0)
        return not poll.poll(0)

    def close(self) -> None:
        """Close without an answer."""
        self._connection.close()


class Server:
    """The agent's end.

    Args:
        path: of the socket; its folder must exist. One that a former agent left is replaced.

    Raises:
        FileError: it cannot be made.
    """

    def __init__(self, path: str) -> None:
        self._socket = root_socket.listen(path, _QUEUE)

    def fileno(self) -> int:
        """Return the descriptor for poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening. The file stays: it may already belong to the next agent."""
        self._socket.close()

    def accept(self) -> tuple[bytes, Reply] | None:
        """Return one request and its reply object; None if it is missing, not from root, or late.

        Wait at most half a second for a connected client.
        """
        try:
            connection, _ = self._socket.accept()
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                log(WARNING, f"vif.sock: cannot accept a connection: {error.strerror or error}")
            return None
        try:
            question = _question(connection)
        except OSError as error:
            connection.close()
            log(WARNING, f"malformed request on vif.sock: {error.strerror or error}")
            return None
        return question, Reply(connection)


def request(path: str, data: bytes, seconds: float) -> bytes | None:
    """Send a request to the agent, and return its reply.

    Args:
        path: of its socket.
        data: the question.
        seconds: to wait for the answer.

    Returns:
        The reply; None if no agent listens, or no reply came in time or at all.

    Raises:
        FileError: the socket is there and cannot be used.
    """
    deadline = time.monotonic() + seconds
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as asking:
        try:
            asking.settimeout(seconds)
            asking.connect(path)
            asking.settimeout(max(deadline - time.monotonic(), 0.001))
            asking.send(data)
            asking.settimeout(max(deadline - time.monotonic(), 0.001))
            return asking.recv(LONGEST) or None
        except (TimeoutError, BlockingIOError, ConnectionResetError, BrokenPipeError):
            return None
        except OSError as error:
            if error.errno in _NOT_LISTENING:
                return None
            raise FileError(path, error, "run as root") from None


def _question(connection: socket.socket) -> bytes:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(raw)
    if user != 0:
        raise PermissionError(errno.EACCES, f"user {user} is not root")
    connection.settimeout(CLIENT_SECONDS)
    question = connection.recv(LONGEST + 1)
    if not 0 < len(question) <= LONGEST:
        raise OSError(errno.EBADMSG, "empty, or too long")
    return question
