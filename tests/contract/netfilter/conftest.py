# SPDX-License-Identifier: GPL-2.0-or-later
"""Every test here runs as process 1 of its own namespaces: rules, connections, settings."""

from __future__ import annotations

import pytest

from tests.support.judge.oracle import Oracle
from tests.support.needs import needs
from tests.support.qubes.isolated import pytest_runtest_protocol

__all__ = ["pytest_runtest_protocol"]


@pytest.fixture
def oracle() -> Oracle:
    needs("ip", "nft", "conntrack")
    judge = Oracle()
    judge.run("ip", "link", "set", "lo", "up")
    return judge
