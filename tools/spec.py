# SPDX-License-Identifier: GPL-2.0-or-later
"""The rpm's spec, out of rpm/qubes-guestnet.spec.in.

    python3 tools/spec.py >qubes-guestnet.spec

Qubes' builder fills in the same three places: @VERSION@ and @REL@ from the files version and rel, and @CHANGELOG@, for
which it takes the log of git. Here that is debian/changelog, so both packages tell the same history.
"""

from __future__ import annotations

import re
import sys
from email.utils import parsedate_to_datetime
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
ENTRY = re.compile(
    r"^[\w.+-]+ \((?P<version>[^)]+)\)[^\n]*\n(?P<changes>.*?)^ -- (?P<author>[^\n]+?)  (?P<date>[^\n]+)$", re.M | re.S
)


def changelog(debian: str) -> str:
    """Rewrite a Debian changelog as that of an rpm.

    Args:
        debian: the text of debian/changelog.

    Raises:
        ValueError: there is no entry in it.
    """
    entries = [entry.groupdict() for entry in ENTRY.finditer(debian)]
    if not entries:
        raise ValueError("debian/changelog: no entry of the form NAME (VERSION) …  -- AUTHOR  DATE")
    blocks = []
    for entry in entries:
        changes = [" ".join(change.split()) for change in re.split(r"^  \* ", entry["changes"], flags=re.M)[1:]]
        date = parsedate_to_datetime(entry["date"]).strftime("%a %b %d %Y")
        lines = [f"* {date} {entry['author']} - {entry['version']}", *(f"- {change}" for change in changes)]
        blocks.append("\n".join(lines).replace("%", "%%"))
    return "\n\n".join(blocks)


def spec(tree: Path = TREE) -> str:
    """Fill in the template of a tree."""
    text = (tree / "rpm/qubes-guestnet.spec.in").read_text(encoding="utf-8")
    places = {
        "@VERSION@": (tree / "version").read_text(encoding="utf-8").strip(),
        "@REL@": (tree / "rel").read_text(encoding="utf-8").strip(),
        "@CHANGELOG@": changelog((tree / "debian/changelog").read_text(encoding="utf-8")),
    }
    for place, value in places.items():
        text = text.replace(place, value)
    return text


if __name__ == "__main__":
    sys.stdout.write(spec())
