# SPDX-License-Identifier: GPL-2.0-or-later
"""Releases of the libraries that are to come: copies of the installed ones, broken on purpose."""

from __future__ import annotations

import importlib.machinery
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

TREE = Path(__file__).resolve().parents[3]


def fresh(code: str, *first: Path) -> tuple[str, str]:
    """What Python says to this in a new interpreter.

    Args:
        code: the program.
        first: folders that come first in its path.

    Returns:
        Standard output and standard error.
    """
    environment = {**os.environ, "PYTHONPATH": ":".join(map(str, (*first, TREE)))}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.strip()


def copy(package: str, folder: Path) -> Path:
    """A copy of an installed package below folder; gives its path."""
    found = importlib.machinery.PathFinder.find_spec(package)
    assert found is not None
    assert found.origin is not None
    shutil.copytree(Path(found.origin).parent, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder / package


def _first(text: str, file: str) -> Callable[[Path], None]:
    return lambda package: _change(package / file, text + "\n", "")


def _last(text: str, file: str) -> Callable[[Path], None]:
    return lambda package: _change(package / file, "", "\n" + text + "\n")


def _change(file: Path, before: str, behind: str) -> None:
    file.write_text(before + file.read_text() + behind)


def _renamed(package: Path) -> None:
    """A module has another name, and everything in the package knows."""
    folder = package / "netlink" / "rtnl"
    (folder / "ndmsg.py").rename(folder / "neighbourmsg.py")
    for file in package.rglob("*.py"):
        text = file.read_text()
        if "rtnl.ndmsg" in text:
            file.write_text(text.replace("rtnl.ndmsg", "rtnl.neighbourmsg"))
    _change(folder / "__init__.py", "", "\nfrom pyroute2.netlink.rtnl import neighbourmsg as ndmsg\n")


def _needs_package(package: Path) -> None:
    _change(package / "__init__.py", "VERSION = 'new'\n", "")
    _change(package / "low_level.py", "from jeepney import VERSION\n", "")


_MAIN = "netlink/__init__.py"
_GENERIC = "from typing import Generic, TypeVar\nT = TypeVar('T')\nclass Box(Generic[T]): pass"
_PROTOCOL = "import typing\nclass Like(typing.Protocol[typing.TypeVar('T')]): pass"
_OF_A_TYPE = "from typing import Any, Dict\nclass Table(Dict[str, Any]): pass"
_LOOKED_AT = """
import typing
_kind, _real_reset = typing.Optional[int], nlmsg_base.reset
def _reset(self, buf=None):
    assert isinstance(1, _kind)
    return _real_reset(self, buf)
nlmsg_base.reset = _reset
"""
_WRONG = """
import sys
if not hasattr(sys.modules["pyroute2"], "__version__"):
    nlmsg_base.encode = lambda self: None
"""
PYROUTE2: dict[str, Callable[[Path], None]] = {
    "a generic class": _first(_GENERIC, _MAIN),
    "a protocol": _first(_PROTOCOL, _MAIN),
    "a class of a type": _first(_OF_A_TYPE, _MAIN),
    "a type looked at in use": _last(_LOOKED_AT, _MAIN),
    "packs something else without its package": _last(_WRONG, _MAIN),
    "an import from the package": _last("from pyroute2 import __version__", "netlink/rtnl/ndmsg.py"),
    "a module renamed": _renamed,
}
JEEPNEY: dict[str, Callable[[Path], None]] = {
    "a generic class": _first(_GENERIC, "low_level.py"),
    "an import from the package": _needs_package,
}
