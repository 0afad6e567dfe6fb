# SPDX-License-Identifier: GPL-2.0-or-later
"""NetworkManager's profile files, and calls of `nmcli` in bounded time."""

from __future__ import annotations

import os

from ..core.uplink.networkmanager import FOLDER, ManagerFacts, is_ours
from ..errors import FileError, GuestnetError
from . import files, programs

SERVICE = "org.freedesktop.NetworkManager"
FLAG = "network-manager"
PRIVATE = 0o600  # NetworkManager ignores profiles that other users can read
_SECONDS = 1.0
_NOT_RUNNING = 8  # nmcli(1), exit status
_LONGEST_PROFILE = 1 << 16


class NotRunning(GuestnetError):
    """NetworkManager is not running (yet). It reads our profile when it starts."""


def facts(flags: str) -> ManagerFacts:
    """Return the facts for the choice of the manager.

    Args:
        flags: folder of the service flags.
    """
    flag = os.path.exists(os.path.join(flags, FLAG))
    return ManagerFacts(flag, flag and bool(programs.find("nmcli")))


def profiles() -> tuple[str, ...]:
    """Return file names of the profiles that are ours."""
    return tuple(name for name in _listed() if is_ours(name))


def _listed() -> list[str]:
    try:
        return sorted(os.listdir(FOLDER))
    except OSError:
        return []


def holds(name: str, text: bytes) -> bool:
    """Return whether a profile's file has exactly this text."""
    try:
        return files.read(os.path.join(FOLDER, name)) == text
    except FileError:
        return False


def publish(name: str, text: bytes) -> None:
    """Write a profile.

    Raises:
        FileError: it cannot be written.
    """
    try:
        os.makedirs(FOLDER, mode=0o755, exist_ok=True)
    except OSError as error:
        raise FileError(FOLDER, error, "run as root") from None
    files.publish(os.path.join(FOLDER, name), text, PRIVATE)


def remove(name: str, uuid: str) -> None:
    """Remove a profile, from NetworkManager if it runs and has loaded it, and from disk.

    Args:
        name: of its file.
        uuid: "" for a file that names none.

    Raises:
        FileError: the file cannot be removed.
    """
    try:
        if uuid:
            _nmcli("connection", "delete", "uuid", uuid)
    except (NotRunning, programs.ProgramError):
        pass  # removing the file is enough
    path = os.path.join(FOLDER, name)
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise FileError(path, error, "run as root") from None


def load(name: str) -> None:
    """Make it load a profile, because it does not watch the folder. Raises NotRunning or another GuestnetError."""
    _nmcli("connection", "load", os.path.join(FOLDER, name))


def device(interface: str) -> tuple[str, str]:
    """Return the state of an interface, and the uuid of its active or activating profile, "" for none.

    Raises:
        NotRunning: NetworkManager is not there.
        ProgramError: it gives no answer.
    """
    state, _, uuid = _nmcli("-g", "GENERAL.STATE,GENERAL.CON-UUID", "device", "show", interface).partition("\n")
    return state.strip(), uuid.strip()


def activate(interface: str, uuid: str) -> None:
    """Activate a profile on an interface without waiting for the end."""
    _nmcli("--wait", "0", "connection", "up", "uuid", uuid, "ifname", interface)


def _nmcli(*words: str) -> str:
    done = programs.run((programs.find("nmcli"), *words), _SECONDS)
    if done.status == _NOT_RUNNING:
        raise NotRunning("NetworkManager is not running")
    if done.status:
        raise programs.ProgramError(f"nmcli {' '.join(words)}: {done.output[-200:]}")
    return done.output


def saved() -> dict[str, str]:
    """Return the texts of all profiles of other programs, by file name."""
    found = {}
    for name in _listed():
        try:
            data = files.read(os.path.join(FOLDER, name), _LONGEST_PROFILE)
        except FileError:
            continue
        if data is not None and not is_ours(name):
            found[name] = data.decode("utf-8", "surrogateescape")
    return found


def rewrite(name: str, text: str) -> None:
    """Rewrite another program's profile. Raises FileError."""
    files.publish(os.path.join(FOLDER, name), text.encode("utf-8", "surrogateescape"), PRIVATE)


def reapply(interface: str) -> None:
    """Apply a changed profile without taking the device down. Raises ProgramError."""
    _nmcli("--wait", "0", "device", "reapply", interface)


def uuid_of(name: str) -> str:
    """Return the uuid that a profile's file names, "" for none."""
    try:
        data = files.read(os.path.join(FOLDER, name), _LONGEST_PROFILE) or b""
    except FileError:
        return ""
    found = (line for line in data.decode("utf-8", "replace").splitlines() if line.startswith("uuid="))
    return next(found, "").removeprefix("uuid=").strip()
