# SPDX-License-Identifier: GPL-2.0-or-later
"""Read /etc/qubes/guestnet.toml, the settings of the qube's owner. The rooms of `core` parse its tables."""

from __future__ import annotations

from ..core.uplink.desired import Style
from ..errors import ConfigError, printable, shown
from . import files
from .paths import CONFIG_FILE

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from typing import Any

    from ..core.dns.upstream_servers import DnsSettings
    from ..core.firewall.name_settings import NameSettings
    from ..core.nft.limits import Limits


def holds_after_flush(path: str = CONFIG_FILE) -> bool:
    """`hold_after_flush` of the file's `[provider]` table: forwarding stays closed after the rules were lost.

    Raises:
        ConfigError: the file is not TOML, or the value is neither true nor false.
        FileError: it cannot be read.
    """
    remedy = "[provider] hold_after_flush is true or false"
    with _Table(path, "provider", remedy) as table:
        value = table.get("hold_after_flush", False)
        if not isinstance(value, bool):
            raise ValueError(f"[provider] hold_after_flush: {shown(str(value).encode())}")
        return value


def configured_limits(path: str = CONFIG_FILE) -> Limits:
    """Return the limits of each qube behind this one, as the file's `[provider]` table has them.

    Raises:
        ConfigError: the file is not TOML, or has something in that table that is not valid.
        FileError: it cannot be read.
    """
    from ..core.nft import limits  # a provider's alone

    with _Table(path, "provider", "the limits in force stay until it is fixed") as table:
        return limits.parse(table)


def configured_style(path: str = CONFIG_FILE) -> Style | None:
    """`default-route` of the file's `[uplink]` table; None where it is not given.

    Raises:
        ConfigError: the file is not TOML, or names a style there is not.
        FileError: it cannot be read.
    """
    with _Table(path, "uplink", '[uplink] default-route is "device" or "gateway"') as table:
        text = table.get("default-route")
        return None if text is None else Style(text)


def configured_dns(path: str = CONFIG_FILE) -> DnsSettings:
    """Return the file's `[dns]` table.

    Raises:
        ConfigError: the file is not TOML, or has something in that table that is not valid.
        FileError: it cannot be read.
    """
    from ..core.dns.upstream_servers import parse_settings  # a provider's alone

    with _Table(path, "dns", "the DNS redirection stays until it is fixed") as table:
        return parse_settings(table)


def configured_names(path: str = CONFIG_FILE) -> NameSettings:
    """Return the file's `[firewall]` table.

    Raises:
        ConfigError: the file is not TOML, or has something in that table that is not valid.
        FileError: it cannot be read.
    """
    from ..core.firewall import name_settings  # of a provider that enforces the lists of single qubes

    with _Table(path, "firewall", "the settings of [firewall] in force stay until it is fixed") as table:
        return name_settings.parse(table)


class _Table:
    """One table of the file, {} where there is none, while a block reads its values.

    Args:
        path: of the file.
        name: of the table.
        remedy: for the ConfigError that is raised in place of a ValueError of the block.
    """

    def __init__(self, path: str, name: str, remedy: str) -> None:
        self._path, self._name, self._remedy = path, name, remedy

    def __enter__(self) -> Any:
        return _table(self._path, self._name, self._remedy)

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, ValueError):
            raise ConfigError(f"{self._path}: {error}", self._remedy) from None


def _table(path: str, name: str, remedy: str) -> Any:
    """Return one table of the file, {} where there is none.

    Raises:
        ConfigError: the file is not TOML, or has a table or a key that the program does not know.
        FileError: it cannot be read.
    """
    data = files.read(path)
    if data is None:
        return {}
    import tomllib  # 5 ms that only a qube with such a file pays

    from ..core import config

    # One text for all tables, because one mistake is one error.
    whole = "fix it; until then all its settings are ignored, and forwarding is treated as with hold_after_flush"
    try:
        text = data.decode()
        config.check_lines(text)
        document = tomllib.loads(text)
        config.check_tables(document)
    except config.Unknown as error:
        raise ConfigError(f"{path}: {error}", error.remedy) from None
    except RecursionError:
        raise ConfigError(f"{path}: brackets are nested too deeply", whole) from None
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors too
        raise ConfigError(f"{path}: {printable(str(error))}", whole) from None
    table = document.get(name, {})
    try:
        config.check_keys(name, table)
    except config.Unknown as error:
        raise ConfigError(f"{path}: {error}", f"{error.remedy}; {remedy}") from None
    return table
