# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of untrusted text that several parsers share."""

from __future__ import annotations

import pytest

from qubes_guestnet.core.checks import is_decimal


@pytest.mark.parametrize("value", ["0", "007", "65535", b"0", b"65535"])
def test_ascii_digits_are_a_number(value: str | bytes) -> None:
    assert is_decimal(value, 5)
    assert int(value) >= 0


@pytest.mark.parametrize(
    "value", ["", b"", "123456", b"123456", "-1", "+1", " 1", "1 ", "1_0", "1e3", "٣", "²", "\uff11", b"\xb2", b"1\0"]
)  # fmt: skip
def test_nothing_else_is_one(value: str | bytes) -> None:
    assert not is_decimal(value, 5)
