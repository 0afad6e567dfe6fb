# SPDX-License-Identifier: GPL-2.0-or-later
"""Show a notification on the desktop of the qube's user, outside the agent's sandbox."""

from __future__ import annotations

import pwd

from . import programs, transient_unit

_SECONDS = 10.0
# The folder of the bus is out of reach of the agent's sandbox. The words behind these are arguments, and no shell text.
_WHERE_THERE_IS_A_DESKTOP = ("/bin/sh", "-c", '[ ! -S "$BUS" ] || exec "$@"', "sh")


def notify(user: str, title: str, text: str) -> None:
    """Start to show a notification; nothing where there is no desktop, no such user or no program for it.

    Args:
        user: name of the user.
        title: of the notification.
        text: of it; markup is shown as it is.

    Raises:
        ProgramError: it was not started.
    """
    runuser, send = programs.find("runuser"), programs.find("notify-send")
    try:
        number = pwd.getpwnam(user).pw_uid
    except (KeyError, OSError):
        return
    bus = f"/run/user/{number}/bus"
    if not (runuser and send):
        return
    shown = text.replace("&", "&amp;").replace("<", "&lt;")
    words = (
        *_WHERE_THERE_IS_A_DESKTOP,
        runuser,
        "-u",
        user,
        "--",
        send,
        "--app-name=qubes-guestnet",
        "--",
        title,
        shown,
    )
    environment = {"BUS": bus, "DBUS_SESSION_BUS_ADDRESS": f"unix:path={bus}"}
    transient_unit.start((transient_unit.Command("firewall-notice", words, environment),), _SECONDS)
