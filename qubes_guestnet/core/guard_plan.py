# SPDX-License-Identifier: GPL-2.0-or-later
"""Plan whether the resident agent's guard (see `guard`) is loaded."""

from __future__ import annotations

from .operations import Planned
from .provider_operations import LeaveGuard, StandGuard
from .record import Record


def plan(record: Record, *, active: bool, ruled: bool, stands: bool) -> Planned:
    """What is to do.

    Args:
        record: the owned record.
        active: this qube gives network to others.
        ruled: the base rules are in, without which it lets nothing pass.
        stands: it is there.
    """
    if stands and not active:
        return Planned((LeaveGuard(),), record)
    if active and ruled and not stands:
        return Planned((StandGuard(),), record)
    return Planned((), record)
