# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of every adapter × its errors is complete: it names each module of `system`, or says why not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import qubes_guestnet
from tests.support.faults.adapter_errors import ALL, NOT_ASKED, SYSTEM

pytestmark = pytest.mark.behaviour("B146")

PACKAGE = Path(qubes_guestnet.__file__).parent
# Constants, and two modules of the standard library without their enumerations.
NO_ADAPTERS = {"paths", "plain_signal", "plain_socket"}
TRIED = {place.partition(":")[0].removeprefix(f"{SYSTEM}.") for table in ALL for place, _ in table}


def test_each_adapter_is_in_the_table_or_has_a_reason() -> None:
    system = PACKAGE / "system"
    files = (path.relative_to(system).with_suffix("") for path in system.rglob("*.py") if path.stem != "__init__")
    modules = {".".join(file.parts) for file in files} - NO_ADAPTERS
    assert sorted(modules - TRIED - NOT_ASKED.keys()) == [], "add rows to tests/support/faults/adapter_errors.py"
    assert sorted(NOT_ASKED.keys() - modules) == []
    assert sorted(TRIED & NOT_ASKED.keys()) == [], "a module that is in the table needs no reason"


def test_adapters_that_the_agent_does_not_ask_are_imported_where_the_reason_says() -> None:
    found: dict[str, set[str]] = {name: set() for name in NOT_ASKED}
    for path in PACKAGE.rglob("*.py"):
        where = path.relative_to(PACKAGE).with_suffix("").parts
        if where[0] != "lab":
            for name in imported(path, where):
                found.get(name, set()).add(".".join(where))
    assert found == {name: set(importers) for name, (_, importers) in NOT_ASKED.items()}


def imported(path: Path, where: tuple[str, ...]) -> Iterator[str]:
    """Names of the modules of `system` that a file imports, also where it is in a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        package = (*where[: len(where) - node.level], *(node.module or "").split(".")) if node.level else ()
        package = tuple(word for word in package if word)
        if package[:1] == ("system",):
            yield ".".join(package[1:])
            yield from (".".join((*package[1:], alias.name)) for alias in node.names)
