# SPDX-License-Identifier: GPL-2.0-or-later
"""Import modules of a package without the package's `__init__`, or with it if that fails.

`import pyroute2.netlink.rtnl.rtmsg` first runs `pyroute2/__init__.py`, which imports the whole library: 25 MB and 0.17
s, more than this agent's whole budget. tenacity 8.2 (Debian 12) imports asyncio, another 10 MB, for a decorator that is
not used here. The modules needed from both work on their own.

Even those import `typing` for unused annotations, `logging` and `traceback` for errors in packing, `random` for a
jitter, and `socket` for some numbers: 20 ms and 3 MB. Stand-ins replace these and load the real modules on use. `apply`
needs them to stay within its budget (`make bench`).

A later release of such a package may use features that the stand-ins lack, such as a generic class, and the network
must not depend on that (B149). So after any failure, in the import or in the caller's self-test, the import is undone,
the package is imported normally, and the journal reports it. Modules outside of the package never see a stand-in.
"""

from __future__ import annotations

import builtins
import importlib
import os
import sys
from collections.abc import Callable, Iterable
from types import ModuleType

from . import plain_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Deferred(ModuleType):
    """A module that is imported on first use."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for __path__
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


class _DeferredLogging(_Deferred):
    """Stand-in for `logging`, which modules use at import to create a logger."""

    def getLogger(self, name: str | None = None) -> Any:
        """Return a logger that is created on first use."""
        return _DeferredLogger(name)


class _DeferredLogger:
    def __init__(self, name: str | None) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("logging").getLogger(self._name), name)


class _DeferredTyping(_Deferred):
    """Stand-in for `typing`, which modules use at import for annotations."""

    TYPE_CHECKING = False

    def __getattr__(self, name: str) -> Any:
        return _Annotation() if name in _ANNOTATIONS else super().__getattr__(name)


class _DeferredSocket(_Deferred):
    """Stand-in for `socket`, of which modules use constants and conversions of addresses at import."""

    def __getattr__(self, name: str) -> Any:
        if name in ("AddressFamily", "SocketKind"):  # they are enumerations, and stand in annotations
            return _Annotation()
        return getattr(plain_socket, name) if hasattr(plain_socket, name) else super().__getattr__(name)


class _Annotation:
    """Any part of an annotation: Optional[str], Callable[[F], F], TypeVar("F")."""

    def __getitem__(self, _parameters: object) -> _Annotation:
        return self

    def __call__(self, *_arguments: object, **_named: object) -> _Annotation:
        return self

    def __ror__(self, _other: object) -> _Annotation:
        return self

    __or__ = __ror__


_ANNOTATIONS = frozenset({"Any", "Callable", "Dict", "List", "Literal", "Optional", "Tuple", "TypeVar", "Union"})

_DEFERRED = {
    "logging": _DeferredLogging, "traceback": _Deferred, "random": _Deferred, "typing": _DeferredTyping,
    "socket": _DeferredSocket,
}  # fmt: skip


class _StandIn(ModuleType):
    """Stand-in for the package while its modules are imported without it."""


def _right(*_found: Any) -> bool:
    return True


def load(package: str, wanted: Iterable[str], right: Callable[..., bool] = _right) -> tuple[Any, ...]:
    """Import objects from a package's modules.

    Args:
        package: a top-level package.
        wanted: dotted names below it, the last part a name in a module: "netlink.rtnl.rtmsg.rtmsg".
        right: self-test, called with the objects; returns whether they work, and may raise any exception.

    Raises:
        ImportError: the package is not installed, or not even the plain import finds all of it.
    """
    names = tuple(f"{package}.{name}" for name in wanted)
    if package not in sys.modules or isinstance(sys.modules[package], _StandIn):
        path = _path(package)
        try:
            found = _without_package(package, path, names)
            if right(*found):
                return found
            problem = "the self-test failed"
        except Exception as error:  # the failures of later releases with a stand-in are unpredictable
            problem = f"{type(error).__name__}: {error}"
        _forget(package)
        from . import systemd

        problem = f"its single modules cannot be imported: {problem}"
        systemd.log(systemd.WARNING, f"importing all of {package} (more time and memory), because {problem}")
    return tuple(_plainly(package, name) for name in names)


def submodule(name: str) -> Any:
    """Return a module of a package, `package.sub.module`. See `load`."""
    package, _, rest = name.partition(".")
    return load(package, (rest,))[0]


def _path(package: str) -> str:
    """Return a package's folder. By hand at first: `importlib.util` alone costs 3 ms.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    for folder in sys.path:
        path = os.path.join(folder or ".", package)
        if os.path.isfile(os.path.join(path, "__init__.py")):
            return path
    from importlib.util import find_spec  # its finders may know more folders, such as the launcher's

    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return spec.submodule_search_locations[0]


def _without_package(package: str, path: str, names: Iterable[str]) -> tuple[Any, ...]:
    stand_in = _StandIn(package)
    stand_in.__path__ = [path]
    sys.modules[package] = stand_in
    deferred = {module: make(module) for module, make in _DEFERRED.items() if module not in sys.modules}
    real: Any = builtins.__import__

    def importing(name: str, of: Any = None, local: Any = None, parts: Any = (), level: int = 0) -> Any:
        by = (of or {}).get("__name__", "")
        if level == 0 and name in deferred and by.partition(".")[0] == package:
            return deferred[name]
        return real(name, of, local, parts, level)

    builtins.__import__ = importing  # type: ignore[assignment]
    try:
        return tuple(_get(name) for name in names)
    finally:
        builtins.__import__ = real


def _get(name: str) -> Any:
    """Return the module or object of a dotted name."""
    module, _, last = name.rpartition(".")
    found = importlib.import_module(module)
    return getattr(found, last) if hasattr(found, last) else importlib.import_module(name)


def _plainly(package: str, name: str) -> Any:
    """Return the object from the normally imported package; a moved one is found by its last name."""
    importlib.import_module(package)
    try:
        return _get(name)
    except ImportError:
        last = name.rpartition(".")[2]
        for module in [found for at, found in sys.modules.items() if at.startswith(package + ".")]:
            if isinstance(getattr(module, last, None), type):
                return getattr(module, last)
        raise


def _forget(package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
