# SPDX-License-Identifier: GPL-2.0-or-later
"""This qube's own interface: decisions."""
