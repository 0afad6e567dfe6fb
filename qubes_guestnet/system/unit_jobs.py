# SPDX-License-Identifier: GPL-2.0-or-later
"""The jobs that systemd has queued. By `systemctl`, which needs no bus while everything shuts down."""

from __future__ import annotations

import os

from . import programs
from .systemd import WARNING, log

_SECONDS = 5.0
_SYSTEMD = "/run/systemd/system"  # sd_booted(3)


def managed() -> bool:
    """Return whether systemd runs this qube."""
    return os.path.isdir(_SYSTEMD)


def listed() -> tuple[str, ...]:
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
