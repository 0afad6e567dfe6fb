# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls that fail on purpose."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest


def refuse(
    monkeypatch: pytest.MonkeyPatch, name: str, number: int, when: Callable[..., bool] = lambda *_: True
) -> None:
    """From now on `os.NAME` fails with this errno, where `when` says so."""
    real = getattr(os, name)

    def refusing(*words: Any, **named: Any) -> Any:
        if when(*words):
            raise OSError(number, os.strerror(number))
        return real(*words, **named)

    monkeypatch.setattr(os, name, refusing)
