# SPDX-License-Identifier: GPL-2.0-or-later
"""What systemd wants to hear from a service: sd_notify(3), and the log level in front of a line (sd-daemon(3)).

python3-systemd would bring a C library and 1 MB for these few lines.
"""

from __future__ import annotations

import logging
import os
import socket
import sys

_LEVELS = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def notify(*lines: str) -> None:
    """Send assignments such as "READY=1"; without NOTIFY_SOCKET, or when nobody listens there, do nothing."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            logging.getLogger(__name__).debug("NOTIFY_SOCKET %s: %s", path, error)


def watchdog_seconds() -> float | None:
    """How often to send WATCHDOG=1: half of what systemd allows; None when it does not ask for it."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not microseconds.isdigit():
        return None
    return int(microseconds) / 2e6 or None


class _JournalFormatter(logging.Formatter):
    """The level as the journal reads it from a stream: `<3>` in front of an error."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).replace("\n", " | ")
        return f"<{_LEVELS.get(record.levelno, 6)}>{text}"


def log_to_stderr(level: int) -> None:
    """Messages of this program to standard error, with levels when that is the journal."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JournalFormatter() if os.environ.get("JOURNAL_STREAM") else logging.Formatter("%(message)s"))
    logger = logging.getLogger("qubes_guestnet")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level)
