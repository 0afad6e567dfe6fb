# SPDX-License-Identifier: GPL-2.0-or-later
"""Decide from systemd's jobs whether a stop of qubes-network-uplink@ takes the interface down. Pure.

The unit of qubes-core-agent-networking requires network-pre.target, and that one requires the base rules. A restart or
stop of any of these, or the removal of a package with one of them, has systemd stop the uplink's unit too. The rules
stay in force then, so the qube keeps its network (behaviour B152).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

SHUTDOWN = "shutdown.target"
GATE = "network-pre.target"
_STOPS = frozenset({"stop", "restart", "try-restart"})
_COLUMNS = 4  # job number, unit, type of job, its state


def parse(lines: Iterable[str]) -> dict[str, str]:
    """Return the type of the job of each unit that has one, from `systemctl list-jobs --plain --no-legend`."""
    rows = (line.split() for line in lines)
    return {row[1]: row[2] for row in rows if len(row) == _COLUMNS and row[0].isdecimal()}


def takes_down(unit: str, jobs: Mapping[str, str]) -> bool:
    """Return whether a unit itself is stopped, or the whole system.

    Args:
        unit: the uplink's.
        jobs: from `parse`; empty if systemd does not answer: then taking the interface down is safer.
    """
    if SHUTDOWN in jobs:
        return True
    restarted = jobs.get(unit, "stop") != "stop"
    return not restarted and jobs.get(GATE) not in _STOPS
