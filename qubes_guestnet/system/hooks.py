# SPDX-License-Identifier: GPL-2.0-or-later
"""List a user's hooks, and start them outside the agent's sandbox."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from ..core.hooks import HOOKS, NETWORK_HOOKS, HookFacts
from ..errors import FileError
from . import transient_unit

RUN = "/run/qubes-guestnet"  # as `Paths` has it, which knows of this package


def facts(paths: Iterable[str] = HOOKS) -> tuple[HookFacts, ...]:
    """Return the existing hooks."""
    found = []
    for path in paths:
        try:
            mode = os.stat(path).st_mode
        except OSError:
            continue
        executable = stat.S_ISREG(mode) and bool(mode & 0o111)
        found.append(HookFacts(path, executable, os.path.realpath(path)))
    return tuple(found)


def network_hooks(folder: str = NETWORK_HOOKS) -> tuple[str, ...]:
    """Return the paths of the vif hooks, in the order of their names."""
    try:
        return tuple(os.path.join(folder, name) for name in sorted(os.listdir(folder)))
    except OSError:
        return ()  # no folder, no hooks


def start(paths: Iterable[str], seconds: float, run: str = RUN) -> None:
    """Start the hooks one after the other and return at once. A failure of a hook is only logged.

    Args:
        paths: the hooks.
        seconds: time limit of each.
        run: the folder in which the end of each is marked.

    Raises:
        ProgramError: none of them was started.
        FileError: the mark of an earlier end cannot be removed.
    """
    commands = []
    for path in paths:
        mark = _mark(path, run)
        try:
            os.unlink(mark)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise FileError(mark, error) from None
        commands.append(transient_unit.Command(f"hook-{os.path.basename(path)}", (path,), ended=mark))
    transient_unit.start(commands, seconds)


def ended(path: str, run: str) -> float | None:
    """Return when a hook that was started ended, in seconds of the wall clock; None while it runs.

    Args:
        path: the hook.
        run: as for `start`.
    """
    try:
        return os.stat(_mark(path, run)).st_mtime
    except OSError:
        return None


def _mark(path: str, run: str) -> str:
    return os.path.join(run, f"ended-{os.path.basename(path)}")
