# SPDX-License-Identifier: GPL-2.0-or-later
"""A user's hooks: which there are, and to start them outside the agent's sandbox."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from ..core.hooks import HOOKS, NETWORK_HOOKS, HookFacts
from . import outside


def facts(paths: Iterable[str] = HOOKS) -> tuple[HookFacts, ...]:
    """The hooks as they are on disk; those that are not there are left out."""
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
    """Paths of the hooks that are told of each vif, in the order of their names."""
    try:
        return tuple(os.path.join(folder, name) for name in sorted(os.listdir(folder)))
    except OSError:
        return ()  # no folder, no hooks


def start(paths: Iterable[str], seconds: float) -> None:
    """Start the hooks one after the other and return at once. How one of them ends is logged and harms nothing.

    Args:
        paths: the hooks.
        seconds: time limit of each.

    Raises:
        ProgramError: none of them was started.
    """
    outside.start((outside.Command(f"hook-{os.path.basename(path)}", (path,)) for path in paths), seconds)
