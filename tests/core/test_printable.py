# SPDX-License-Identifier: GPL-2.0-or-later
"""Foreign text in front of a person (behaviour B120), and errors that no adapter should raise (B146)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_guestnet.errors import printable, unexpected


@pytest.mark.behaviour("B120")
@pytest.mark.parametrize(
    ("untrusted_text", "wanted"),
    [
        ("", ""),
        ("NetworkManager", "NetworkManager"),
        ("für eth0 – läuft", "für eth0 – läuft"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\nb\r\tc\x7f\x9b", r"a\nb\r\tc\x7f\x9b"),
        (b"\xff\xfe\x1b".decode("utf-8", "surrogateescape"), r"\xff\xfe\x1b"),
        ("\ud800", r"\ud800"),
        ("\u202egnp.exe\u200b\u2028", r"\u202egnp.exe\u200b\u2028"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_what_is_not_printable_is_escaped(untrusted_text: str, wanted: str) -> None:
    assert printable(untrusted_text) == wanted


@pytest.mark.behaviour("B120")
@given(st.binary(max_size=60))
def test_any_bytes_become_one_line_that_any_output_takes(data: bytes) -> None:
    text = printable(data.decode("utf-8", "surrogateescape"))
    assert text.isprintable()
    assert len(text.splitlines()) <= 1
    assert json.loads(json.dumps(text)) == text.encode().decode()
    assert printable(text) == text


@pytest.mark.behaviour("B146")
def test_an_error_that_no_adapter_should_raise_says_where_it_came_from() -> None:
    try:
        int("\x1b")
    except ValueError as error:
        told = str(unexpected(error))
    assert told.startswith("ValueError: invalid literal for int() with base 10: '\\x1b' at test_printable.py:")
    assert unexpected(ValueError("x")).problem == "ValueError: x"
    assert unexpected(ValueError("x")).retryable
