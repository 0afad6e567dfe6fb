# SPDX-License-Identifier: GPL-2.0-or-later
"""A command that runs in a qube for a user outside, with the user's input, output and error."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import tools
from .qube import Qube

_PROGRAMS = "/run/lab/bin"
_OWN = f"{_PROGRAMS}/qubes-guestnet"
_SIGNALLED = 128


class Execution:
    """A running command, readable when it has ended.

    It leads a session inside the qube, so that signals reach only the command and its children, and not nsenter, which
    must report the exit status.

    Args:
        qube: where.
        command: program and arguments.
        terminal: its standard input is a terminal that is to be its own.
        descriptors: standard input, output and error; they stay open here.
        env: variables besides those every command in a qube has.
    """

    def __init__(
        self, qube: Qube, command: Sequence[str], terminal: bool, descriptors: Sequence[int], env: Mapping[str, str]
    ) -> None:
        _install(qube)
        environment = {**env, "PATH": f"{_PROGRAMS}:{tools.PATH}"}
        leader = ["setsid", *(["--ctty"] if terminal else []), "--"]
        self._process: subprocess.Popen[bytes] = qube.begin(*leader, *command, descriptors=descriptors, env=environment)
        self._pidfd = os.pidfd_open(self._process.pid)

    def fileno(self) -> int:
        """Return the descriptor, readable when it has ended."""
        return self._pidfd

    def signal(self, number: int) -> None:
        """Send a signal to the command and its children, as a terminal does."""
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            for leader in [int(child) for child in children] or [self._process.pid]:
                # Before setsid() it leads no process group.
                try:
                    os.killpg(leader, number)
                except ProcessLookupError:
                    os.kill(leader, number)

    def close(self) -> int:
        """Return the exit status of the ended command, or 128 + the number of the signal."""
        os.close(self._pidfd)
        status = self._process.wait()
        return _SIGNALLED - status if status < 0 else status

    def hang_up(self) -> None:
        """Send SIGHUP because the caller is gone, as a closed terminal does; the command may ignore it."""
        self.signal(signal.SIGHUP)
        os.close(self._pidfd)


def _install(qube: Qube) -> None:
    """Install this program as `qubes-guestnet` in the qube."""
    if not qube.path(_OWN).exists():
        qube.write(_OWN, f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m qubes_guestnet "$@"\n')
        qube.path(_OWN).chmod(0o755)
