# SPDX-License-Identifier: GPL-2.0-or-later
"""What verbs print."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from .errors import GuestnetError, printable

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/lean)
if TYPE_CHECKING:
    from typing import Any


def say(lines: Iterable[object]) -> None:
    """What was done, to standard output."""
    for line in lines:
        print(printable(str(line)))


def complain(errors: Iterable[GuestnetError]) -> None:
    """What went wrong, to standard error."""
    for line in dict.fromkeys(map(str, errors)):  # one cause can fail several steps of a pass
        print(f"qubes-guestnet: {printable(line)}", file=sys.stderr)


def print_json(data: Any) -> None:
    """For programs that read it."""
    import json  # 5 ms that only these pay

    print(json.dumps(_printable(data), indent=2))


def _printable(data: Any) -> Any:
    """The same data with foreign text escaped: half a surrogate is no JSON, and `jq -r` would print an ESC."""
    if isinstance(data, str):
        return printable(data)
    if isinstance(data, dict):
        return {_printable(key): _printable(value) for key, value in data.items()}
    return [_printable(value) for value in data] if isinstance(data, list | tuple) else data
