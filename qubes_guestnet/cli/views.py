# SPDX-License-Identifier: GPL-2.0-or-later
"""The read-only verbs: `status`, `check` and `monitor`."""

from __future__ import annotations

import os
import sys
import time

from ..core.check.findings import Evidence, Finding, findings
from ..core.namedtuple import NamedTuple
from ..core.render import status as render_status
from ..core.render.data import Beside, as_data
from ..core.render.styled import Line, bad, dim, line, name, warn
from ..core.render.traffic import parse as parse_traffic
from ..core.report import Report
from ..errors import FileError, GuestnetError, StoreError, UsageError
from ..system import agent_status, devices, monitor_socket, other_programs
from . import diagnosis, output, reading
from .verbs import PATHS, no_interface_of_ours

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from .options import Options

WATCH_SECONDS = 1.0
_CLEAR = "\033[H\033[J"  # cursor to the upper left corner, and erase from there (ECMA-48)
RECONNECT_SECONDS = 0.2
_LEVELS = {3: "error", 4: "warning", 6: "info"}
_STYLES = {3: bad, 4: warn, 7: dim}
_KINDS = {"pass": name, "interface": name, "start": name, "agent": name}
_SEVERITIES = {"error": bad, "warning": warn, "note": dim}


class _View(NamedTuple):
    """The facts that `status` prints.

    Args:
        report: the report of a dry pass, limited to the requested interface.
        beside: further facts that are printed with it.
        unseen: findings about facts that only root can read.
        wrong: an error was found.
        failed: the exit status is 1.
    """

    report: Report
    beside: Beside
    unseen: tuple[Finding, ...]
    wrong: bool
    failed: bool


def status(options: Options) -> int:
    """Print the desired and the actual state. Return 1 if there is a problem; `check` prints the remedies."""
    if options.json and options.brief:
        raise UsageError("--brief is for people and --json for programs", "give one of them")
    if options.watch:
        return _watch(options)
    view = _look(options.interface)
    print(_text(view, options), end="")
    return 1 if view.failed else 0


def _look(interface: str) -> _View:
    report, ground = diagnosis.look(reading.take(), PATHS)
    agent, others = agent_status.read(PATHS.run), other_programs.look()
    found = findings(Evidence(report, standing=agent, presence=others, ground=ground))
    unseen = tuple(finding for finding in found if finding.code == "needs-root")
    wrong = any(finding.severity == "error" for finding in found)
    # In a provider most facts are unseen without root, which must not count as success (B140).
    failed = wrong or bool(unseen and report.provided is not None)
    if interface:
        report = _narrowed(report, interface)
    beside = Beside(agent, others, found, parse_traffic(devices.counters()))
    return _View(report, beside, unseen, wrong, failed)


def _text(view: _View, options: Options) -> str:
    """Return the text to print, with its last newline."""
    if options.json:
        data = {**as_data(view.report, view.beside), "wrong": view.failed}
        return f"{output.json_text(data, indent=None if options.watch else 2)}\n"
    colour = output.uses_colour(options.color)
    if options.brief:
        return output.rendered(render_status.brief(view.report), colour=colour)
    lines = list(render_status.as_text(view.report, view.beside.standing, view.beside.presence))
    lines += [line(f"{finding.problem}; run as root: sudo qubes-guestnet status") for finding in view.unseen]
    if view.wrong:
        lines.append(line(bad("there are problems"), ": `qubes-guestnet check` lists them with their remedies"))
    return output.rendered(lines, colour=colour)


def _watch(options: Options) -> int:
    """Read the state each second until Ctrl-C, and print each change; on a terminal in place of the former text."""
    clear = _CLEAR if sys.stdout.isatty() and not options.json else ""
    last = None
    try:
        while True:
            try:
                text = _text(_look(options.interface), options)
            except StoreError as error:  # QubesDB may answer later
                text = f"{output.json_text({'error': str(error)})}\n" if options.json else f"{error}\n"
            if text != last:
                print(clear + text, end="", flush=True)
                last = text
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return 0


def monitor(options: Options) -> int:
    """Print what the agent does, as it happens, until Ctrl-C: causes of passes, operations, errors.

    When the agent ends, as in a restart, wait for the next one.
    """
    path, waiting = os.path.join(PATHS.run, monitor_socket.NAME), False
    colour = output.uses_colour(options.color)
    try:
        while True:
            try:
                following = monitor_socket.connect(path)
            except FileError:
                raise
            except GuestnetError:
                if not waiting:
                    raise
                time.sleep(RECONNECT_SECONDS)
                continue
            with following:
                while data := monitor_socket.receive(following):
                    print(_monitored(monitor_socket.Line(data), options.json, colour), end="", flush=True)
            now = monitor_socket.Line(f"{time.time()} 4 agent 0 the agent ended; waiting for the next one".encode())
            print(_monitored(now, options.json, colour), end="", flush=True)
            waiting = True
    except KeyboardInterrupt:
        return 0


def _monitored(said: monitor_socket.Line, as_json: bool, colour: bool) -> str:
    """Return one printed line of `monitor`."""
    if as_json:
        level = _LEVELS.get(said.level, "debug")
        data = {"time": said.when, "level": level, "kind": said.kind, "text": said.text, "lost": said.lost}
        return f"{output.json_text(data)}\n"
    clock = time.strftime("%H:%M:%S", time.localtime(said.when)) + f".{int(said.when * 1000) % 1000:03d}"
    lost = f"{said.lost} lines before this one were lost; " if said.lost else ""
    style = _STYLES.get(said.level, _KINDS.get(said.kind, str))
    indent = "  " if said.kind == "operation" else ""
    return output.rendered((line(dim(clock), " ", indent, lost, style(said.text)),), colour=colour)


def _narrowed(report: Report, name: str) -> Report:
    """Limit a report to one interface, an uplink or a vif. Raises UsageError for any other name."""
    uplinks = tuple(each for each in report.interfaces if each.link is not None and each.link.name == name)
    provided = report.provided
    vifs = tuple(each for each in provided.vifs if each.vif.name.text == name) if provided is not None else ()
    if not uplinks and not vifs:
        raise no_interface_of_ours(name, report)
    if provided is not None:
        shared = {names: addresses for names, addresses in provided.duplicates.items() if name in names}
        provided = provided._replace(vifs=vifs, duplicates=shared)
    return report._replace(interfaces=uplinks, provided=provided)


def check(options: Options) -> int:
    """Print all findings. Return 1 if one of them is an error, or if facts are unseen without root."""
    found = diagnosis.findings(PATHS)
    if options.json:
        output.print_json([finding._asdict() for finding in found])
    else:
        output.show((each for finding in found for each in _finding_lines(finding)), options.color)
        if not found:
            print("all is well")
    return 1 if any(finding.severity == "error" or finding.code == "needs-root" for finding in found) else 0


def _finding_lines(finding: Finding) -> tuple[Line, Line]:
    severity = _SEVERITIES[finding.severity](finding.severity)
    return line(severity, ": ", name(finding.code), f": {finding.problem}"), line(f"  -> {finding.remedy}")
