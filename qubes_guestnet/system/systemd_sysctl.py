# SPDX-License-Identifier: GPL-2.0-or-later
"""The per-interface settings of sysctl.d, applied to an interface by systemd-sysctl (behaviour B17).

Its own precedence counts, so a user's file in /etc/sysctl.d wins. systemd-udevd does the same when an interface
appears, but no program waits for it, and a packet can leave earlier. No other setting of the interface is changed
(B16).
"""

from __future__ import annotations

import os

from . import programs
from .systemd import WARNING, log

_PROGRAMS = ("/usr/lib/systemd/systemd-sysctl", "/lib/systemd/systemd-sysctl")
_FOLDERS = ("ipv4/conf", "ipv4/neigh", "ipv6/conf", "ipv6/neigh")
_SECONDS = 1.0
# Of qubes-core-agent-networking, with its user's changes; ours, with the same settings, where that is not installed.
_HARDENING = ("/etc/sysctl.d/81-qubes.conf.optional", "/usr/share/qubes-guestnet/harden-network-interfaces.conf")
_HARDENING_SECONDS = 5.0


def apply(interface: str) -> None:
    """Apply what the sysctl.d files say for this interface; without systemd-sysctl do nothing. Failures are logged."""
    program = _program()
    if not program:
        return
    try:
        done = programs.run((program, *_prefixes(interface)), _SECONDS)
    except programs.ProgramError as error:
        log(WARNING, str(error))
        return
    if done.status:
        log(WARNING, f"systemd-sysctl for {interface}: exit status {done.status}: {done.output}")


def harden(interface: str) -> None:
    """Apply the settings of the service harden-network-interfaces to an interface, and those for all interfaces.

    Raises:
        ProgramError: not every one of them is in force.
    """
    program = _program()
    file = next((path for path in _HARDENING if os.path.isfile(path)), "")
    if not program or not file:
        missing = "systemd-sysctl" if not program else _HARDENING[0]
        remedy = "install it, or switch the service harden-network-interfaces off"
        raise programs.ProgramError(f"{interface} is not hardened: {missing} is missing", remedy)
    done = programs.run((program, *_prefixes("all"), *_prefixes(interface), file), _HARDENING_SECONDS)
    if done.status:
        problem = f"cannot harden {interface} with {file}: systemd-sysctl: {done.output[-200:]}"
        raise programs.ProgramError(problem, "fix that file, or switch the service harden-network-interfaces off")


def _program() -> str:
    return next((path for path in _PROGRAMS if os.access(path, os.X_OK)), "")


def _prefixes(interface: str) -> tuple[str, ...]:
    # In sysctl's own notation with slashes a dot in the name (a VLAN's) stays a dot.
    return tuple(f"--prefix=/net/{folder}/{interface}" for folder in _FOLDERS)
