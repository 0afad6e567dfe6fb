# SPDX-License-Identifier: GPL-2.0-or-later
"""Every test here runs as process 1 of its own namespaces; all share one environment with the program installed."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.support.programs.installed import installed
from tests.support.qubes.isolated import pytest_runtest_protocol

__all__ = ["pytest_runtest_protocol"]

# The processes of a parallel run inherit it.
_FOLDER = "GUESTNET_TEST_INSTALLED"
_MADE_BY = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """A folder that outlives the processes of the single tests; the first test that needs it fills it."""
    if _FOLDER not in os.environ:
        config.stash[_MADE_BY] = os.getpid()
        os.environ[_FOLDER] = tempfile.mkdtemp(prefix="guestnet-installed-", dir="/tmp")


def pytest_unconfigure(config: pytest.Config) -> None:
    """No test is left."""
    if config.stash.get(_MADE_BY, 0) == os.getpid():
        shutil.rmtree(os.environ.pop(_FOLDER))


@pytest.fixture
def environment() -> Path:
    """The interpreter of an environment below /tmp that has the program installed."""
    return installed(Path(os.environ[_FOLDER]))
