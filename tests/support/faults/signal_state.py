# SPDX-License-Identifier: GPL-2.0-or-later
"""Which signals a process began with ignored or blocked, as /proc/PID/status tells it."""

from __future__ import annotations

from collections.abc import Iterable

LISTED = ("grep", "-E", "^Sig(Ign|Blk):", "/proc/self/status")
OF_LIBC = 0b11 << 31  # signals 32 and 33: libc refuses to set them, so they stay as the runner of the tests has them


def altered(lines: Iterable[str]) -> dict[str, int]:
    """Return the masks of ignored and blocked signals out of lines of a status file, without libc's own two.

    Raises ValueError for other lines.
    """
    masks = (line.split(":") for line in lines)
    return {name: int(mask, 16) & ~OF_LIBC for name, mask in masks}


UNALTERED = {"SigBlk": 0, "SigIgn": 0}
