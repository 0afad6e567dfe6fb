# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts in words."""

from __future__ import annotations


def amount(count: int, word: str) -> str:
    """Return a count with its word, in the plural except of 1."""
    return f"{count} {word}{'' if count == 1 else 's'}"
