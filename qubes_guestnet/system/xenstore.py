# SPDX-License-Identifier: GPL-2.0-or-later
"""xenstore by Xen's own programs: what the toolstack says of a vif, and the word to it that the vif is ready.

By the programs and not by the socket: each of them finds the way that this domain has (a device, or a socket in the
domain where the daemon runs), and only the short-lived hotplug command asks.
"""

from __future__ import annotations

from collections.abc import Iterable

from . import programs

_SECONDS = 5.0  # it answers in 1 ms; a starting dom0 is slower
_ABSENT = "couldn't read path"


class XenstoreError(programs.ProgramError):
    """xenstore could not be asked, or refuses a write."""


def read(paths: Iterable[str]) -> dict[str, bytes]:
    """Return values of some nodes.

    One program a path, all at the same time: given several paths, it ends at the first one that is not there.

    Args:
        paths: absolute, or relative to this domain's own folder; not from outside, or checked.

    Returns:
        Path → untrusted value; a node that is not there, or not to be read by us, is not in it.

    Raises:
        XenstoreError: the program is missing or slow, or finds no xenstore.
    """
    program = _program("xenstore-read")
    paths = tuple(paths)
    commands = ((program, "--", path) for path in paths)
    try:
        ended = dict(zip(paths, programs.run_together(commands, _SECONDS), strict=True))
    except programs.ProgramError as error:
        raise XenstoreError(error.problem) from None
    for path, done in ended.items():
        if done.status and _ABSENT not in done.output:
            raise _refused(f"xenstore-read {path}", done)
    return {path: done.output.encode() for path, done in ended.items() if not done.status}


def write(path: str, value: str) -> None:
    """Write one node.

    Args:
        path: as for `read`.
        value: one line.

    Raises:
        XenstoreError: it was not written.
    """
    program = _program("xenstore-write")
    try:
        done = programs.run((program, "--", path, value), _SECONDS)
    except programs.ProgramError as error:
        raise XenstoreError(error.problem) from None
    if done.status:
        raise _refused(f"xenstore-write {path}", done)


def _program(name: str) -> str:
    program = programs.find(name)
    if not program:
        raise XenstoreError(f"{name} is not installed", "install xenstore-utils (Debian) or xen-runtime (Fedora)")
    return program


def _refused(words: str, done: programs.Done) -> XenstoreError:
    return XenstoreError(f"{words}: {' '.join(done.output.split()) or f'exit status {done.status}'}")
