# SPDX-License-Identifier: GPL-2.0-or-later
"""What costs much and changes nothing: made once for all processes of a parallel run (`-n`)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Path]) -> Path:
    """Return the file that `make` makes; the first process that asks makes it, the others wait for that.

    Args:
        factory: pytest's own; what is made goes with its folders.
        name: of the folder, another one for each thing.
        make: called with the folder, which is there and empty; what it raises is raised here, and the next one tries.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each process has a folder of its own in one of the run's
        base = base.parent
    made = base / f"{name}.made"
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            folder = base / name
            folder.mkdir(exist_ok=True)
            made.write_text(str(make(folder)))
    return Path(made.read_text())
