# SPDX-License-Identifier: GPL-2.0-or-later
"""What the qube's owner chose: qvm-service flags and /etc/qubes/guestnet.toml."""

from __future__ import annotations

import os

from ..core.uplink import Flags, Style
from ..errors import ConfigError
from . import files

FLAGS_FOLDER = "/run/qubes-service"
CONFIG_FILE = "/etc/qubes/guestnet.toml"
# In the order of the fields of Flags.
_NAMES = ("disable-default-route", "disable-dns-server", "guestnet-gateway-route")


def flags(folder: str = FLAGS_FOLDER) -> Flags:
    """The flags that are set; the files' content does not matter."""
    return Flags(*(os.path.exists(os.path.join(folder, name)) for name in _NAMES))


def configured_style(path: str = CONFIG_FILE) -> Style | None:
    """`default-route` of the file's `[uplink]` table; None where it is not given.

    Raises:
        ConfigError: the file is not TOML, or names a style there is not.
        FileError: it cannot be read.
    """
    data = files.read(path)
    if data is None:
        return None
    import tomllib  # 5 ms that only a qube with such a file pays

    remedy = '[uplink] default-route is "device" or "gateway"'
    try:
        table = tomllib.loads(data.decode()).get("uplink", {})
        text = table.get("default-route") if isinstance(table, dict) else table
        return None if text is None else Style(text)
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors too
        raise ConfigError(f"{path}: {error}", remedy) from None
