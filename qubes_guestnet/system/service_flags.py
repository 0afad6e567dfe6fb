# SPDX-License-Identifier: GPL-2.0-or-later
"""The flags of this qube, files that are there or not: qvm-service's in /run/qubes-service, one in our folder."""

from __future__ import annotations

import os

from ..core.uplink.desired import Flags
from ..errors import FileError
from . import files
from .paths import FLAGS_FOLDER

PROVIDES = "qubes-network"
FILTERS = "qubes-firewall"
NO_OFFLOAD = "guestnet-no-offload"
UPDATES_PROXY = "qubes-updates-proxy"
# In our folder: this program enforces the lists, not core-agent's daemon. qubes-firewall.service makes it.
ENFORCES = "firewall"
# In the order of the fields of Flags.
_NAMES = ("disable-default-route", "disable-dns-server", "guestnet-gateway-route")


def flags(folder: str = FLAGS_FOLDER) -> Flags:
    """Return the flags that are set; the files' content does not matter."""
    return Flags(*(os.path.exists(os.path.join(folder, name)) for name in _NAMES))


def provides(folder: str = FLAGS_FOLDER) -> bool:
    """Return whether the flag is set without which a qube never forwards: templates have it not (#7801)."""
    return os.path.exists(os.path.join(folder, PROVIDES))


def filters(folder: str = FLAGS_FOLDER) -> bool:
    """Return whether the flag is set with which the qubes behind this one have a firewall."""
    return os.path.exists(os.path.join(folder, FILTERS))


def proxies_updates(folder: str = FLAGS_FOLDER) -> bool:
    """Return whether the flag of the updates proxy is set."""
    return os.path.exists(os.path.join(folder, UPDATES_PROXY))


def enforces(folder: str, run: str) -> bool:
    """Return whether this program enforces the lists of single qubes, and not the daemon of core-agent.

    Args:
        folder: of the flags.
        run: /run/qubes-guestnet.
    """
    return filters(folder) and os.path.exists(os.path.join(run, ENFORCES))


def set_enforced(run: str, *, on: bool = True) -> None:
    """Make the agent enforce the lists of client qubes from its next pass on, or stop that.

    Args:
        run: /run/qubes-guestnet, which is there.
        on: whether it is to.

    Raises:
        FileError: the file that says so cannot be made, or removed.
    """
    path = os.path.join(run, ENFORCES)
    if on:
        files.publish(path, b"", sync=False)
        return
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise FileError(path, error, "run as root") from None


def may_offload(folder: str = FLAGS_FOLDER) -> bool:
    """Return whether connections may be offloaded, as far as the qube's owner is concerned."""
    return not os.path.exists(os.path.join(folder, NO_OFFLOAD))
