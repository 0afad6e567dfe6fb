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

_FOLDER = pytest.StashKey[tuple[int, Path]]()


def pytest_configure(config: pytest.Config) -> None:
    """A folder that outlives the processes of the single tests; the first test that needs it fills it."""
    config.stash[_FOLDER] = os.getpid(), Path(tempfile.mkdtemp(prefix="guestnet-installed-", dir="/tmp"))


def pytest_unconfigure(config: pytest.Config) -> None:
    """No test is left."""
    made_by, folder = config.stash[_FOLDER]
    if made_by == os.getpid():
        shutil.rmtree(folder)


@pytest.fixture
def environment(pytestconfig: pytest.Config) -> Path:
    """The interpreter of an environment below /tmp that has the program installed."""
    return installed(pytestconfig.stash[_FOLDER][1])
