# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent's end of the name look-up (qubes-guestnet-names.socket): poll the descriptor, then read. No call waits.

The socket is systemd's, in a folder that only root can write to. The service that answers is not trusted, because it
reads what the network says.
"""

from __future__ import annotations

import errno
import socket
import time

from ..core.firewall import name_messages
from ..core.firewall.name_messages import Answer, Request
from ..errors import FileError, GuestnetError

NAME = "names.sock"  # in our folder below /run
# For all answers to one request: 128 names, 16 at once, 10 s each.
LIMIT_SECONDS = 90.0
_AT_ONCE = 64  # answers read in one turn of the loop
_NOT_THERE = (errno.ENOENT, errno.ECONNREFUSED)
_REMEDY = "systemctl restart qubes-guestnet-names.socket"


class LookUp:
    """One request, in flight.

    Args:
        path: of the socket.
        request: what to ask.

    Raises:
        GuestnetError: the unit is not there, or busy, or this is not root.
    """

    def __init__(self, path: str, request: Request) -> None:
        data = name_messages.render_request(request)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(path)
            self._socket.send(data)
        except OSError as error:
            self._socket.close()
            raise _problem(path, error) from None
        self._left = set(request.questions)
        self._end = time.monotonic() + LIMIT_SECONDS

    def fileno(self) -> int:
        """Return the descriptor for poll."""
        return self._socket.fileno()

    def read(self) -> tuple[Answer, ...]:
        """Return the answers that are there, at most 64; see `ended` then.

        Raises:
            GuestnetError: the look-up ended early, took too long, or said what is no answer to the request.
        """
        found: list[Answer] = []
        for _ in range(_AT_ONCE):
            try:
                data = self._socket.recv(name_messages.LONGEST_ANSWER + 1)
            except BlockingIOError:
                break
            except OSError as error:
                raise GuestnetError(f"the name look-up failed: {error.strerror or error}", _REMEDY) from None
            if not data:
                if self._left and not found:
                    raise GuestnetError("the name look-up ended early", "see: journalctl -u qubes-guestnet-names")
                break
            found.append(self._answer(data))
        if not found and self._left and time.monotonic() > self._end:
            raise GuestnetError(f"the name look-up has not ended within {LIMIT_SECONDS:g} s", _REMEDY)
        return tuple(found)

    def seconds_left(self) -> float:
        """Return how long to wait for an answer at most; then `read` raises."""
        return max(self._end - time.monotonic(), 0.0)

    @property
    def ended(self) -> bool:
        """Return whether each question has its answer."""
        return not self._left

    def close(self) -> None:
        """End it; what has no answer is given up there as well."""
        self._socket.close()

    def _answer(self, untrusted_data: bytes) -> Answer:
        try:
            answer = name_messages.parse_answer(untrusted_data)
        except ValueError as error:
            raise GuestnetError(f"malformed answer of the name look-up: {error}", _REMEDY) from None
        if answer.question not in self._left:
            raise GuestnetError(f"the name look-up answered {answer.question.name}, which was not requested", _REMEDY)
        self._left.remove(answer.question)
        return answer


def _problem(path: str, error: OSError) -> GuestnetError:
    if error.errno in _NOT_THERE:
        return GuestnetError(
            f"{path}: the socket of the name look-up does not exist", f"{_REMEDY}; is it enabled or masked?"
        )
    if isinstance(error, BrokenPipeError | ConnectionResetError):
        return GuestnetError(f"{path}: the name look-up refuses requests", "see: journalctl -u qubes-guestnet-names")
    if isinstance(error, BlockingIOError):
        return GuestnetError(f"{path}: the name look-up is busy and accepts no more requests", _REMEDY)
    return FileError(path, error, "run as root")
