# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m qubes_guestnet`."""

import sys


def _main() -> int:
    is_lab = sys.argv[1:2] == ["lab"]
    if is_lab:
        from .lab import interruption  # first of all: Ctrl-C may come while the rest is loaded

        interruption.install()
    from .cli import main

    status = main()
    if is_lab:
        interruption.finish()
    return status


if __name__ == "__main__":
    sys.exit(_main())
