# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `qubes-firewall`, which users' scripts call: ours where core-agent's package has not brought its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.machines.machine import APT, Mounts

COMMAND, OUR_COMMAND = "/usr/bin/qubes-firewall", "/usr/libexec/qubes-guestnet/qubes-firewall"
OTHER = "qubes-core-agent-networking"


def said(mounts: Mounts, root: Path) -> str:
    """Where it leads; "its own" for a file, "none" when there is nothing."""
    path = f"{root}/tree{COMMAND}"
    return mounts.run(f"readlink {path} || if [ -e {path} ]; then echo its own; else echo none; fi").stdout.strip()


def remove(mounts: Mounts, root: Path, package: str) -> None:
    script = f"chroot {root}/tree apt-get {' '.join(APT)} purge {package}"
    mounts.run(f"export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8; {script}")


@pytest.mark.behaviour("B137")
def test_it_is_ours_only_where_the_other_package_has_none(
    mounts: Mounts, base: Path, plain: Path, installed: Path, core_agent: Path
) -> None:
    root = mounts.root(base, plain, installed)
    assert said(mounts, root) == OUR_COMMAND
    mounts.install(root, [core_agent])
    assert said(mounts, root) == "its own"
    remove(mounts, root, OTHER)
    assert said(mounts, root) == OUR_COMMAND
    remove(mounts, root, "qubes-guestnet")
    assert said(mounts, root) == "none"


@pytest.mark.behaviour("B137")
def test_the_other_package_s_stays_when_ours_comes_and_goes(
    mounts: Mounts, base: Path, plain: Path, built: Path, core_agent: Path
) -> None:
    root = mounts.root(base, plain)
    for package in (core_agent, built):
        mounts.install(root, [package])
        assert said(mounts, root) == "its own"
    remove(mounts, root, "qubes-guestnet")
    assert said(mounts, root) == "its own"
