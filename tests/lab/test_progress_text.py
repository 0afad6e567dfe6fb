# SPDX-License-Identifier: GPL-2.0-or-later
"""What the lab shows of others' text is escaped, and what a locale cannot show is too (B120)."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from qubes_guestnet.lab.progress import Display

HOSTILE = "a\x1b[31mred\x07\u202eb\udcff"


@pytest.mark.behaviour("B120")
def test_steps_notes_details_and_tables_are_escaped() -> None:
    out = io.StringIO()
    display = Display(out)
    display.begin(HOSTILE)
    display.step_within(HOSTILE)
    display.note(f"{HOSTILE}\n{HOSTILE}")
    display.end(held=False, outcome=HOSTILE)
    display.detail(f"{HOSTILE}\nsecond", "red")
    display.table((HOSTILE, "what"), [(HOSTILE, HOSTILE), ("b", f"{HOSTILE} c")], apart=True)
    said = out.getvalue()
    assert not {"\x1b", "\x07", "\u202e", "\udcff"} & set(said)
    assert said.count("a\\x1b[31mred\\x07\\u202eb\\xff") == 9
    assert "second\n" in said


LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "UTF-8": {"PYTHONIOENCODING": "utf-8"},
}


@pytest.mark.behaviour("B120")
@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("words", ["lab run --list", "lab --help", "lab exec --help", "--help", "lab exec é→ x y"])
def test_no_locale_makes_output_fail(words: str, locale: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qubes_guestnet", *words.split()], capture_output=True, check=False, timeout=60,
        env={**os.environ, **LOCALES[locale]}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr, done.stderr
    assert done.returncode == (0 if "é" not in words else done.returncode)
    assert done.stdout or done.stderr
