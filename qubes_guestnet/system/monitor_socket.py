# SPDX-License-Identifier: GPL-2.0-or-later
"""How `monitor` follows the resident agent: each line of its journal, sent to each process that is connected.

A follower never makes the agent wait: lines that do not fit into its socket are counted, and the next line says so.
Only root can connect, by the mode of the socket.
"""

from __future__ import annotations

import select
import time

from ..errors import FileError, GuestnetError
from . import plain_socket as socket
from . import root_socket

NAME = "monitor.sock"  # in our folder below /run
LONGEST = 65536
_FOLLOWERS = 8


class Server:
    """The agent's end.

    Args:
        path: of the socket; its folder must exist. One that a former agent left is replaced.

    Raises:
        FileError: it cannot be made.
    """

    def __init__(self, path: str) -> None:
        self._followers: list[tuple[socket.socket, int]] = []  # each with how many lines it lost
        self._socket = root_socket.listen(path, _FOLLOWERS)

    def fileno(self) -> int:
        """For poll."""
        return self._socket.fileno()

    def accept(self, greeting: str) -> None:
        """Take one more follower, and greet it; with too many, the one that came first is left."""
        try:
            made, _ = self._socket.accept()
        except OSError:
            return
        made.setblocking(False)
        self._followers = [each for each in self._followers if not _has_gone(each[0])]
        if len(self._followers) >= _FOLLOWERS:
            self._followers.pop(0)[0].close()
        self._followers.append((made, 0))
        self.send(6, "agent", greeting, only=made)

    def send(self, level: int, kind: str, text: str, only: socket.socket | None = None) -> None:
        """Send a line to all followers.

        Args:
            level: of syslog(3).
            kind: what the line is about.
            text: one line.
            only: to this one alone.
        """
        if not self._followers:
            return
        kept = []
        for follower, lost in self._followers:
            if only is not None and follower is not only:
                kept.append((follower, lost))
                continue
            line = f"{time.time():.6f} {level} {kind} {lost} {text}"
            try:
                follower.send(line.encode("utf-8", "backslashreplace")[:LONGEST])
                kept.append((follower, 0))
            except BlockingIOError:
                kept.append((follower, lost + 1))
            except OSError:
                follower.close()
        self._followers = kept

    def close(self) -> None:
        """End it for all followers. The file stays: it may be the next agent's already."""
        for follower, _ in self._followers:
            follower.close()
        self._socket.close()


def receive(following: socket.socket) -> bytes:
    """The next line for a follower; b"" when the agent has ended, whether it closed the connection or was killed."""
    try:
        return following.recv(LONGEST)
    except ConnectionResetError:
        return b""


class Line:
    """One line as a follower gets it: `when` in seconds since the epoch, level, kind, lines lost before it, text."""

    def __init__(self, data: bytes) -> None:
        when, level, kind, lost, *rest = data.decode("utf-8", "replace").split(" ", 4)
        self.when, self.level, self.kind, self.lost = float(when), int(level), kind, int(lost)
        self.text = rest[0] if rest else ""


def connect(path: str) -> socket.socket:
    """Return a follower's end; each `recv` gives one line, and b"" when the agent has ended.

    Raises:
        GuestnetError: no agent listens, or this user may not connect.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        made.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        made.close()
        raise GuestnetError("the resident agent is not running", "systemctl start qubes-guestnet") from None
    except OSError as error:
        made.close()
        raise FileError(path, error, "run as root") from None
    return made


def _has_gone(follower: socket.socket) -> bool:
    poll = select.poll()
    poll.register(follower, 0)
    return bool(poll.poll(0))
