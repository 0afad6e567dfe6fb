# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs before a commit is what CI runs, and the tools that judge are the same releases everywhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

TREE = Path(__file__).resolve().parents[2]
HOOKS = TREE / ".pre-commit-config.yaml"
JUDGES = ("ruff", "mypy", "pre-commit")


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
