# SPDX-License-Identifier: GPL-2.0-or-later
"""Guards for the pure tests, and a clean exit for the whole session.

A test below `tests/core` or `tests/golden` that opens a socket, spawns a process or writes outside pytest's
temporary folder fails at once. The error is no `Exception`, so that no `except Exception` of the tested code can
swallow it.
"""

from __future__ import annotations

import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# So that a helper's bare `assert` tells what it compared.
pytest.register_assert_rewrite("tests.support")

TESTS = Path(__file__).parent
PURE = (TESTS / "core", TESTS / "golden")
# Written by the test tools themselves while a test runs, not by the code under test.
TOOL_FOLDERS = (".hypothesis", ".pytest_cache", "__pycache__")

# The processes of a parallel run inherit it: they have to collect the same tests, and the name of a random walk has its
# seed.
if not os.environ.get("GUESTNET_SEED"):
    os.environ["GUESTNET_SEED"] = str(random.SystemRandom().randrange(1 << 31))

# The release of Debian that a test boots: a word of its id.
RELEASE = re.compile(r"\b(bookworm|trixie)\b")
EMULATED = ("tests/guest/", "tests/system/test_xen.py")
# Tests that share nothing with each other.
APART = ("tests/contract/", "tests/netns/", "tests/lab/")
FORBIDDEN = {
    "socket.__new__": "opens a socket",
    "socket.getaddrinfo": "asks a name server",
    "subprocess.Popen": "spawns a process",
    "os.system": "spawns a process",
    "os.exec": "becomes another process",
    "os.fork": "forks",
    "os.forkpty": "forks",
    "os.posix_spawn": "spawns a process",
}
# Which arguments of the audit event are paths that are written.
WRITING = {
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.link": (1,),
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.rmdir": (0,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.utime": (0,),
}


class ForbiddenInPureTest(BaseException):
    """The code under test did what pure code must not do; not to be swallowed by `except Exception`."""


class _Guard:
    """An audit hook cannot be taken off again, so there is one for the session, with a switch."""

    def __init__(self) -> None:
        self.allowed: str | None = None

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.allowed is None:
            return
        if event in FORBIDDEN:
            raise ForbiddenInPureTest(f"{FORBIDDEN[event]}: {event}{arguments!r}")
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writes or (isinstance(mode, str) and set(mode) & set("wax+")):
                self._check(event, path)
        elif event in WRITING:
            for position in WRITING[event]:
                self._check(event, arguments[position])

    def _check(self, event: str, path: object) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # an open file descriptor: the open itself was checked
        where = os.path.abspath(os.fsdecode(path))
        if where == os.devnull or any(f"/{folder}" in where for folder in TOOL_FOLDERS):
            return
        if self.allowed is not None and not where.startswith(self.allowed + os.sep):
            raise ForbiddenInPureTest(f"writes outside its temporary folder: {event} {where}")


_guard = _Guard()
sys.addaudithook(_guard)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The one switch of our own."""
    parser.addoption("--regold", action="store_true", help="write what tests/golden expects anew, then read the diff")


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, which the emulated guest does not have
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests that share what is dear in one process of a parallel run (`--dist loadscope`).

    pytest-xdist's own `loadgroup` is no help: it names groups by a suffix of the test's name, which pytest 9 ignores.
    """
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByRoom(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return room_of(nodeid)

    return ByRoom(config, log)


def room_of(nodeid: str) -> str:
    """Name what a test shares with others: a release, of which each process would prepare roots anew, or an emulator.

    The largest rooms begin first. They wait more than they compute, and the tests that share nothing, each a room of
    its own, fill the processors meanwhile. Only one emulated machine runs at a time, because such machines are slow.
    """
    path, _, rest = nodeid.partition("::")
    if path.startswith(APART):
        return nodeid
    if path.startswith(EMULATED):
        return "emulated"
    release = RELEASE.search(rest.partition("[")[2])
    return release.group() if release else path


@pytest.fixture(autouse=True)
def _pure_tests_stay_pure(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if not any(folder in request.path.parents for folder in PURE):
        yield
        return
    _guard.allowed = str(tmp_path_factory.getbasetemp())
    try:
        yield
    finally:
        _guard.allowed = None
