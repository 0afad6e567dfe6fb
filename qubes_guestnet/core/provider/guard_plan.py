# SPDX-License-Identifier: GPL-2.0-or-later
"""Plan whether the resident agent's guard (see `guard`) is loaded."""

from __future__ import annotations

import errno

from ..operations import Planned
from ..owned_state import Record
from .provider_operations import LeaveGuard, StandGuard

# An older kernel lacks tables with an owner, or an expression of these rules (nf_tables_newtable(), nft_expr_init()).
_LACKING = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ENOENT})


def is_lacking(number: int) -> bool:
    """Return whether an errno of StandGuard means that this kernel lacks it; after any other it is tried again."""
    return number in _LACKING


def plan(record: Record, *, active: bool, ruled: bool, stands: bool) -> Planned:
    """Return the pending operations.

    Args:
        record: the owned record.
        active: this qube provides network to others.
        ruled: the base rules are loaded, without which the guard drops everything.
        stands: the guard is loaded.
    """
    if stands and not active:
        return Planned((LeaveGuard(),), record)
    if active and ruled and not stands:
        return Planned((StandGuard(),), record)
    return Planned((), record)
