# SPDX-License-Identifier: GPL-2.0-or-later
"""Observation and state of a provider for its client qubes; `core` decides, `system` acts."""
