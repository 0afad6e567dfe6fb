# SPDX-License-Identifier: GPL-2.0-or-later
"""Our enumeration is what its users need of `enum.Enum`, which the type checker takes it for."""

from __future__ import annotations

import enum

import pytest

from qubes_guestnet.core.enumeration import Enum


class Colour(Enum):
    """Of two."""

    RED = "r"
    GREEN = "g"


class Same(Enum):
    """Another one with an equal value."""

    RED = "r"


class Original(enum.Enum):
    """Of the standard library."""

    RED = "r"
    GREEN = "g"


def test_members_have_the_names_and_values_of_the_original() -> None:
    assert [(each.name, each.value) for each in Colour] == [(each.name, each.value) for each in Original]
    assert (repr(Colour.RED), Colour.__doc__) == ("Colour.RED", "Of two.")
    assert isinstance(Colour.RED, Colour)
    assert (len(Colour), Colour.RED in Colour, Same.RED in Colour) == (2, True, False)


def test_a_member_is_found_by_its_value() -> None:
    assert (Colour("g"), Original("g").name) == (Colour.GREEN, "GREEN")
    for asked in (Colour, Original):
        with pytest.raises(ValueError, match="'b' is not a valid"):
            asked("b")


def test_each_is_equal_to_itself_alone() -> None:
    others: set[object] = {Colour.RED, Colour.GREEN, Same.RED, "r"}
    assert len(others) == 4
    assert Colour.RED in others


def test_a_member_is_constant() -> None:
    with pytest.raises(AttributeError, match=r"Colour\.RED is constant"):
        setattr(Colour.RED, "value", "x")  # noqa: B010 # which the type checker refuses as a plain assignment
