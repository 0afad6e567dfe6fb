# SPDX-License-Identifier: GPL-2.0-or-later
"""Paths of a qube's files."""

from __future__ import annotations

from ..core.namedtuple import NamedTuple
from . import services


class Paths(NamedTuple):
    """Files and folders of a qube."""

    run: str = "/run/qubes-guestnet"
    resolv_conf: str = "/etc/resolv.conf"
    flags: str = services.FLAGS_FOLDER
    config: str = services.CONFIG_FILE
