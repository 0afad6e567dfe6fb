# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports and plans as text and as data."""
