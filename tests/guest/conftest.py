# SPDX-License-Identifier: GPL-2.0-or-later
"""Every test here runs in one emulated guest, whose kernel has flowtables."""

from tests.support.in_guest import pytest_configure, pytest_runtest_protocol

__all__ = ["pytest_configure", "pytest_runtest_protocol"]
