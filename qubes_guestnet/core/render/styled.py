# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines for a terminal: the styles of their parts, and when colour is used. The escape codes are in `output`."""

from __future__ import annotations

from ..namedtuple import NamedTuple

GOOD, BAD, WARN, NAME, DIM = "good", "bad", "warning", "name", "dim"
ALWAYS, NEVER, AUTO = "always", "never", "auto"
WHEN = (AUTO, ALWAYS, NEVER)  # the values of --color


class Piece(NamedTuple):
    """A part of a line.

    Args:
        text: without escape codes.
        style: GOOD, BAD, WARN, NAME or DIM; "" for none.
    """

    text: str
    style: str = ""

    def __str__(self) -> str:
        return self.text


class Line(NamedTuple):
    """One line, as pieces; its `str` has no colour."""

    pieces: tuple[Piece, ...]

    def __str__(self) -> str:
        return "".join(piece.text for piece in self.pieces)


def line(*parts: str | Piece | Line) -> Line:
    """Return a line made of these parts."""
    pieces: list[Piece] = []
    for part in parts:
        pieces += part.pieces if isinstance(part, Line) else (part if isinstance(part, Piece) else Piece(part),)
    return Line(tuple(pieces))


def good(text: str) -> Piece:
    """Style text about a correct state."""
    return Piece(text, GOOD)


def bad(text: str) -> Piece:
    """Style text about a fault."""
    return Piece(text, BAD)


def warn(text: str) -> Piece:
    """Style text that needs attention."""
    return Piece(text, WARN)


def name(text: str) -> Piece:
    """Style the subject of a line, such as the name of an interface."""
    return Piece(text, NAME)


def dim(text: str) -> Piece:
    """Style an explanation."""
    return Piece(text, DIM)


def in_colour(when: str, *, terminal: bool, no_color: str, term: str) -> bool:
    """Return whether to use colour.

    Args:
        when: one of WHEN.
        terminal: standard output is one.
        no_color: the environment variable NO_COLOR; not empty: no colour (no-color.org).
        term: the environment variable TERM; `dumb` has no colour.
    """
    if when != AUTO:
        return when == ALWAYS
    return terminal and not no_color and term != "dumb"
