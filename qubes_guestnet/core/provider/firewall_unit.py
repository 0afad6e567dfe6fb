# SPDX-License-Identifier: GPL-2.0-or-later
"""Start, stop and reload of qubes-firewall.service. Pure.

The resident agent enforces the lists of client qubes; the unit switches that on and off, and runs the users' scripts,
which cannot run in the agent's sandbox.

A start closes forwarding, loads tables that refuse everything, creates the mark that makes the agent enforce the lists,
runs the scripts, waits until the lists of all qubes are in force, and opens forwarding. A stop closes forwarding,
removes the mark, and loads tables that refuse everything.

A restart (of the unit, by an upgrade, after a crash) keeps tables, mark and open forwarding: no refused packet passes,
and no allowed packet is lost. A stop followed by a start recreates the tables, without rules of earlier scripts.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..namedtuple import NamedTuple
from ..operations import Outcome, Planned
from ..owned_state import Record
from ..shared_operations import UnitJob
from .base_rules import FIREWALL_UNIT as UNIT

# The request to the resident agent on the socket of hotplug: make a full pass, and reply when the lists are in force.
REQUEST = b"firewall\n"
RESTART = UnitJob("restart", UNIT)
_SHUTDOWN = "shutdown.target"

FOLDERS = ("/etc/qubes/qubes-firewall.d", "/rw/config/qubes-firewall.d")
SCRIPT = "/rw/config/qubes-firewall-user-script"
_PERSISTENT = "/rw/"


class Scripts(NamedTuple):
    """The results of the users' scripts at the last start of the unit.

    Args:
        running: path of the running script, "" for none.
        failed: path and reason of each failed script, in the order of their runs.
    """

    running: str = ""
    failed: tuple[tuple[str, str], ...] = ()


def begins(*, enforced: bool, filtered: bool) -> bool:
    """Return whether a start must close forwarding and create the tables.

    Args:
        enforced: the mark exists, so the unit was started before and not stopped.
        filtered: the tables exist.
    """
    return not (enforced and filtered)


def ends(jobs: Mapping[str, str]) -> bool:
    """Return whether a stop of the unit is final, or a part of the shutdown, and not a part of a restart.

    Args:
        jobs: type of each unit's job; empty if systemd does not answer, which counts as final.
    """
    return _SHUTDOWN in jobs or jobs.get(UNIT, "stop") == "stop"


def places(*, persists: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the folders of users' scripts and the paths of single ones, in the order of their runs (behaviour B81).

    Args:
        persists: the qube has the service custom-persist, with which scripts below /rw do not run.
    """
    folders, files = FOLDERS, (SCRIPT,)
    if not persists:
        return folders, files
    return _volatile(folders), _volatile(files)


def _volatile(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(path for path in paths if not path.startswith(_PERSISTENT))


def plan_lost(record: Record, so_far: Outcome) -> Planned:
    """Hold forwarding and restart the unit: another program removed the tables, and users' rules in them.

    Args:
        record: the owned record.
        so_far: result of the operations of this pass so far.
    """
    held = record._replace(provided=record.provided._replace(unfiltered=True))
    return Planned(() if RESTART in so_far.done else (RESTART,), held)


def render(scripts: Scripts) -> bytes:
    """Return the text of the file with the results of the scripts."""
    running = [f"running {scripts.running}"] if scripts.running else []
    lines = (*running, *(f"failed {path}\t{reason}" for path, reason in scripts.failed))
    return "".join(f"{_one_line(line)}\n" for line in lines).encode("utf-8", "surrogateescape")


def parse(data: bytes) -> Scripts:
    """Parse the content of that file; invalid lines are ignored."""
    running, failed = "", list[tuple[str, str]]()
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        word, _, rest = line.partition(" ")
        if word == "running":
            running = rest
        elif word == "failed" and "\t" in rest:
            path, _, reason = rest.partition("\t")
            failed.append((path, reason))
    return Scripts(running, tuple(failed))


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())
