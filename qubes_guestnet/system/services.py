# SPDX-License-Identifier: GPL-2.0-or-later
"""What the qube's owner chose: qvm-service flags and /etc/qubes/guestnet.toml; and the one service we restart."""

from __future__ import annotations

import os

from ..core.uplink.desired import Flags, Style
from ..errors import ConfigError, FileError, printable, shown
from . import files, programs

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from typing import Any

    from ..core.dns.upstream_servers import DnsSettings
    from ..core.firewall.name_settings import NameSettings
    from ..core.nft.limits import Limits

FLAGS_FOLDER = "/run/qubes-service"
CONFIG_FILE = "/etc/qubes/guestnet.toml"
PROVIDES = "qubes-network"
FILTERS = "qubes-firewall"
# In the run folder: this program enforces the lists, not core-agent's daemon. qubes-firewall.service makes it.
ENFORCES = "firewall"
NO_OFFLOAD = "guestnet-no-offload"
FIREWALL = "qubes-firewall"
UPDATES_PROXY = "qubes-updates-proxy"
_RESTART_SECONDS = 5.0
# In the order of the fields of Flags.
_NAMES = ("disable-default-route", "disable-dns-server", "guestnet-gateway-route")


def flags(folder: str = FLAGS_FOLDER) -> Flags:
    """Return the flags that are set; the files' content does not matter."""
    return Flags(*(os.path.exists(os.path.join(folder, name)) for name in _NAMES))


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


def provides(folder: str = FLAGS_FOLDER) -> bool:
    """Return whether the flag is set without which a qube never forwards: templates have it not (#7801)."""
    return os.path.exists(os.path.join(folder, PROVIDES))


def filters(folder: str = FLAGS_FOLDER) -> bool:
    """Return whether the flag is set with which the qubes behind this one have a firewall."""
    return os.path.exists(os.path.join(folder, FILTERS))


def enforces(folder: str, run: str) -> bool:
    """Return whether this program enforces the lists of single qubes, and not the daemon of core-agent.

    Args:
        folder: of the flags.
        run: /run/qubes-guestnet.
    """
    return filters(folder) and os.path.exists(os.path.join(run, ENFORCES))


def set_enforced(run: str, *, on: bool = True) -> None:
    """Have the agent enforce the lists of single qubes from its next pass on, or no more.

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


def has_updates_proxy(folder: str = FLAGS_FOLDER) -> bool:
    """Return whether the updates proxy is a service of this qube: its flag is set, and systemctl is there."""
    return bool(programs.find("systemctl")) and os.path.exists(os.path.join(folder, UPDATES_PROXY))


def has_firewall(folder: str = FLAGS_FOLDER) -> bool:
    """Return whether the firewall of the qubes is a service of this qube: its flag is set, and systemd runs."""
    return os.path.exists(os.path.join(folder, FIREWALL)) and os.path.isdir("/run/systemd/system")


def queue_job(verb: str, unit: str) -> None:
    """Have systemd queue a job for a unit; its end is not waited for.

    Args:
        verb: of systemctl.
        unit: with its suffix.

    Raises:
        ProgramError: systemctl cannot be started, or says no; it may later.
    """
    _systemctl(("--no-block", verb, unit))


def firewall_state() -> str:
    """Return what systemd says of it: active, activating, failed …; "queued" while a start or stop of it waits.

    Raises:
        ProgramError: systemctl cannot be started, or says no.
    """
    return _firewall_state()[0]


def firewall_unit() -> str:
    """Return the same for a look from outside; "" where there is no such unit, and where systemd does not run.

    Raises:
        ProgramError: as `firewall_state`.
    """
    if not os.path.isdir("/run/systemd/system"):
        return ""
    state, loaded = _firewall_state()
    return "" if loaded == "not-found" else state


def _firewall_state() -> tuple[str, str]:
    names = ("ActiveState", "Job", "LoadState")
    output = _systemctl(("show", *(f"--property={name}" for name in names), f"{FIREWALL}.service"))
    said = dict(line.partition("=")[::2] for line in output.splitlines())
    state = "queued" if said.get("Job", "0") not in ("", "0") else said.get("ActiveState", "unknown")
    return state, said.get("LoadState", "")


def _systemctl(words: tuple[str, ...]) -> str:
    program = programs.find("systemctl")
    if not program:
        raise programs.ProgramError("systemctl is not installed", "install systemd")
    done = programs.run((program, *words), _RESTART_SECONDS)
    if done.status:
        problem = f"systemctl {' '.join(words)}: {done.output[-200:] or f'exit status {done.status}'}"
        raise programs.ProgramError(problem, f"trying again; see systemctl status {words[-1]}")
    return done.output
