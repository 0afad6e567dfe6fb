# SPDX-License-Identifier: GPL-2.0-or-later
"""Submodules of a package, loaded without running the package's own `__init__`.

`import pyroute2.netlink.rtnl.rtmsg` first runs `pyroute2/__init__.py`, which imports the whole library: 25 MB and
0.17 s, more than this agent may use altogether. tenacity 8.2 (Debian 12) imports asyncio, another 10 MB, to offer a
decorator we do not use. What we need of both are plain modules that stand on their own.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType


def submodule(name: str) -> ModuleType:
    """Import `package.sub.module` with an empty stand-in for `package`.

    A package that was imported in full before is used as it is. The search is over `sys.path` by hand because
    `importlib.util` alone costs 3 ms.

    Args:
        name: dotted name below a top-level package.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    package = name.partition(".")[0]
    if package not in sys.modules:
        for folder in sys.path:
            path = os.path.join(folder or ".", package)
            if os.path.isfile(os.path.join(path, "__init__.py")):
                break
        else:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        stand_in = ModuleType(package, "Stand-in of qubes_guestnet.system.lean")
        stand_in.__path__ = [path]
        sys.modules[package] = stand_in
    return importlib.import_module(name)
