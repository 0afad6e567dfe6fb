# SPDX-License-Identifier: GPL-2.0-or-later
"""Printing for verbs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from ..errors import GuestnetError, printable

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from typing import Any

    from ..core.render.styled import Line

# Select Graphic Rendition (ECMA-48), for each style of core/render/styled.
_CODES = {"good": "32", "bad": "1;31", "warning": "33", "name": "1", "dim": "2"}


def say(lines: Iterable[object]) -> None:
    """Print what was done to standard output."""
    for line in lines:
        print(printable(str(line)))


def uses_colour(when: str) -> bool:
    """Return whether standard output gets colour.

    Args:
        when: the value of --color: auto, always or never.
    """
    from ..core.render.styled import in_colour

    no_color, term = os.environ.get("NO_COLOR", ""), os.environ.get("TERM", "dumb")
    return in_colour(when, terminal=sys.stdout.isatty(), no_color=no_color, term=term)


def rendered(lines: Iterable[Line], *, colour: bool) -> str:
    """Return lines as text, each with a newline; foreign text is escaped before it is coloured."""
    return "".join(f"{_rendered(line, colour)}\n" for line in lines)


def _rendered(line: Line, colour: bool) -> str:
    if not colour:
        return printable(str(line))
    return "".join(
        f"\033[{_CODES[piece.style]}m{printable(piece.text)}\033[0m" if piece.style else printable(piece.text)
        for piece in line.pieces
    )


def show(lines: Iterable[Line], when: str) -> None:
    """Print lines, in colour if wanted.

    Args:
        lines: of core/render/styled.
        when: the value of --color.
    """
    print(rendered(lines, colour=uses_colour(when)), end="")


def complain(errors: Iterable[GuestnetError]) -> None:
    """Print errors to standard error."""
    for line in dict.fromkeys(map(str, errors)):  # one cause can make several steps of a pass fail
        print(f"qubes-guestnet: {printable(line)}", file=sys.stderr)


def print_json(data: Any) -> None:
    """Print data as JSON, for programs."""
    print(json_text(data, indent=2))


def json_text(data: Any, indent: int | None = None) -> str:
    """Return data as JSON, on one line without `indent`."""
    import json  # costs 5 ms, only for verbs that print JSON

    return json.dumps(_printable(data), indent=indent)


def _printable(data: Any) -> Any:
    """Return the data with foreign text escaped: a lone surrogate is not valid JSON, and `jq -r` prints an ESC."""
    if isinstance(data, str):
        return printable(data)
    if isinstance(data, dict):
        return {_printable(key): _printable(value) for key, value in data.items()}
    return [_printable(value) for value in data] if isinstance(data, list | tuple) else data
