# SPDX-License-Identifier: GPL-2.0-or-later
"""Observe the user's hooks for a change of the uplink. `core.uplink.hook_runs` decides."""

from __future__ import annotations

import time

from ..core.operations import Outcome, Planned
from ..core.owned_state import Record
from ..core.report import Uplinks
from ..core.uplink import hook_runs


def plan(uplinks: Uplinks, record: Record, so_far: Outcome) -> Planned:
    """Observe and plan, in a provider; see `networkmanager.plan`."""
    changes = hook_runs.changed(uplinks.interfaces, uplinks.settings, record)
    if not changes and not so_far.failed:
        return Planned((), record)
    from ..system import hooks  # once for each change

    return hook_runs.plan(changes, hooks.facts(), record, int(time.time()), so_far)
