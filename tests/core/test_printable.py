# SPDX-License-Identifier: GPL-2.0-or-later
"""Foreign text in front of a person (behaviour B120), and errors that no adapter should raise (B146)."""

from __future__ import annotations

import json
import unicodedata

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
        ("eth\u115f\u1160\u3164\uffa00", r"eth\u115f\u1160\u3164\uffa00"),  # fillers of Hangul
        ("vif\ufe0f1\U000e0100", r"vif\ufe0f1\U000e0100"),  # variation selectors
        ("a\u034fb\u17b4\u180b\u180f", r"a\u034fb\u17b4\u180b\u180f"),
        ("\u2800\u2800", r"\u2800\u2800"),
        ("a\u00a0b\u3000c", r"a\xa0b\u3000c"),
        ("\ue000\u0378", r"\ue000\u0378"),
        ("한국어 हिन्दी ไทย e\u0301", "한국어 हिन्दी ไทย e\u0301"),
    ],
)
def test_what_is_not_printable_is_escaped(untrusted_text: str, wanted: str) -> None:
    assert printable(untrusted_text) == wanted


# Default_Ignorable_Code_Point of DerivedCoreProperties.txt, Unicode 16.
IGNORABLE = (
    (0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
    (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
BLANK = {0x2800, 0x16FE4, 0x1D159}
CATEGORIES = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"}


@pytest.mark.behaviour("B120")
def test_a_character_stays_if_it_is_seen_and_only_then() -> None:
    ignorable = {code for first, last in IGNORABLE for code in range(first, last + 1)}
    categories = {code for code in range(0x110000) if unicodedata.category(chr(code)) in CATEGORIES} - {0x20}
    wanted = ignorable | categories | BLANK
    assert {code for code in range(0x110000) if printable(chr(code)) != chr(code)} == wanted


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
