# SPDX-License-Identifier: GPL-2.0-or-later
"""rpm has no diversions: our scriptlets move scripts of qubes-core-agent-networking aside, and back, in any order."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.machines.machine import Mounts
from tests.support.machines.packages import TREE
from tests.support.needs import needs
from tests.system.test_packages import LAUNCHERS

SCRIPTS = sorted(LAUNCHERS)
COMMAND, OUR_COMMAND = "/usr/bin/qubes-firewall", "/usr/libexec/qubes-guestnet/qubes-firewall"
SPEC = """\
Name: qubes-core-agent-networking
Version: {version}
Release: 1
Summary: stand-in made by a test
License: none
BuildArch: noarch
%description
Stand-in made by a test, not the package of Qubes OS.
%install
for script in {scripts}; do
    mkdir -p %{{buildroot}}${{script%%/*}}
    echo '#!/bin/sh -e # {version}' > %{{buildroot}}$script
    chmod 0755 %{{buildroot}}$script
done
%files
{files}
"""
LIMIT_S = 120
THEIRS = [*SCRIPTS, COMMAND]


def build(*command: str) -> None:
    path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=path)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    needs("rpmbuild")
    folder = tmp_path_factory.mktemp("rpms")
    build(str(TREE / "tools/build-rpm"), str(folder))
    found = {"ours": next(folder.glob("*.rpm"))}
    for version in ("1", "2"):
        spec = folder / f"{version}.spec"
        spec.write_text(SPEC.format(version=version, scripts=" ".join(THEIRS), files="\n".join(THEIRS)))
        build("rpmbuild", "-bb", "--quiet", "--define", f"_topdir {folder}/top", str(spec))
        found[version] = next(folder.glob(f"top/RPMS/noarch/*-{version}-1.noarch.rpm"))
    return found


class Root:
    """An image with an empty rpm database, and the scripts in it."""

    def __init__(self, mounts: Mounts, base: Path) -> None:
        self._hall, self._tree = mounts, mounts.root(base) / "tree"

    def rpm(self, *arguments: object) -> None:
        words = " ".join(map(str, arguments))
        done = self._hall.run(f"rpm --root {self._tree} --dbpath /var/lib/rpm --nodeps {words}")
        assert "failed" not in done.stderr, done.stderr

    def found(self) -> dict[str, str]:
        """Where each link leads, or else what the script says."""
        return {script: self.said(script) for script in SCRIPTS}

    def said(self, script: str) -> str:
        """Where one leads, or what it says; "none" when there is none."""
        path = f"{self._tree}{script}"
        text = self._hall.run(f"readlink {path} || cat {path} || echo none", check=False).stdout.strip()
        return text.removeprefix("#!/bin/sh -e # ")

    def left(self) -> list[str]:
        """Every file beside the scripts."""
        folders = sorted({f"{self._tree}{Path(script).parent}" for script in SCRIPTS})
        names = self._hall.run(f"find {' '.join(folders)} ! -type d 2>/dev/null || :").stdout.split()
        return sorted(name.removeprefix(str(self._tree)) for name in names)


OURS = {script: f"/usr/libexec/qubes-guestnet/{Path(script).name}" for script in SCRIPTS}


def test_beside_and_gone_again(mounts: Mounts, base: Path, packages: dict[str, Path]) -> None:
    root = Root(mounts, base)
    root.rpm("--install", packages["1"])
    root.rpm("--install", packages["ours"])
    assert root.found() == OURS
    root.rpm("--upgrade", packages["2"])
    assert root.found() == OURS
    root.rpm("--erase", "qubes-guestnet")
    assert root.found() == dict.fromkeys(SCRIPTS, "2")
    assert root.left() == SCRIPTS


def test_installed_before_it_and_left_behind_by_it(mounts: Mounts, base: Path, packages: dict[str, Path]) -> None:
    root = Root(mounts, base)
    root.rpm("--install", packages["ours"])
    assert root.found() == OURS
    root.rpm("--install", packages["1"])
    assert root.found() == OURS
    root.rpm("--install", "--replacepkgs", packages["ours"])
    assert root.found() == OURS
    root.rpm("--erase", "qubes-core-agent-networking")
    assert root.found() == OURS
    assert root.left() == SCRIPTS
    root.rpm("--erase", "qubes-guestnet")
    assert root.left() == []


@pytest.mark.behaviour("B137")
def test_the_command_is_ours_only_where_the_other_package_has_none(
    mounts: Mounts, base: Path, packages: dict[str, Path]
) -> None:
    root = Root(mounts, base)
    said = []
    for words in (
        ("--install", packages["ours"]),
        ("--install", packages["1"]),
        ("--install", "--replacepkgs", packages["ours"]),
        ("--erase", "qubes-core-agent-networking"),
        ("--install", packages["2"]),
        ("--erase", "qubes-guestnet"),
        ("--erase", "qubes-core-agent-networking"),
        ("--install", packages["ours"]),
        ("--erase", "qubes-guestnet"),
    ):
        root.rpm(*words)
        said.append(root.said(COMMAND))
    assert said == [OUR_COMMAND, "1", "1", OUR_COMMAND, "2", "2", "none", OUR_COMMAND, "none"]
