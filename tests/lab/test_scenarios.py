# SPDX-License-Identifier: GPL-2.0-or-later
"""Every scenario of the lab, in every form it has: exactly what `qubes-guestnet lab run` plays."""

from __future__ import annotations

import pytest

from qubes_guestnet.errors import UsageError
from qubes_guestnet.lab.runner import chosen, play
from qubes_guestnet.lab.scenarios import VARIANTS, Variant
from tests.support.needs import needs

# Which behaviours a scenario shows to the full, besides being a scenario.
BEHAVIOURS = {
    "S-001a": ("B4",),
    "S-001b": ("B7",),
    "S-001f": ("B4",),
    "S-050": ("B51",),
    "S-100": ("B47",),
    "S-111": ("B1",),
    "S-112": ("B6",),
    "S-113": ("B6",),
    "S-114": ("B6",),
    "S-200": ("B60", "B61"),
    "S-201": ("B60",),
    "S-312": ("B95",),
    "S-401": ("B106",),
    "S-404": ("B105",),
}


def _case(variant: Variant) -> object:
    marks = [pytest.mark.scenario(variant.scenario.id)]
    marks += [pytest.mark.behaviour(row) for row in BEHAVIOURS.get(variant.scenario.id, ())]
    return pytest.param(variant, id=variant.name, marks=marks)


@pytest.mark.parametrize("variant", [_case(variant) for variant in VARIANTS])
def test_scenario_holds(variant: Variant) -> None:
    needs("ip", "nft", "nsenter", "dnsmasq")
    outcome = play(variant)
    assert outcome.held, outcome.error


def test_scenarios_are_chosen_by_the_begin_of_their_names() -> None:
    assert {variant.name for variant in chosen(["S-000", "S-111"])} == {
        "S-000", "S-000-6", "S-000-g", "S-000-6g", "S-111",
    }  # fmt: skip
    assert chosen([]) == VARIANTS
    with pytest.raises(UsageError, match="S-9"):
        chosen(["S-9"])
