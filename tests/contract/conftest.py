# SPDX-License-Identifier: GPL-2.0-or-later
"""Every client of the store, and a daemon that can be made to misbehave."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import tests.support.unhurried  # noqa: F401
from tests.support.programs.qubesdb_clients import KINDS, Kind, kind_of
from tests.support.programs.qubesdb_faulty import Running


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kind]:
    yield from kind_of(request, monkeypatch)


@pytest.fixture
def daemon(kind: Kind) -> Iterator[Running]:
    with kind.serve() as running:
        yield running
