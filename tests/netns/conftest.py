# SPDX-License-Identifier: GPL-2.0-or-later
"""Every test here runs as process 1 of its own namespaces."""

from tests.support.qubes.isolated import pytest_runtest_protocol

__all__ = ["pytest_runtest_protocol"]
