# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -I -m qubes_guestnet.names`, as qubes-guestnet-names.service runs it."""

import sys

from .service import main

sys.exit(main(sys.argv[1:]))
