# SPDX-License-Identifier: GPL-2.0-or-later
"""The per-interface settings of sysctl.d, applied to an interface by systemd-sysctl (behaviour B17).

Its own precedence counts, so a user's file in /etc/sysctl.d wins. systemd-udevd does the same when an interface
appears, but nobody waits for it, and a packet can be out before. Nothing else of the interface is changed (B16).
"""

from __future__ import annotations

import os

from . import programs
from .systemd import WARNING, log

_PROGRAMS = ("/usr/lib/systemd/systemd-sysctl", "/lib/systemd/systemd-sysctl")
_FOLDERS = ("ipv4/conf", "ipv4/neigh", "ipv6/conf", "ipv6/neigh")
_SECONDS = 1.0


def apply(interface: str) -> None:
    """Apply what the sysctl.d files say for this interface; without systemd-sysctl do nothing. Failures are logged."""
    program = next((path for path in _PROGRAMS if os.access(path, os.X_OK)), "")
    if not program:
        return
    # In sysctl's own notation with slashes a dot in the name (a VLAN's) stays a dot.
    prefixes = tuple(f"--prefix=/net/{folder}/{interface}" for folder in _FOLDERS)
    try:
        done = programs.run((program, *prefixes), _SECONDS)
    except programs.ProgramError as error:
        log(WARNING, str(error))
        return
    if done.status:
        log(WARNING, f"systemd-sysctl for {interface}: exit status {done.status}: {done.output}")
