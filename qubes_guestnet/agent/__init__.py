# SPDX-License-Identifier: GPL-2.0-or-later
"""The resident agent: its loop, and what it waits for."""
