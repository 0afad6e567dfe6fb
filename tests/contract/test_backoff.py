# SPDX-License-Identifier: GPL-2.0-or-later
"""The pauses between attempts, with tenacity and with a release of it that is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.programs.releases import copy, fresh

PAUSES = "from qubes_guestnet.system.retry_pause import pause; print(*map(pause, (1, 2, 3, 6, 7, 99)))"
RIGHT = "0.1 0.2 0.4 3.2 5.0 5.0"


def test_with_the_installed_release() -> None:
    assert fresh(PAUSES) == (RIGHT, "")


@pytest.mark.behaviour("B149")
@pytest.mark.parametrize("file", ["wait.py", "__init__.py"])
def test_a_broken_release_takes_no_pause_away_and_is_told_once(tmp_path: Path, file: str) -> None:
    package = copy("tenacity", tmp_path)
    for name in {file, "wait.py"}:
        (package / name).write_text("raise RuntimeError('on purpose')\n")
    out, told = fresh(PAUSES, tmp_path)
    assert out == RIGHT
    assert [line.split(" ", 3)[:3] for line in told.splitlines()] == [
        ["importing", "all", "of"],
        ["cannot", "use", "tenacity,"],
    ]
