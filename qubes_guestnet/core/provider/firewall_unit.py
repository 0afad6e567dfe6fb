# SPDX-License-Identifier: GPL-2.0-or-later
"""What qubes-firewall.service does at its start, stop and reload. Pure.

The resident agent enforces the lists of single qubes; the unit switches that on and off, and runs the users' scripts,
which need all that the agent's sandbox takes away.

Order of a start: forwarding closed, tables that refuse everything, the mark by which the agent enforces, the scripts,
the lists of all qubes in force, forwarding open. Order of a stop: forwarding closed, no mark, tables that refuse
everything.

A restart (of the unit, by an upgrade, after a crash) finds tables, mark and open forwarding, and leaves them: no packet
that is refused passes, and none that is allowed is lost. A stop and then a start make the tables anew, without what
scripts put in before.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..namedtuple import NamedTuple
from ..operations import Outcome, Planned
from ..owned_state import Record
from ..shared_operations import UnitJob
from .base_rules import FIREWALL_UNIT as UNIT

# To the resident agent, on the socket of hotplug: look at everything, and answer once the lists are in force.
REQUEST = b"firewall\n"
RESTART = UnitJob("restart", UNIT)
_SHUTDOWN = "shutdown.target"

FOLDERS = ("/etc/qubes/qubes-firewall.d", "/rw/config/qubes-firewall.d")
SCRIPT = "/rw/config/qubes-firewall-user-script"
_PERSISTENT = "/rw/"


class Scripts(NamedTuple):
    """What came of the users' scripts at the last start of the unit.

    Args:
        running: the path of the one that runs, "" for none.
        failed: path and reason of those that failed, in the order in which they ran.
    """

    running: str = ""
    failed: tuple[tuple[str, str], ...] = ()


def begins(*, enforced: bool, filtered: bool) -> bool:
    """Return whether a start has to close forwarding and make the tables.

    Args:
        enforced: the mark is there: the unit ran before, and was not stopped.
        filtered: the tables are there.
    """
    return not (enforced and filtered)


def ends(jobs: Mapping[str, str]) -> bool:
    """Return whether the stop of the unit is one for good, or with the whole system, and no part of a restart.

    Args:
        jobs: type of the job of each unit that has one; empty where systemd does not say: then it is one for good.
    """
    return _SHUTDOWN in jobs or jobs.get(UNIT, "stop") == "stop"


def places(*, persists: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the folders of users' scripts and the paths of single ones, in the order of their runs (behaviour B81).

    Args:
        persists: the qube has the service custom-persist, with which scripts below /rw are not in use.
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
    """Return the text of a file that says what came of the scripts."""
    running = [f"running {scripts.running}"] if scripts.running else []
    lines = (*running, *(f"failed {path}\t{reason}" for path, reason in scripts.failed))
    return "".join(f"{_one_line(line)}\n" for line in lines).encode("utf-8", "surrogateescape")


def parse(data: bytes) -> Scripts:
    """Return what such a file says; lines that do not parse are left out."""
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
