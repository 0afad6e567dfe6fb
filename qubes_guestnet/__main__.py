# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m qubes_guestnet`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
