# SPDX-License-Identifier: GPL-2.0-or-later
"""What verbs print."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from .errors import GuestnetError

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/lean)
if TYPE_CHECKING:
    from typing import Any


def say(lines: Iterable[object]) -> None:
    """What was done, to standard output."""
    for line in lines:
        print(line)


def complain(errors: Iterable[GuestnetError]) -> None:
    """What went wrong, to standard error."""
    for error in errors:
        print(f"qubes-guestnet: {error}", file=sys.stderr)


def print_json(data: Any) -> None:
    """For programs that read it."""
    import json  # 5 ms that only these pay

    print(json.dumps(data, indent=2))
