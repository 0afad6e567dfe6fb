# SPDX-License-Identifier: GPL-2.0-or-later
"""The interface of this qube's own: decisions."""
