# SPDX-License-Identifier: GPL-2.0-or-later
"""Every case folder of `tests/golden`. `pytest tests/core/test_golden.py --regold` writes them anew: read the diff."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.core import golden

CASES = golden.cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}/{case.name}")
def test_a_case(case: Path, folder: Path, pytestconfig: pytest.Config) -> None:
    outcome = golden.outcome(*golden.build(case, folder))
    if pytestconfig.getoption("--regold"):
        regold(case, outcome)
    found = {name: (case / name).read_bytes() for name in golden.EXPECTED if (case / name).exists()}
    assert {name: data.decode() for name, data in outcome.items()} == {n: data.decode() for n, data in found.items()}


def regold(case: Path, outcome: dict[str, bytes]) -> None:
    """The guard against writing elsewhere is off for this: it is asked for."""
    from tests import conftest

    conftest._guard.allowed = None
    for name in golden.EXPECTED:
        (case / name).unlink(missing_ok=True)
        if name in outcome:
            (case / name).write_bytes(outcome[name])


def test_there_are_cases() -> None:
    assert len(CASES) >= 20
    known = {*golden.EXPECTED, "entries", "observed.json", "owned", "guestnet.toml", "resolv.conf.before"}
    assert {path.name for case in CASES for path in case.iterdir()} <= known
