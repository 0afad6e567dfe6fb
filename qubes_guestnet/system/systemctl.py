# SPDX-License-Identifier: GPL-2.0-or-later
"""Units and jobs of systemd, by `systemctl`: it needs no bus while everything shuts down."""

from __future__ import annotations

import os

from . import programs
from .systemd import WARNING, log

_SECONDS = 5.0
_FIREWALL = "qubes-firewall.service"
_SYSTEMD = "/run/systemd/system"  # sd_booted(3)


def managed() -> bool:
    """Return whether systemd runs this qube."""
    return os.path.isdir(_SYSTEMD)


def installed() -> bool:
    """Return whether there is a systemctl."""
    return bool(programs.find("systemctl"))


def jobs() -> tuple[str, ...]:
    """Return the lines of `systemctl list-jobs`; none where systemd does not answer, which is logged."""
    systemctl = programs.find("systemctl")
    if not systemctl:
        return ()
    try:
        done = programs.run((systemctl, "--plain", "--no-legend", "--no-pager", "--full", "list-jobs"), _SECONDS)
    except programs.ProgramError as error:
        log(WARNING, str(error))
        return ()
    if done.status:
        log(WARNING, f"systemctl list-jobs: exit status {done.status}: {done.output[-200:]}")
        return ()
    return tuple(done.output.splitlines())


def queue_job(verb: str, unit: str) -> None:
    """Queue a systemd job for a unit, without waiting for its end.

    Args:
        verb: of systemctl.
        unit: with its suffix.

    Raises:
        ProgramError: systemctl cannot be started, or says no; it may later.
    """
    _systemctl(("--no-block", verb, unit))


def firewall_state() -> str:
    """Return the state of qubes-firewall.service: active, activating, failed …; "queued" while a job for it waits.

    Raises:
        ProgramError: systemctl cannot be started, or says no.
    """
    return _firewall_state()[0]


def firewall_unit() -> str:
    """Return the same for a look from outside; "" where there is no such unit, and where systemd does not run.

    Raises:
        ProgramError: as `firewall_state`.
    """
    if not managed():
        return ""
    state, loaded = _firewall_state()
    return "" if loaded == "not-found" else state


def _firewall_state() -> tuple[str, str]:
    names = ("ActiveState", "Job", "LoadState")
    output = _systemctl(("show", *(f"--property={name}" for name in names), _FIREWALL))
    said = dict(line.partition("=")[::2] for line in output.splitlines())
    state = "queued" if said.get("Job", "0") not in ("", "0") else said.get("ActiveState", "unknown")
    return state, said.get("LoadState", "")


def _systemctl(words: tuple[str, ...]) -> str:
    program = programs.find("systemctl")
    if not program:
        raise programs.ProgramError("systemctl is not installed", "install systemd")
    done = programs.run((program, *words), _SECONDS)
    if done.status:
        problem = f"systemctl {' '.join(words)}: {done.output[-200:] or f'exit status {done.status}'}"
        raise programs.ProgramError(problem, f"trying again; see systemctl status {words[-1]}")
    return done.output
