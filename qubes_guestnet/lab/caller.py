# SPDX-License-Identifier: GPL-2.0-or-later
"""The command that the user typed, so that hints name a command that works.

Messages and help contain the installed command, `qubes-guestnet lab`; in a source tree this module replaces it by
`.venv/bin/python -m qubes_guestnet lab`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys

_INSTALLED = "qubes-guestnet lab"


def with_own_command(text: str) -> str:
    """Return the text with the command replaced by the one that works here."""
    return text.replace(_INSTALLED, f"{_program()} lab")


def _program() -> str:
    name = os.path.basename(sys.argv[0])
    if name == "__main__.py" or not os.path.exists(sys.argv[0]):
        return f"{_shown(sys.executable)} -m qubes_guestnet"
    return _shown(os.path.abspath(sys.argv[0]))


def _shown(path: str) -> str:
    """Return the shortest command for a program: its name if PATH finds it, else its path below this folder."""
    name = os.path.basename(path)
    found = shutil.which(name)
    try:
        if found is not None and os.path.abspath(found) == path:
            return name
        inside = os.path.relpath(path)
    except FileNotFoundError:  # this folder is gone
        return shlex.quote(path)
    return shlex.quote(path if inside.startswith("..") else inside if "/" in inside else f"./{inside}")
