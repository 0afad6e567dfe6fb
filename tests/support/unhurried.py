# SPDX-License-Identifier: GPL-2.0-or-later
"""Hypothesis judges what a test finds, and not how long the machine took for it: a loaded one fails no test.

A folder's conftest.py asks for it by importing this module.
"""

from hypothesis import HealthCheck, settings

settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
