# SPDX-License-Identifier: GPL-2.0-or-later
"""rpm has no diversions: its triggers move setup-ip of qubes-core-agent-networking aside, and back, in any order."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.machine import Hall
from tests.support.needs import needs
from tests.support.packages import TREE

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
mkdir -p %{{buildroot}}/usr/lib/qubes
echo '#!/bin/sh -e # {version}' > %{{buildroot}}/usr/lib/qubes/setup-ip
chmod 0755 %{{buildroot}}/usr/lib/qubes/setup-ip
%files
/usr/lib/qubes/setup-ip
"""
LINK = "../../libexec/qubes-guestnet/setup-ip"
LIMIT_S = 120


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
        spec.write_text(SPEC.format(version=version))
        build("rpmbuild", "-bb", "--quiet", "--define", f"_topdir {folder}/top", str(spec))
        found[version] = next(folder.glob(f"top/RPMS/noarch/*-{version}-1.noarch.rpm"))
    return found


class Root:
    """An image with an empty rpm database, and setup-ip in it."""

    def __init__(self, hall: Hall, base: Path) -> None:
        self._hall, self._tree = hall, hall.root(base) / "tree"

    def rpm(self, *arguments: object) -> None:
        words = " ".join(map(str, arguments))
        done = self._hall.run(f"rpm --root {self._tree} --dbpath /var/lib/rpm --nodeps {words}")
        assert "failed" not in done.stderr, done.stderr

    def setup_ip(self) -> str:
        """Where the link leads, or else what the script says."""
        path = f"{self._tree}/usr/lib/qubes/setup-ip"
        return self._hall.run(f"readlink {path} || cat {path} || echo none", check=False).stdout.strip()

    def left(self) -> list[str]:
        return self._hall.run(f"ls {self._tree}/usr/lib/qubes 2>/dev/null || :").stdout.split()


def test_beside_and_gone_again(hall: Hall, base: Path, packages: dict[str, Path]) -> None:
    root = Root(hall, base)
    root.rpm("--install", packages["1"])
    root.rpm("--install", packages["ours"])
    assert root.setup_ip() == LINK
    root.rpm("--upgrade", packages["2"])
    assert root.setup_ip() == LINK
    root.rpm("--erase", "qubes-guestnet")
    assert root.setup_ip().endswith("# 2")
    assert root.left() == ["setup-ip"]


def test_installed_before_it_and_left_behind_by_it(hall: Hall, base: Path, packages: dict[str, Path]) -> None:
    root = Root(hall, base)
    root.rpm("--install", packages["ours"])
    assert root.left() == []
    root.rpm("--install", packages["1"])
    assert root.setup_ip() == LINK
    root.rpm("--install", "--replacepkgs", packages["ours"])
    assert root.setup_ip() == LINK
    root.rpm("--erase", "qubes-core-agent-networking")
    assert root.left() == []
    root.rpm("--erase", "qubes-guestnet")
    assert root.left() == []
