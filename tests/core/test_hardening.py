# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from qubes_guestnet.core.provider.hardening import wanted


@pytest.mark.behaviour("B138")
@pytest.mark.parametrize(
    ("value", "flag", "on"),
    [(b"", False, False), (b"", True, True), (b"1", False, True), (b"0", True, False), (b"0", False, False)],
)
def test_it_is_on_when_dom0_says_so_now_or_said_so_at_boot(value: bytes, flag: bool, on: bool) -> None:
    assert wanted(value, flag) is on
