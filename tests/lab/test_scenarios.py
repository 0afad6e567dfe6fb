# SPDX-License-Identifier: GPL-2.0-or-later
"""Every scenario of the lab, in every form it has: exactly what `qubes-guestnet lab run` plays.

They are played by the program as it is installed below /tmp, and not from the tree: so the lab has to find its way in
every mount namespace to an interpreter and a package that lie in a folder each qube has for itself.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from qubes_guestnet.errors import UsageError
from qubes_guestnet.lab.runner import chosen
from qubes_guestnet.lab.scenarios import VARIANTS, Variant
from tests.support.needs import needs

LIMIT_S = 105

# Which behaviours a scenario shows to the full, besides being a scenario.
BEHAVIOURS = {
    "S-001a": ("B4",),
    "S-001b": ("B7",),
    "S-001f": ("B4",),
    "S-030": ("B85",),
    "S-031": ("B70",),
    "S-033": ("B66", "B74", "B75", "B76"),
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
    "S-410a": ("B127", "B128"),
    "S-410b": ("B124",),
    "S-410c": ("B124",),
    "S-410d": ("B124",),
    "S-410e": ("B127", "B128"),
    "S-410f": ("B124",),
    "S-410g": ("B124",),
    "S-410h": ("B124",),
    "S-420": ("B112", "B113", "B114"),
}
# Parts of one scenario, each a run of its own.
PARTS = {f"S-410{part}": "S-410" for part in "abcdefgh"}


def _case(variant: Variant) -> object:
    marks = [pytest.mark.scenario(PARTS.get(variant.scenario.id, variant.scenario.id))]
    marks += [pytest.mark.behaviour(row) for row in BEHAVIOURS.get(variant.scenario.id, ())]
    return pytest.param(variant, id=variant.name, marks=marks)


# Prints why it did not hold, nothing when it did.
PLAY = """
import sys
import qubes_guestnet
from qubes_guestnet.lab import runner
(variant,) = (variant for variant in runner.VARIANTS if variant.name == sys.argv[1])
assert qubes_guestnet.__file__.startswith(sys.prefix), qubes_guestnet.__file__
print(runner.play(variant).error)
"""


def run(*command: str) -> str:
    """What a command prints; in no folder that could be imported from, and with no path of the tests."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, text=True, capture_output=True, env=env, cwd="/", timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("variant", [_case(variant) for variant in VARIANTS])
def test_scenario_holds(variant: Variant, environment: Path) -> None:
    needs("ip", "nft", "nsenter", "dnsmasq")
    error = run(str(environment), "-c", PLAY, variant.name).strip()
    assert not error, error


def test_the_installed_command_shows_the_demo(environment: Path) -> None:
    assert json.loads(run(str(environment.parent / "qubes-guestnet"), "lab", "demo", "--json"))["held"] is True


def test_the_installed_command_plays_by_name(environment: Path) -> None:
    said = run(str(environment.parent / "qubes-guestnet"), "lab", "run", "S-110")
    assert said.splitlines()[-1].startswith(" 1 of 1 held")


def test_scenarios_are_chosen_by_the_begin_of_their_names() -> None:
    assert {variant.name for variant in chosen(["S-000", "S-111"])} == {
        "S-000", "S-000-6", "S-000-g", "S-000-6g", "S-111",
    }  # fmt: skip
    assert chosen([]) == VARIANTS
    with pytest.raises(UsageError, match="S-9"):
        chosen(["S-9"])
