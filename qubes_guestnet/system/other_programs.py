# SPDX-License-Identifier: GPL-2.0-or-later
"""Look for other programs: processes, tunnels, and default routes. For `check` and `status` only."""

from __future__ import annotations

import os

from ..core.check.coexisting_services import DefaultRoute, Presence
from . import programs

_PROC = "/proc"
_ROUTES = "/proc/net/route"
_INTERFACES = "/sys/class/net"
_UP = 0x1  # RTF_UP
_PASTA = ("pasta", "passt")
# Some VPNs cover the default route with two halves, 0.0.0.0/1 and 128.0.0.0/1.
_WHOLE, _HALF = "00000000", "00000080"


def look() -> Presence:
    """Return the present state."""
    return Presence(_programs(), _tunnels(), _defaults(), next(filter(_installed, _PASTA), ""))


def _installed(name: str) -> bool:
    return bool(programs.find(name))


def _programs() -> frozenset[str]:
    return frozenset(_read(f"{_PROC}/{pid}/comm").strip() for pid in os.listdir(_PROC) if pid.isdigit())


def _tunnels() -> tuple[str, ...]:
    try:
        names = sorted(os.listdir(_INTERFACES))
    except OSError:
        return ()
    return tuple(
        name
        for name in names
        if "DEVTYPE=wireguard" in _read(f"{_INTERFACES}/{name}/uevent")
        or os.path.exists(f"{_INTERFACES}/{name}/tun_flags")
    )


def _defaults() -> tuple[DefaultRoute, ...]:
    """Return the IPv4 default routes and the halves of one, in the kernel's order."""
    found: list[DefaultRoute] = []
    for line in _read(_ROUTES).splitlines()[1:]:
        name, destination, _, flags, _, _, metric, mask, *_ = line.split()
        if destination == _WHOLE and mask in (_WHOLE, _HALF) and int(flags, 16) & _UP:
            found.append(DefaultRoute(name, int(metric), half=mask == _HALF))
    return tuple(found)


def _read(path: str) -> str:
    try:
        # A process can choose any name (B120).
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
