# SPDX-License-Identifier: GPL-2.0-or-later
"""The program installed, not editable, into an environment of its own: as `pip install .` leaves it with its users."""

from __future__ import annotations

import fcntl
import importlib.metadata
import shutil
import subprocess
import sys
import venv
from pathlib import Path

TREE = Path(__file__).resolve().parents[3]
NEEDED = ("pyroute2", "tenacity", "jeepney", "dnspython")  # with the extras `dbus` and `names`
LIMIT_S = 90


def installed(folder: Path) -> Path:
    """The interpreter of the environment in `folder`, made at the first request, without a package index.

    What it depends on is copied from the environment that runs the tests. Where the tests stand alone, beside a
    package that is installed (debian/tests), it is that one's interpreter.
    """
    if not (TREE / "qubes_guestnet").is_dir():
        return Path(sys.executable)
    folder.mkdir(exist_ok=True)
    python = folder / "env" / "bin" / "python"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            _make(folder, python)
            (folder / "ready").touch()
    return python


def _make(folder: Path, python: Path) -> None:
    venv.create(folder / "env", symlinks=True)
    (site,) = (folder / "env").glob("lib/python3*/site-packages")
    for name in NEEDED:
        for file in importlib.metadata.files(name) or ():
            if ".." not in file.parts:
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file.locate(), site / file)
    _run(str(TREE / "tools" / "export-tree"), str(folder / "source"))
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    offline = ("--no-index", "--no-deps", "--no-build-isolation")
    _run(*pip, "wheel", *offline, "--wheel-dir", str(folder), str(folder / "source"))
    (wheel,) = folder.glob("*.whl")
    _run(*pip, "--python", str(python), "install", *offline, str(wheel))
    shutil.rmtree(folder / "source")
    # The daemons that tools/setup unpacked for the tree are as good as installed ones.
    if (TREE / ".daemons").exists():
        (site / ".daemons").symlink_to(TREE / ".daemons")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
