# SPDX-License-Identifier: GPL-2.0-or-later
"""Notifications to systemd: sd_notify(3), and the log level in front of a line (sd-daemon(3)).

python3-systemd would bring a C library and 1 MB for these few lines.
"""

from __future__ import annotations

import os
import select
import sys

from ..errors import printable
from . import plain_socket as socket

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from collections.abc import Callable

ERROR, WARNING, INFO, DEBUG = 3, 4, 6, 7  # syslog(3)
NOTIFY_SECONDS = 0.5  # an unread socket holds ten messages, and the eleventh would block for ever
LOG_SECONDS = 0.5  # the same of standard error, when journald is stopped or the reader of a pipe is (B119)
_PIECE = 4096  # select.PIPE_BUF: what is writable takes so much without waiting (pipe(7))


class _State:
    """Facts that are reported once: lost lines, and the last failure of NOTIFY_SOCKET."""

    lost = 0
    failure = unfollowed = ""
    verbose = False
    follower: Callable[[int, str, str], None] | None = None


def notify(*lines: str) -> bool:
    """Send assignments such as "READY=1"; without NOTIFY_SOCKET do nothing.

    Returns:
        False when they were not taken. That is logged once, until some are taken again.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return True
    address = "\0" + path[1:] if path.startswith("@") else path
    failure = ""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(NOTIFY_SECONDS)
            sock.sendto("\n".join(lines).encode("utf-8", "backslashreplace"), address)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        failure = f"NOTIFY_SOCKET {path}: {error}"
    if failure and failure != _State.failure:
        log(WARNING, failure)
    _State.failure = failure
    return not failure


def watchdog_seconds() -> float | None:
    """Return how often to send WATCHDOG=1: half of what systemd allows; None when it does not ask for it."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not microseconds.isdigit():
        return None
    return int(microseconds) / 2e6 or None


def tell_all(verbose: bool) -> None:
    """Log lines of the level DEBUG too, or not."""
    _State.verbose = verbose


def follow(follower: Callable[[int, str, str], None] | None) -> None:
    """Call a function with level, kind and text of each line, even of the level DEBUG; None ends that."""
    _State.follower = follower


def log(level: int, text: str, kind: str = "message") -> None:
    """Write a line to standard error, prefixed with its level if that is the journal (sd-daemon(3)).

    `logging` would take 6 ms and 1 MB (design, budgets).

    Args:
        level: ERROR, WARNING, INFO or DEBUG.
        text: one line; further ones are joined to it.
        kind: what it is about, for `monitor`.
    """
    shown = printable(" | ".join(text.splitlines()))
    _followed(level, kind, shown)
    if level == DEBUG and not _State.verbose:
        return
    line = (f"<{level}>" if os.environ.get("JOURNAL_STREAM") else "") + shown
    if _State.lost:
        line += f" ({_State.lost} lines before this one were lost: standard error was not read)"
    if _written(f"{line}\n"):
        _State.lost = 0
    else:
        _State.lost += 1


def _followed(level: int, kind: str, text: str) -> None:
    """Hand a line to the follower. Its failure is logged once, until it takes a line again: log() raises nothing."""
    follower, problem = _State.follower, ""
    if follower is None:
        return
    try:
        follower(level, kind, text)
    except Exception as error:
        problem = f"`monitor` has lost lines: {error}"
    told, _State.unfollowed = _State.unfollowed, problem
    if problem and not told:
        log(WARNING, problem)


def _written(line: str) -> bool:
    """Write a line to standard error as long as that takes it; False when it does not in time, or not at all.

    After a line that was not taken the next one does not wait at all: a hundred of them would be a minute.
    """
    seconds = 0.0 if _State.lost else LOG_SECONDS
    poll = select.poll()
    try:
        poll.register(sys.stderr.fileno(), select.POLLOUT)
        waits = True
    except (OSError, ValueError, AttributeError):
        waits = False  # no file of the system's
    try:
        for begin in range(0, len(line), _PIECE):
            if waits and not poll.poll(seconds * 1000):
                return False
            sys.stderr.write(line[begin : begin + _PIECE])
            sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        return False  # the reader of standard error is gone, or it is closed; the network matters more
    return True
