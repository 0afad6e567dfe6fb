# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line, with Ctrl-C at a moment that is counted and not timed.

`python -m tests.support.faults.interrupting COUNTER MOMENT WORD…` runs `qubes-guestnet WORD…`. What is counted are the
audit events of the interpreter (PEP 578): each import, file, fork, socket, sleep and program. At the one with the
number MOMENT the process group gets SIGINT, as from a terminal. Children that are forked count on, in the same file.
"""

from __future__ import annotations

import os
import signal
import stat
import sys

_SENT = 0o600


def main(counter: str, moment: int, words: list[str]) -> int:
    """Run the command.

    Args:
        counter: a file; its length in bytes is the number of events.
        moment: the event that brings SIGINT; 0 for none.
        words: of the command line.
    """
    from qubes_guestnet.cli import main as cli

    descriptor = os.open(counter, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    kept = os.fstat(descriptor).st_ino
    group = os.getpgrp()
    counting = False  # what is done here does not count

    def count(_event: str, _arguments: tuple[object, ...]) -> None:
        nonlocal counting
        if counting:
            return
        counting = True
        try:
            # In a process namespace of its own a child sees its group as 0. One with a session of its own is not the
            # terminal's. And the file may be closed, and another one have its number.
            if os.getpgrp() not in (group, 0) or os.fstat(descriptor).st_ino != kept:
                return
            os.write(descriptor, b".")
            now = os.fstat(descriptor)
            # Two processes may both be past it: then the mode of the file says that it was sent.
            if moment and now.st_size >= moment and stat.S_IMODE(now.st_mode) != _SENT:
                os.fchmod(descriptor, _SENT)
                os.killpg(0, signal.SIGINT)
        except OSError:
            return
        finally:
            counting = False

    sys.addaudithook(count)
    return cli.main(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
