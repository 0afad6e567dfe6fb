# SPDX-License-Identifier: GPL-2.0-or-later
"""Which tests cover which behaviour (B…) and scenario (S-…): the table in docs/behaviours.md.

    python -m tools.behaviours [--write FILE]     prints the table, or writes it

The source is pytest's own collection, so a test that is not collected does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parent.parent
MARKERS = ("behaviour", "scenario")
HEAD = """<!-- SPDX-License-Identifier: GPL-2.0-or-later -->
<!-- Written by `make coverage-of-behaviours`; a test compares it with the tests' markers. -->
# Behaviours and scenarios, and the tests that cover them

A *behaviour* (B…) is a demand of users and maintainers of Qubes networking; a *scenario* (S-…) is an end-to-end course
of events with real packets. A row is here because a test carries its mark; a row without a test is not in this table.
"""


class Collector:
    """A pytest plugin that notes the marks of all collected tests."""

    def __init__(self) -> None:
        self.found: dict[str, set[str]] = defaultdict(set)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Pytest's hook."""
        for item in items:
            test = item.nodeid.partition("[")[0]
            for name in MARKERS:
                for mark in item.iter_markers(name):
                    for row in mark.args:
                        self.found[row].add(test)


def collect() -> dict[str, set[str]]:
    """Row → tests, by collecting the whole test suite.

    Raises:
        SystemExit: the collection failed; pytest's output says where.
    """
    collector, output = Collector(), io.StringIO()
    with contextlib.redirect_stdout(output):
        status = pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", str(TREE / "tests")], [collector])
    if status != pytest.ExitCode.OK:
        sys.exit(output.getvalue())
    return collector.found


def _order(row: str) -> tuple[str, int, str]:
    letter, number, rest = re.fullmatch(r"([A-Z]+)-?(\d+)(.*)", row).groups()  # type: ignore[union-attr]
    return letter, int(number), rest


def table(found: dict[str, set[str]]) -> str:
    """The whole document."""
    lines = [HEAD]
    for title, letter in (("Behaviours", "B"), ("Scenarios", "S")):
        lines += [f"## {title}", "", "| row | tests |", "| --- | --- |"]
        for row in sorted((row for row in found if row.startswith(letter)), key=_order):
            lines.append(f"| {row} | {'<br>'.join(f'`{test}`' for test in sorted(found[row]))} |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="behaviours", description="which tests cover which behaviour and scenario")
    parser.add_argument("--write", metavar="FILE", type=Path, help="write the table there instead of printing it")
    arguments = parser.parse_args()
    text = table(collect())
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")
        print(f"{arguments.write}: {text.count('| B')} behaviours, {text.count('| S-')} scenarios")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
