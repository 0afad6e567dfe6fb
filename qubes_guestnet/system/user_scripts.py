# SPDX-License-Identifier: GPL-2.0-or-later
"""The users' firewall scripts: list them, run one, and publish the results."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ..core.provider import firewall_unit
from ..core.provider.firewall_unit import Scripts
from . import files, hooks, programs

PERSISTS = "custom-persist"
_NAME, _MODE = "firewall-scripts", 0o644


def persists(folder: str) -> bool:
    """Return whether the flag custom-persist is set.

    Args:
        folder: of the flags.
    """
    return os.path.exists(os.path.join(folder, PERSISTS))


def runnable(folders: Iterable[str], paths: Iterable[str]) -> tuple[str, ...]:
    """Return the executable files in folders, by name, and then those of single paths that are executable.

    Args:
        folders: a missing one has no scripts.
        paths: of single scripts.
    """
    found = []
    for folder in folders:
        try:
            found += [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
        except OSError:
            continue
    return tuple(script.path for script in hooks.facts((*found, *paths)) if script.executable)


def run(path: str) -> str:
    """Run a script to its end, however long that takes, with our environment, output and control group.

    Args:
        path: of the script.

    Returns:
        Why it failed; "" for success.
    """
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.waitstatus_to_exitcode(os.waitpid(_start(path, null), 0)[1])
    except OSError as error:
        return error.strerror or str(error)
    finally:
        os.close(null)
    if status < 0:
        return f"ended by signal {-status}"
    return f"exit status {status}" if status else ""


def publish(run_folder: str, scripts: Scripts) -> None:
    """Publish the results of the scripts so far. Raises FileError."""
    files.publish(os.path.join(run_folder, _NAME), firewall_unit.render(scripts), _MODE, sync=False)


def read(run_folder: str) -> Scripts:
    """Return what was written down last. Raises FileError."""
    return firewall_unit.parse(files.read(os.path.join(run_folder, _NAME)) or b"")


def _start(path: str, null: int) -> int:
    def spawn(words: tuple[str, ...]) -> int:
        actions = [(os.POSIX_SPAWN_DUP2, null, 0)]
        return os.posix_spawn(
            words[0], words, os.environ, file_actions=actions, setsigmask=(), setsigdef=programs.DEFAULTED
        )

    return programs.spawned((path,), spawn)
