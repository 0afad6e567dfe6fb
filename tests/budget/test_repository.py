# SPDX-License-Identifier: GPL-2.0-or-later
"""The repository is for every machine: no path of one machine is in it, and no name that a stranger could register."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]
OWN_NAME = Path(__file__).name
# Folders that belong to one person's or one build machine's account, and addresses of package registries.
MACHINE = re.compile(r"/(?:home|Users|workspace)/[a-z]|/root/\.|/work/|(?:deb\.debian|pypi|pythonhosted|npmjs)\.org")
# What git ignores. The list is walked, and git not asked, because a source archive has no git.
NOT_OURS = re.compile(r"^\.(venv|daemons)|^\.git$|^__pycache__$|_cache$|\.egg-info$|^(build|dist|\.hypothesis)$")
PROJECT_FILES = ("README.md", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md", ".ci/run", "Makefile", "docs/design.md")


def texts() -> dict[str, str]:
    """Every text file that is, or is about to be, in the repository."""
    found = {}
    for folder, folders, names in os.walk(TREE):
        folders[:] = [name for name in folders if not NOT_OURS.search(name)]
        for name in names:
            path = Path(folder, name)
            if path.suffix == ".pyc" or name.startswith(".coverage") or name == ".git":  # a file in a work tree
                continue
            try:
                found[str(path.relative_to(TREE))] = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
    return found


def test_no_path_or_registry_of_one_machine() -> None:
    hits = {
        name: match.group()
        for name, text in texts().items()
        if name != "LICENSE" and not name.endswith(OWN_NAME) and (match := MACHINE.search(text))
    }
    assert hits == {}


def test_no_line_names_this_very_tree() -> None:
    assert [name for name, text in texts().items() if f"{TREE}/" in text] == []


def test_text_files_are_as_editorconfig_says() -> None:
    ours = {name: text for name, text in texts().items() if not name.startswith("tests/golden/")}
    assert ".editorconfig" in ours
    assert [name for name, text in ours.items() if text and not text.endswith("\n")] == []
    assert [name for name, text in ours.items() if re.search(r"[ \t\r]$", text, re.MULTILINE)] == []


def test_qubesdb_is_never_a_python_dependency() -> None:
    """It is a system package; on the public index anybody could register the name and run code as root in a qube."""
    project = tomllib.loads((TREE / "pyproject.toml").read_text(encoding="utf-8"))
    named = [
        *project["project"]["dependencies"],
        *(name for extra in project["project"]["optional-dependencies"].values() for name in extra),
        *project["build-system"]["requires"],
    ]
    assert [name for name in named if "qubesdb" in name.lower()] == []
    assert "qubesdb" not in (TREE / "tools" / "setup").read_text(encoding="utf-8")


def test_a_stranger_finds_what_he_expects() -> None:
    assert [name for name in PROJECT_FILES if not (TREE / name).is_file()] == []
    readme = (TREE / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme
    assert "make test" in readme


def test_shell_scripts_parse() -> None:
    tools = ("tools/setup", "tools/unpack-daemons")
    for script in (".ci/run", *tools, "bench/baseline/uplink.sh", "bench/baseline/vif.sh"):
        first = (TREE / script).read_text(encoding="utf-8").splitlines()[0]
        assert os.access(TREE / script, os.X_OK), script
        shell = "bash" if "bash" in first else "sh"
        done = subprocess.run([shell, "-n", str(TREE / script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("purpose", ["demo", "test", "bench", "packages", "system"])
def test_setup_installs_no_daemon_into_the_users_machine(purpose: str) -> None:
    """They would start there, and systemd-resolved would replace its resolv.conf."""
    done = subprocess.run([str(TREE / "tools/setup"), "list", purpose], capture_output=True, text=True)
    packages = done.stdout.split()
    assert done.returncode == 0, done.stderr
    assert "python3" in packages
    daemons = {"network-manager", "systemd-resolved", "dnsmasq-base", "dnsmasq", "dbus", "dbus-daemon", "dbus-broker"}
    assert daemons.intersection(packages) == set()


def test_the_command_prints_its_version() -> None:
    project = tomllib.loads((TREE / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["scripts"] == {"qubes-guestnet": "qubes_guestnet.cli.main:main"}
