# SPDX-License-Identifier: GPL-2.0-or-later
"""Paths of a qube's files."""

from __future__ import annotations

from ..core.namedtuple import NamedTuple

FLAGS_FOLDER = "/run/qubes-service"
CONFIG_FILE = "/etc/qubes/guestnet.toml"


class Paths(NamedTuple):
    """Files and folders of a qube."""

    run: str = "/run/qubes-guestnet"
    resolv_conf: str = "/etc/resolv.conf"
    flags: str = FLAGS_FOLDER
    config: str = CONFIG_FILE
