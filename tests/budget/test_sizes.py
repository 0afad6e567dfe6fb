# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing grows beyond what a person reads in one go, unless its docstring says "N lines because …"."""

from __future__ import annotations

import ast
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
FILE_LINES = 400
FUNCTION_LINES = 50
FOLDERS = ("qubes_guestnet", "tests", "bench", "tools")
FILES = sorted(file for folder in FOLDERS for file in (TREE / folder).rglob("*.py"))


def reason(node: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether its docstring says why it is that long."""
    return "lines because" in " ".join((ast.get_docstring(node) or "").split())


def test_files_are_short_or_say_why_not() -> None:
    long = [
        f"{file.relative_to(TREE)}: {lines} lines"
        for file in FILES
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > FILE_LINES
        and not reason(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert long == []


def test_functions_are_short_or_say_why_not() -> None:
    long = [
        f"{file.relative_to(TREE)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
        and not reason(node)
    ]
    assert long == []


def test_every_file_names_its_licence() -> None:
    without = [
        str(file.relative_to(TREE))
        for file in FILES
        if "SPDX-License-Identifier: GPL-2.0-or-later" not in "".join(file.read_text(encoding="utf-8").splitlines()[:2])
    ]
    assert without == []
