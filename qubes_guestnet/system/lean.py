# SPDX-License-Identifier: GPL-2.0-or-later
"""Submodules of a package, loaded without running the package's own `__init__`.

`import pyroute2.netlink.rtnl.rtmsg` first runs `pyroute2/__init__.py`, which imports the whole library: 25 MB and
0.17 s, more than this agent may use altogether. tenacity 8.2 (Debian 12) imports asyncio, another 10 MB, to offer a
decorator we do not use. What we need of both are plain modules that stand on their own.

Even those import `typing` for annotations that nobody reads, `logging` and `traceback` for messages about messages that
cannot be packed, and `random` for a jitter: 10 ms and 3 MB for nothing. They get stand-ins that load the real modules
when they are used. With them `apply` keeps its budget, without them it breaks it (`make bench`).
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Deferred(ModuleType):
    """A module that is imported when something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for __path__
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]  # used while it stands in: the import below would find us again, for ever
        return getattr(importlib.import_module(self.__name__), name)


class _DeferredLogging(_Deferred):
    """`logging`, of which modules make a logger when they are imported."""

    def getLogger(self, name: str | None = None) -> Any:
        """A logger that is made when it is used."""
        return _DeferredLogger(name)


class _DeferredLogger:
    def __init__(self, name: str | None) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("logging").getLogger(self._name), name)


class _DeferredTyping(_Deferred):
    """`typing`, of which modules take names for their annotations when they are imported."""

    TYPE_CHECKING = False

    def __getattr__(self, name: str) -> Any:
        return _Annotation() if name in _ANNOTATIONS else super().__getattr__(name)


class _Annotation:
    """Anything that can stand in an annotation: Optional[str], Callable[[F], F], TypeVar("F")."""

    def __getitem__(self, _parameters: object) -> _Annotation:
        return self

    def __call__(self, *_arguments: object, **_named: object) -> _Annotation:
        return self

    def __ror__(self, _other: object) -> _Annotation:
        return self

    __or__ = __ror__


_ANNOTATIONS = frozenset({"Any", "Callable", "Dict", "List", "Literal", "Optional", "Tuple", "TypeVar", "Union"})

_DEFERRED = {"logging": _DeferredLogging, "traceback": _Deferred, "random": _Deferred, "typing": _DeferredTyping}


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
    deferred = {module: make(module) for module, make in _DEFERRED.items() if module not in sys.modules}
    sys.modules.update(deferred)
    try:
        return importlib.import_module(name)
    finally:
        for module, stand_in in deferred.items():
            if sys.modules.get(module) is stand_in:
                del sys.modules[module]
