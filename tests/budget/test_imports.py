# SPDX-License-Identifier: GPL-2.0-or-later
"""Which module may import which, read from the source; and the part of the budgets that is imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

TREE = Path(__file__).resolve().parents[2]
PACKAGE = TREE / "qubes_guestnet"
FILES = sorted(PACKAGE.rglob("*.py"))

# core decides and never acts: these modules know values only.
PURE_LIBRARY = {
    "__future__", "binascii", "bisect", "collections", "enum", "errno", "functools", "ipaddress", "itertools", "math",
    "operator", "re", "string", "struct", "types", "typing",
}  # fmt: skip

# What the resident agent and a cold `apply` must not load on their way, and why.
TOO_DEAR = {
    "argparse": "10 ms; the fast verbs are parsed by hand",
    "asyncio": "10 MB of resident memory",
    "contextlib": "2 ms",
    "concurrent": "threads are not how the agent waits",
    "ctypes": "1 MB, and a way around every check",
    "dataclasses": "12 ms and 0.7 MB: it imports inspect; values are NamedTuples",
    "http": "there is no server and no client of it in here",
    "importlib.metadata": "20 ms; the version is a constant",
    "inspect": "8 ms",
    "json": "5 ms; only `--json` needs it",
    "logging": "1 MB and 6 ms with what it imports; system.systemd writes the journal's lines",
    "multiprocessing": "one process",
    "pathlib": "4 ms; strings do",
    "random": "1 MB and 5 ms: it imports hashlib",
    "re": "2 ms; allow-lists are sets of bytes",
    "shutil": "imports compressors",
    "ssl": "5 MB",
    "subprocess": "the agent runs no program on the happy path",
    "tempfile": "imports random and shutil; publish() names its own temporary file",
    "threading": "one thread",
    "tomllib": "only when guestnet.toml exists",
    "traceback": "only for a bug",
    "typing": "1 MB and 5 ms; it is for the type checker, see core/namedtuple.py",
    "unittest": "3 MB",
    "urllib": "there is no web in here",
}


class Import(NamedTuple):
    file: Path
    line: int
    module: str
    late: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(TREE)}:{self.line} imports {self.module}{' (late)' if self.late else ''}"


def name_of(file: Path) -> str:
    """Dotted module name of a file of ours."""
    parts = file.relative_to(TREE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> Iterator[Import]:
    """Every import of a file, relative ones made absolute; `if TYPE_CHECKING:` left out, it never runs.

    `submodule("pkg.mod")` and `load("pkg", …)` of system.deferred_imports are imports too.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    own = name_of(file).split(".")
    package = own if file.name == "__init__.py" else own[:-1]
    yield from _walk(tree, file, package, late=False)


def _walk(node: ast.AST, file: Path, package: list[str], *, late: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield from _walk(other, file, package, late=late)
            continue
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(file, child.lineno, alias.name, late)
        elif isinstance(child, ast.ImportFrom):
            base = package[: len(package) - child.level + 1] if child.level else []
            module = ".".join([*base, *([child.module] if child.module else [])])
            yield Import(file, child.lineno, module, late)
            for alias in child.names:
                if _is_ours(f"{module}.{alias.name}"):
                    yield Import(file, child.lineno, f"{module}.{alias.name}", late)
        elif isinstance(child, ast.Call) and _called(child) in _LEAN and _names(child):
            yield Import(file, child.lineno, _names(child), late)
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _walk(child, file, package, late=late or inside)


_LEAN = ("submodule", "load")


def _names(call: ast.Call) -> str:
    """The text that is a call's first argument."""
    first = call.args[0] if call.args else None
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""


def _called(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _file_of(module: str) -> Path | None:
    path = TREE.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _is_ours(module: str) -> bool:
    return module.split(".")[0] == "qubes_guestnet" and _file_of(module) is not None


def below(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def resident() -> dict[Path, str]:
    """Every file of ours that the agent and a cold `apply` load at import time, and what leads there."""
    found: dict[Path, str] = {}
    todo = [
        (PACKAGE / "__init__.py", "start"),
        *((PACKAGE / name, "start") for name in ("agent/loop.py", "cli/main.py", "reconcile.py")),
    ]
    while todo:
        file, reason = todo.pop()
        if file in found or not file.is_file():
            continue
        found[file] = reason
        for entry in imports(file):
            target = _file_of(entry.module) if _is_ours(entry.module) else None
            if target is not None and not entry.late:
                todo.append((target, str(entry)))
    return found


ALL = [entry for file in FILES for entry in imports(file)]


def complain(bad: list[str]) -> None:
    assert not bad, "\n" + "\n".join(bad)


def test_core_imports_values_only() -> None:
    allowed = ("qubes_guestnet.core", "qubes_guestnet.errors")
    complain(
        [
            f"{entry}: core is pure; move the IO to system/"
            for entry in ALL
            if below(name_of(entry.file), "qubes_guestnet.core")
            and not below(entry.module, *allowed)
            and entry.module != "qubes_guestnet"
            and entry.module.split(".")[0] not in PURE_LIBRARY
        ]
    )


def test_system_decides_nothing() -> None:
    above = ["reconcile", "agent", "cli", "lab"]
    complain(
        [
            f"{entry}: system/ is thin adapters; what decides calls them"
            for entry in ALL
            if below(name_of(entry.file), "qubes_guestnet.system")
            and below(entry.module, *(f"qubes_guestnet.{name}" for name in above))
        ]
    )


def graph() -> dict[str, set[str]]:
    """Each module of ours, and those of ours that it imports, early or late."""
    found: dict[str, set[str]] = {name_of(file): set() for file in FILES}
    for entry in ALL:
        target = _file_of(entry.module) if _is_ours(entry.module) else None
        if target is not None and target.name != "__init__.py":
            found[name_of(entry.file)].add(name_of(target))
    return found


def floors(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """The nodes of a graph from the ground up: each stands on lower floors alone. What is left out is in a circle."""
    left, found = {name: targets - {name} for name, targets in arrows.items()}, list[list[str]]()
    placed: set[str] = set()
    while floor := sorted(name for name, targets in left.items() if targets <= placed):
        found.append(floor)
        placed |= set(floor)
        left = {name: targets for name, targets in left.items() if name not in placed}
    return found


def circle(arrows: Mapping[str, set[str]]) -> list[str]:
    """Nodes that import each other in a circle, directly or through others."""
    placed = {name for floor in floors(arrows) for name in floor}
    left = {name: targets - placed for name, targets in arrows.items() if name not in placed}
    while unused := left.keys() - {target for targets in left.values() for target in targets}:
        left = {name: targets for name, targets in left.items() if name not in unused}
    return sorted(left)


def test_no_module_imports_itself_through_others() -> None:
    """Not late either: what needs each other belongs together."""
    assert circle(graph()) == []


@pytest.mark.parametrize(
    ("arrows", "found"),
    [
        ({"a": {"b"}, "b": set()}, []),
        ({"a": {"b"}, "b": {"a"}}, ["a", "b"]),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}, ["b", "c"]),
        ({"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": {"b", "e"}, "e": set()}, ["b", "c", "d"]),
    ],
)
def test_circles_are_seen(arrows: dict[str, set[str]], found: list[str]) -> None:
    assert circle(arrows) == found


def test_core_stands_below_system_and_system_below_the_roles() -> None:
    """The rooms and their arrows, which `python -m tests.budget.test_imports` prints."""
    arrows = rooms()
    assert arrows["core"] <= {"errors"}
    assert arrows["system"] <= {"core", "errors"}
    assert arrows["uplink"] <= {"core", "system", "errors", "flow", "dispatch"}
    assert arrows["provider"] <= {"core", "system", "errors", "flow", "dispatch", "uplink"}
    assert arrows["agent"].isdisjoint({"cli", "lab"})


def folders_of_core() -> dict[str, set[str]]:
    """Each folder of core, and the other folders of core that it imports; modules at its top are of no folder."""
    found: dict[str, set[str]] = {}
    for name, targets in graph().items():
        folder = _folder(name)
        found.setdefault(folder, set()).update({_folder(target) for target in targets} - {folder, ""})
    return {folder: targets for folder, targets in found.items() if folder}


def _folder(module: str) -> str:
    parts = module.split(".")
    return parts[2] if parts[:2] == ["qubes_guestnet", "core"] and len(parts) > 3 else ""


def test_the_folders_of_core_are_in_no_circle() -> None:
    """core/nft is text and listings: it knows no role, and both roles use it."""
    arrows = folders_of_core()
    assert arrows["nft"] == set()
    assert circle(arrows) == []


def rooms() -> dict[str, set[str]]:
    """Each folder or module at the top, and those at the top that it imports."""
    found: dict[str, set[str]] = {}
    for name, targets in graph().items():
        room = _room(name)
        found.setdefault(room, set()).update({_room(target) for target in targets} - {room})
    return found


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def test_only_netlink_knows_pyroute2() -> None:
    complain(
        [
            f"{entry}: only system/netlink/rtnl* may"
            for entry in ALL
            if below(entry.module, "pyroute2") and not name_of(entry.file).startswith("qubes_guestnet.system.netlink.")
        ]
    )


def test_only_qubesdb_knows_the_binding() -> None:
    complain(
        [
            f"{entry}: only system/qubesdb/store.py may"
            for entry in ALL
            if below(entry.module, "qubesdb") and not below(name_of(entry.file), "qubes_guestnet.system.qubesdb")
        ]
    )


def test_the_agent_never_imports_the_lab() -> None:
    """Nor anything else that is not for production; the command line does for `lab`, late."""
    complain(
        [
            f"{entry}: the lab is not for production"
            for entry in ALL
            if below(entry.module, "qubes_guestnet.lab", "tests", "bench")
            and not below(name_of(entry.file), "qubes_guestnet.lab")
            and not (name_of(entry.file).startswith("qubes_guestnet.cli.") and entry.late)
        ]
    )


def test_the_name_look_up_is_apart() -> None:
    """It reads what the network sends, and no other part loads it or its library; it knows the pure values only."""
    own = "qubes_guestnet.names"
    complain(
        [
            f"{entry}: the name look-up is a process of its own; ask it over its socket (system/names_client)"
            for entry in ALL
            if below(entry.module, own, "dns") and not below(name_of(entry.file), own)
        ]
    )
    allowed = (own, "qubes_guestnet.core", "qubes_guestnet.errors")
    complain(
        [
            f"{entry}: the name look-up can do nothing but ask and answer"
            for entry in ALL
            if below(name_of(entry.file), own)
            and below(entry.module, "qubes_guestnet")
            and entry.module != "qubes_guestnet"
            if not below(entry.module, *allowed)
        ]
    )


def test_the_resident_files_import_nothing_dear() -> None:
    found = resident()
    complain(
        [
            f"{entry}: {TOO_DEAR[module]} (loaded because: {found[entry.file]})"
            for entry in ALL
            if entry.file in found and not entry.late
            for module in TOO_DEAR
            if below(entry.module, module)
        ]
    )


def test_importing_the_package_costs_nothing() -> None:
    for package in ("", ".core", ".core.firewall", ".lab", ".names", ".system"):
        file = _file_of(f"qubes_guestnet{package}")
        assert file is not None
        assert [entry for entry in imports(file) if entry.module != "__future__"] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pyroute2", ("pyroute2", False)),
        ("def f():\n    from ..lab import store", ("qubes_guestnet.lab", True)),
        ("from .netlink import x", ("qubes_guestnet.system.netlink", False)),
        ("m = submodule('pyroute2.netlink')", ("pyroute2.netlink", False)),
        ("m = lean.load('pyroute2', ('netlink.nlmsg',))", ("pyroute2", False)),
    ],
)
def test_the_walk_sees_imports_of_every_form(source: str, found: tuple[str, bool]) -> None:
    package = ["qubes_guestnet", "system"]
    seen = [(entry.module, entry.late) for entry in _walk(ast.parse(source), PACKAGE / "x.py", package, late=False)]
    assert found in seen


def test_the_walk_reaches_the_whole_resident_agent() -> None:
    names = {name_of(file) for file in resident()}
    assert {"qubes_guestnet.core.plan", "qubes_guestnet.core.settings", "qubes_guestnet.system.qubesdb.direct"} <= names


if __name__ == "__main__":
    for number, floor in enumerate(floors(graph())):
        print(f"floor {number}: {' '.join(name.removeprefix('qubes_guestnet.') for name in floor)}")
    for room, targets in sorted(rooms().items()):
        print(f"{room} → {' '.join(sorted(targets)) or 'nothing'}")
