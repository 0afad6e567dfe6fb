# SPDX-License-Identifier: GPL-2.0-or-later
"""Write a version into every file that has one.

    python -m tools.new_version 0.2.0       a release
    python -m tools.new_version 0.2.0-2     the same sources, packaged anew

`version` and `rel` are what Qubes' builder reads; the module's `__version__` and the newest entry of debian/changelog
follow them, and the rpm's changelog is made of that one (tools/spec.py). CHANGELOG.md is towncrier's.
"""

from __future__ import annotations

import argparse
import re
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
ENTRY = """\
qubes-guestnet ({version}-{rel}) unstable; urgency=medium

  * {change}

 -- {author}  {date}

"""


def _parsed(text: str) -> tuple[str, str]:
    """Version and release number of "0.2.0" or "0.2.0-2". Raises ArgumentTypeError."""
    found = re.fullmatch(r"(\d+\.\d+\.\d+)(?:-([1-9]\d*))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no version such as 0.2.0, or 0.2.0-2 for the same packaged anew")
    return found[1], found[2] or "1"


def _ordered(version: str, rel: str) -> list[int]:
    return [int(number) for number in (*version.split("."), rel)]


def with_entry(changelog: str, version: str, rel: str, author: str, now: datetime) -> str:
    """Put an entry on top of a Debian changelog; the newest entry, if it is of this very release, is dated anew.

    Args:
        changelog: the text of debian/changelog.
        version: such as 0.2.0.
        rel: which packaging of it, from 1.
        author: name and address, as in debian/control.
        now: with a time zone.

    Raises:
        ValueError: the changelog has a newer release already.
    """
    newest = re.match(r"\S+ \((.*)-(\d+)\)", changelog)
    if newest is None:
        raise ValueError("debian/changelog: its first line is not of the form NAME (VERSION-REL) …")
    if _ordered(version, rel) < _ordered(newest[1], newest[2]):
        raise ValueError(f"{version}-{rel} is older than {newest[1]}-{newest[2]}, the newest in debian/changelog")
    date = format_datetime(now)
    if newest.groups() == (version, rel):
        return re.sub(r"^ -- .*$", lambda _: f" -- {author}  {date}", changelog, count=1, flags=re.MULTILINE)
    change = "Built anew from the same sources." if rel != "1" else f"Release {version}: CHANGELOG.md has what changed."
    return ENTRY.format(version=version, rel=rel, change=change, author=author, date=date) + changelog


def write(tree: Path, version: str, rel: str, now: datetime) -> None:
    """Write a version into all files of a tree.

    Raises:
        ValueError: see `with_entry`; nothing is written.
    """
    changelog, module = tree / "debian/changelog", tree / "qubes_guestnet/__init__.py"
    maintainer = re.search(r"^Maintainer: (.*)$", (tree / "debian/control").read_text(encoding="utf-8"), re.MULTILINE)
    if maintainer is None:
        raise ValueError("debian/control names no Maintainer")
    entries = with_entry(changelog.read_text(encoding="utf-8"), version, rel, maintainer[1], now)
    source = re.sub(
        r'^__version__ = ".*"$', f'__version__ = "{version}"', module.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    new = {tree / "version": f"{version}\n", tree / "rel": f"{rel}\n", module: source, changelog: entries}
    for path, text in new.items():
        path.write_text(text, encoding="utf-8")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        prog="tools.new_version", description="Writes a version into every file that has one."
    )
    parser.add_argument("version", type=_parsed, help="such as 0.2.0; 0.2.0-2 for the same sources packaged anew")
    version, rel = parser.parse_args().version
    try:
        write(TREE, version, rel, datetime.now(UTC))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
