# SPDX-License-Identifier: GPL-2.0-or-later
"""The resident agent: its loop, and the sources of its wake-ups."""
