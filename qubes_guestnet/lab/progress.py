# SPDX-License-Identifier: GPL-2.0-or-later
"""A run inside namespaces, told to a person outside as it goes: a pipe of JSON lines, and a display that stays alive.

The process that watches has nothing else to do, so it moves the indicator without a thread in the lab.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TextIO

from ..errors import printable
from . import interruption
from .namespaces import die_with_parent, isolate

_TICK = 0.1
_INDENT = 12
_BELOW = 4
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_CHUNK = 65536
_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "cyan": "36"}
Event = dict[str, Any]


class Teller:
    """The inside end: says what goes on.

    Args:
        descriptor: where to write JSON lines, or None to keep quiet.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = descriptor

    def tell(self, **event: Any) -> None:
        """Say anything: one event. Where the command that reads has ended, end as well."""
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, json.dumps(event, default=str).encode() + b"\n")
        except BrokenPipeError:
            os._exit(1)  # silently: a traceback would come behind the line of the interruption (B143)

    def step(self, text: str) -> None:
        """A new step begins; the one before it held."""
        self.tell(step=text)

    def note(self, text: str) -> None:
        """A finding of the present step, one or more lines."""
        self.tell(note=text)


def follow(function: Callable[[Teller], None], limit: float = 120.0) -> Iterator[Event | None]:
    """Run `function` in namespaces of its own; yield what it tells, None every 0.1 s, and last {"status": N}.

    Args:
        function: told it well when it returns; an exception ends it with status 1 and its lines on stderr.
        limit: seconds after which it is killed, with everything in the namespaces.
    """
    answer, say = os.pipe()
    sys.stdout.flush()
    with interruption.held():
        parent, child = os.getpid(), os.fork()
        if child == 0:
            interruption.leave_it_to_the_parent()
            die_with_parent(parent)
            signal.alarm(int(limit))
            os.close(answer)

            def run() -> int:
                function(Teller(say))
                return 0

            os._exit(isolate(run))
        clean_up = partial(interruption.end, child)
        interruption.add(clean_up)
    os.close(say)
    try:
        yield from events(answer)
        _, status = os.waitpid(child, 0)
        yield {"status": os.waitstatus_to_exitcode(status)}
    except BaseException:
        clean_up()
        raise
    finally:
        interruption.remove(clean_up)
        os.close(answer)


def events(answer: int) -> Iterator[Event | None]:
    """Yield what a teller tells, until its end of the pipe is closed; None every 0.1 s.

    Args:
        answer: the reading end.
    """
    rest = b""
    while True:
        if not select.select([answer], [], [], _TICK)[0]:
            yield None
            continue
        data = os.read(answer, _CHUNK)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


class Display:
    """Where a person reads along: an indicator and colours on a terminal, plain lines elsewhere.

    Args:
        out: the stream, else standard output. NO_COLOR in the environment switches colours off, as does TERM=dumb,
            which switches the indicator off as well.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        out = out or sys.stdout
        self._out = out
        terminal = out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._moving = terminal
        self._coloured = terminal and not os.environ.get("NO_COLOR")
        self._step: str | None = None
        self._notes: list[str] = []
        self._began = 0.0
        self._turn = 0

    def paint(self, text: str, *styles: str) -> str:
        """Return the text in styles (bold, dim, red, green, cyan), where colours are wanted."""
        if not self._coloured or not styles:
            return text
        codes = ";".join(_CODES[style] for style in styles)
        return f"\033[{codes}m{text}\033[0m"

    def line(self, text: str = "") -> None:
        """A line of its own."""
        self._erase()
        print(text, file=self._out, flush=True)

    def begin(self, text: str) -> None:
        """A step begins."""
        text = printable(text)
        self._step, self._notes, self._began = text, [], time.monotonic()
        self.tick()

    def step_within(self, text: str) -> None:
        """The present step goes on under another name."""
        self._step = printable(text)
        self.tick()

    def note(self, text: str) -> None:
        """A finding of the present step: shown below it when it is over."""
        self._notes += text.splitlines()  # shown by `detail`

    def end(self, held: bool, outcome: str = "") -> None:
        """The present step is over."""
        if self._step is None:
            return
        mark = self.paint("✓", "green", "bold") if held else self.paint("✗", "red", "bold")
        took = self.paint(f"{time.monotonic() - self._began:5.2f} s", "dim")
        shown = f" {self.paint(printable(outcome), 'red')}" if outcome else ""
        self.line(f" {mark} {took}  {self._step}{shown}")
        for note in self._notes:
            self.detail(note)
        self._step = None

    def detail(self, text: str, *styles: str) -> None:
        """Lines below a step; on a terminal folded to its width."""
        for line in text.splitlines():
            for part in self._folded(printable(line), _INDENT):
                self.line(" " * _INDENT + self.paint(part, *(styles or ("dim",))))

    def tick(self) -> None:
        """Move the indicator."""
        if not self._moving or self._step is None:
            return
        self._turn += 1
        sign = self.paint(_SPINNER[self._turn % len(_SPINNER)], "cyan")
        # A line that wraps could not be erased.
        text = f"{time.monotonic() - self._began:5.2f} s  {self._step}"[: shutil.get_terminal_size().columns - 4]
        print(f"\r\033[K {sign} {text}", end="", file=self._out, flush=True)

    def _folded(self, text: str, indent: int) -> list[str]:
        room = max(20, self._columns() - indent)
        if len(text) <= room:
            return [text]
        return textwrap.wrap(text, room, subsequent_indent="  ", break_on_hyphens=False) or [text]

    def _columns(self) -> int:
        """Return the width to fold to: no limit where no terminal, nor COLUMNS in the environment, has one."""
        return shutil.get_terminal_size().columns if self._moving or os.environ.get("COLUMNS") else sys.maxsize

    def _erase(self) -> None:
        if self._moving and self._step is not None:
            print("\r\033[K", end="", file=self._out)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], apart: bool = False) -> None:
        """A table; the last column may be as long as it likes, the others are as wide as their widest cell.

        Args:
            head: names of the columns.
            rows: their cells.
            apart: the words of a last cell that does not fit stand on a line each, and where no room is left for the
                longest of them, below the row.
        """
        head = tuple(map(printable, head))
        rows = [tuple(map(printable, row)) for row in rows]
        widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head) - 1)]
        indent = 1 + sum(widths) + 2 * len(widths)
        longest = max(len(word) for row in rows for word in (row[-1].split() or [""])) if rows else 0
        below = apart and indent + longest > self._columns()
        for number, row in enumerate((head, *rows)):
            cells = "".join(cell.ljust(width + 2) for cell, width in zip(row, widths, strict=False))
            fits = not below and indent + len(row[-1]) <= self._columns()
            lines = [row[-1]] if fits else row[-1].split() if apart else self._folded(row[-1], indent)
            first, more = ("", lines) if below else (lines[0], lines[1:])
            self.line((" " + self.paint(f"{cells}{first}".rstrip(), *(["bold"] if number == 0 else []))).rstrip())
            for part in more:
                self.line(" " * (_BELOW if below else indent) + part)
