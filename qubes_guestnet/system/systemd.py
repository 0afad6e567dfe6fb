# SPDX-License-Identifier: GPL-2.0-or-later
"""What systemd wants to hear from a service: sd_notify(3), and the log level in front of a line (sd-daemon(3)).

python3-systemd would bring a C library and 1 MB for these few lines.
"""

from __future__ import annotations

import os
import socket
import sys

ERROR, WARNING, INFO = 3, 4, 6  # syslog(3)
NOTIFY_SECONDS = 0.5  # a socket that nobody reads holds ten messages, and the eleventh would wait for ever


def notify(*lines: str) -> None:
    """Send assignments such as "READY=1"; without NOTIFY_SOCKET, or when nobody listens there, do nothing."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(NOTIFY_SECONDS)
        try:
            sock.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            log(WARNING, f"NOTIFY_SOCKET {path}: {error}")


def watchdog_seconds() -> float | None:
    """How often to send WATCHDOG=1: half of what systemd allows; None when it does not ask for it."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not microseconds.isdigit():
        return None
    return int(microseconds) / 2e6 or None


def log(level: int, text: str) -> None:
    """A line for the journal on standard error; with its level in front when that is the journal (sd-daemon(3)).

    `logging` would take 6 ms and 1 MB (design, budgets).

    Args:
        level: ERROR, WARNING or INFO.
        text: one line; further ones are joined to it.
    """
    prefix = f"<{level}>" if os.environ.get("JOURNAL_STREAM") else ""
    try:
        sys.stderr.write(prefix + " | ".join(text.splitlines()) + "\n")
        sys.stderr.flush()
    except OSError:
        return  # whoever read standard error went away; the network matters more
