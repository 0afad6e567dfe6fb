# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs before a commit is what CI runs, and the tools that judge are the same releases everywhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

TREE = Path(__file__).resolve().parents[2]
HOOKS = TREE / ".pre-commit-config.yaml"
JUDGES = ("ruff", "mypy", "pre-commit")
NEWS = TREE / "newsfragments"


def would_run(target: str) -> list[str]:
    """The commands of a target of the Makefile, its setup left out."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", "--dry-run", target]
    done = subprocess.run(command, cwd=TREE, env=environment, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if not line.startswith("tools/setup")]


def test_a_commit_is_held_to_exactly_what_ci_lints() -> None:
    (repository,) = yaml.safe_load(HOOKS.read_text(encoding="utf-8"))["repos"]
    assert repository["repo"] == "local", "nothing is fetched: the programs are those of .venv"
    lint = would_run("lint")
    assert [hook["entry"] for hook in repository["hooks"]] == lint
    assert [line.split()[1:] for line in lint] == [["check", "."], ["format", "--check", "."], []]
    for hook in repository["hooks"]:
        assert (hook["language"], hook["pass_filenames"], hook["always_run"]) == ("system", False, True)
    assert set(lint) < set(would_run("test"))
    assert "make test" in (TREE / ".ci/run").read_text(encoding="utf-8")


def test_pre_commit_takes_the_file() -> None:
    command = [sys.executable, "-m", "pre_commit", "validate-config", str(HOOKS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_judges_is_pinned_in_one_place() -> None:
    test = tomllib.loads((TREE / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"][
        "test"
    ]
    pins = {name: entry for entry in test for name in JUDGES if re.match(rf"{name}\b(?!-)", entry)}
    assert set(pins) == set(JUDGES)
    assert [entry for entry in pins.values() if not re.fullmatch(r"[\w-]+==\d+\.\d+\.\d+", entry)] == []
    elsewhere = [TREE / name for name in (".pre-commit-config.yaml", ".ci/run", "Makefile", "tools/setup")]
    numbers = [entry.partition("==")[2] for entry in pins.values()]
    assert [path.name for path in elsewhere for number in numbers if number in path.read_text(encoding="utf-8")] == []


def test_towncrier_collects_every_newsfragment() -> None:
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "9.9.9"]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fragments = [path for path in NEWS.iterdir() if path.name != "README.md"]
    assert done.stdout.startswith("## 9.9.9 (")
    said = done.stdout.replace("\n  ", "\n")
    assert [path.name for path in fragments if path.read_text(encoding="utf-8").strip() not in said] == []
    assert [path.name for path in fragments if "<!--" in path.read_text(encoding="utf-8")] == [], "it would be printed"


def test_the_kinds_of_news_are_those_that_contributors_are_told() -> None:
    kinds = tomllib.loads((TREE / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["towncrier"]["type"]
    told = (NEWS / "README.md").read_text(encoding="utf-8")
    listed = re.search(r"where KIND is (.*?):", told, re.DOTALL)
    assert listed is not None
    assert re.findall(r"`(\w+)`", listed[1]) == [kind["directory"] for kind in kinds]


def test_what_tests_share_has_its_row() -> None:
    page = (TREE / "tests/support/README.md").read_text(encoding="utf-8")
    rows = [row for row in re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE) if row != "module"]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(path.stem for path in (TREE / "tests/support").rglob("*.py"))


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/release.md", "tests/support/README.md"])
def test_what_a_page_for_contributors_names_is_there(page: str) -> None:
    text = (TREE / page).read_text(encoding="utf-8")
    paths = {name for name in re.findall(r"`([\w.-]+(?:/[\w.-]+)+/?)`", text) if not name.startswith("area/")}
    assert paths
    assert [name for name in sorted(paths) if not (TREE / name).exists()] == []
    targets = set(re.findall(r"^(?:.*`)?make ([a-z][\w-]*)", text, re.MULTILINE))
    known = set(re.findall(r"^([a-z][\w-]*):", (TREE / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    known |= set(
        re.findall(r"^([a-z][\w-]*):", (TREE / "tools/packaging.mk").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert targets - known == set()
