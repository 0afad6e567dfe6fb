# SPDX-License-Identifier: GPL-2.0-or-later
"""Thin adapters: one outside thing a module, and no decisions."""
