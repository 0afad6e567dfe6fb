# SPDX-License-Identifier: GPL-2.0-or-later
"""The same budgets with the oldest supported pyroute2 (0.7.2, Debian 12) and with the newest."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from bench import apply, event, memory
from bench.figures import Result
from bench.stage import TREE, Failed

OLDEST = TREE / ".venv-oldest" / "bin" / "python"
ROUNDS = 20
EVENTS = 60
MEASURES: dict[str, Callable[[str], Result]] = {
    "apply": lambda python: apply.measure(python, ROUNDS),
    "event": lambda python: event.measure(python, EVENTS),
    "memory": memory.measure,
}


def version(python: str) -> str:
    """pyroute2's version in an environment, asked from outside.

    Raises:
        Failed: there is no such environment.
    """
    ask = "import importlib.metadata as m; print(m.version('pyroute2'))"
    try:
        return subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise Failed(f"no environment at {python}: run tools/setup bench") from error


def measure(python: str, what: str) -> Result:
    """One of MEASURES, its name with the version of pyroute2. Run inside `isolate()`."""
    result = MEASURES[what](python)
    return result._replace(name=f"{result.name} [pyroute2 {version(python)}]")


def pythons() -> tuple[str, ...]:
    """Interpreters of both environments, newest first."""
    return sys.executable, str(OLDEST)
