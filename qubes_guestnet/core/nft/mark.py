# SPDX-License-Identifier: GPL-2.0-or-later
"""A state of nftables' rules, by which a later one is found to be of our own making, or not."""

from __future__ import annotations

from ..namedtuple import NamedTuple


class Mark(NamedTuple):
    """A state of the rules.

    Args:
        generation: the kernel's number; each transaction of any program makes it greater by one.
        made: how many transactions this process had made.
    """

    generation: int
    made: int
