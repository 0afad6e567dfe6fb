# SPDX-License-Identifier: GPL-2.0-or-later
"""Which tests cover which behaviour (B…) and scenario (S-…): the table in docs/behaviours.md.

    python -m tools.behaviours [--write FILE]     prints the table, or writes it

The source is pytest's own collection, so a test that is not collected does not count. UNTESTED names the rows that no
test can cover here, with the reason; a row that gets a test has to leave it.
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
of events with real packets. A row is in a table because a test carries its mark. Rows without a test are at the end,
with the reason.
"""
UNTESTED = {
    "B64": "No denials by SELinux. The packages bring no policy module of their own; what holds is the policy of the "
    "distribution and of Qubes OS. Whether that lets the agent, its programs (nft, ip, xenstore) and the script "
    "in the place of vif-route-qubes work is to be seen only on a Fedora system with that policy enforced, and the "
    "tests have none: their systems are Debian's, whose policy is another one, so a green test with it would tell "
    "nothing. What is tested is the label of a published file (`tests/contract/test_files_labels.py`).",
}


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
    """The whole document.

    Raises:
        SystemExit: a row of UNTESTED has a test.
    """
    if tested := sorted(UNTESTED.keys() & found.keys()):
        sys.exit(f"tools/behaviours.py: {', '.join(tested)} in UNTESTED, but there is a test now: remove it there")
    lines = [HEAD]
    for title, letter in (("Behaviours", "B"), ("Scenarios", "S")):
        lines += [f"## {title}", "", "| row | tests |", "| --- | --- |"]
        for row in sorted((row for row in found if row.startswith(letter)), key=_order):
            lines.append(f"| {row} | {'<br>'.join(f'`{test}`' for test in sorted(found[row]))} |")
        lines.append("")
    lines += ["## Without a test", "", "| row | why |", "| --- | --- |"]
    lines += [f"| {row} | {why} |" for row, why in UNTESTED.items()]
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
