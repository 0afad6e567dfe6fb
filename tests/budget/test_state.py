# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing but `PassMemory` goes from one pass of a provider to the next. Read from the source.

An attribute that a method other than `__init__` assigns, and a container that a method changes in place, is state. Each
one that there is has its reason here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
PROVIDER = TREE / "qubes_guestnet/provider"
CHANGES = {"add", "append", "update", "clear", "pop", "popitem", "setdefault", "discard", "remove", "extend", "insert"}

# Class → its state, and the reason why it is no part of the frozen value.
ALLOWED = {
    "Provider": (
        {"memory", "_firewall"},
        "the value that passes take and leave; and the holder of the names' sockets, made where they are needed",
    ),
    "Firewall": ({"names"}, "has sockets, made with the first rule by name"),
    "FirewallNames": (
        {"_flying", "_uplinks", "_share", "_shortest", "_anew", "_troubles", "_unsaved", "_cache", "_saved", "_known"},
        "look-ups in flight between passes: the loop polls their sockets. What is known is a value, `name_cache.Cache`",
    ),
    "Transactions": (
        {"_made", "ours", "_families", "_listed"},
        "the count of this process's own transactions, as the kernel counts all; and what nft listed at a generation",
    ),
    "Vifs": ({"_known"}, "the records of vifs as of a state of their folder: a cache, asked by each pass"),
    "Progress": ({"errors"}, "of one pass: it begins empty and ends with the pass"),
    "PassState": ({f"progress.{each}" for each in ("memory", "errors", "todo", "done")}, "the same"),
    "BaseRulesPlanner": ({"looked", "_marked", "now", "_facts"}, "of one pass"),
    "_FirewallPlanner": ({"rules", "_followed", "_planned"}, "of one pass"),
}


def changed(method: ast.FunctionDef) -> Iterator[str]:
    """The attributes of `self` that a method assigns or changes in place."""
    for node in ast.walk(method):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
            targets = [node.func.value]
        for target in targets:
            for each in target.elts if isinstance(target, ast.Tuple) else (target,):
                name = ast.unparse(each.value if isinstance(each, ast.Subscript) else each)
                if name.startswith("self."):
                    yield name.removeprefix("self.")


def state(source: str) -> dict[str, set[str]]:
    """Class → its attributes that change after it was made."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef):
            continue
        methods = (each for each in node.body if isinstance(each, ast.FunctionDef) and each.name != "__init__")
        attributes = {name for method in methods for name in changed(method)}
        if attributes:
            found[node.name] = attributes
    return found


def test_each_state_of_the_providers_half_has_its_reason() -> None:
    found: dict[str, set[str]] = {}
    for path in sorted(PROVIDER.glob("*.py")):
        found.update(state(path.read_text()))
    assert found == {name: attributes for name, (attributes, _) in ALLOWED.items()}


def test_state_is_found_in_each_of_its_forms() -> None:
    source = """
class A:
    def __init__(self): self._made = 0
    def one(self): self._a = 1
    def two(self): self._b += 1
    def three(self): self._c.add(1)
    def four(self): self._d[1] = 2
    def five(self): self._e, local = 1, 2
    def six(self):
        def inner(): self._f = 1
    def seven(self): return self._read, self._asked.get(1)
    def eight(self): del self._g[1]
    def nine(self): self._h.inner = 1
"""
    assert state(source) == {"A": {*(f"_{each}" for each in "abcdefg"), "_h.inner"}}
