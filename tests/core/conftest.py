# SPDX-License-Identifier: GPL-2.0-or-later
"""A place for the files of a qube that is all model but for them."""

from __future__ import annotations

from pathlib import Path

import pytest

import tests.support.unhurried  # noqa: F401


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the present one.

    `files.publish` opens names relative to a folder that it has open, and the guard against writing elsewhere takes
    every relative name for one below the present folder.
    """
    monkeypatch.chdir(tmp_path)
    return tmp_path
