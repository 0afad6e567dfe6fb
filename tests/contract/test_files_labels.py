# SPDX-License-Identifier: GPL-2.0-or-later
"""The SELinux label of a published file: answered here, since no machine of ours runs SELinux."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from qubes_guestnet.system import files
from qubes_guestnet.system.files import Published, publish
from tests.support.faults.refuse import refuse
from tests.support.judge.publishing import SHORT


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Path:
    path = tmp_path / "etc" / "resolv.conf"
    path.parent.mkdir()
    path.write_bytes(b"old\n")
    return path


@pytest.fixture
def selinux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The labels that were set, by file name at that moment."""
    (tmp_path / "enforce").write_bytes(b"1")
    labels: dict[str, bytes] = {}

    def setxattr(fd: int, name: str, label: bytes) -> None:
        assert name == "security.selinux"
        labels[os.readlink(f"/proc/self/fd/{fd}")] = label

    monkeypatch.setattr(files, "_SELINUX", str(tmp_path / "enforce"))
    monkeypatch.setattr(os, "getxattr", lambda path, name, follow_symlinks: f"{name} of {path}".encode())
    monkeypatch.setattr(os, "setxattr", setxattr)
    return labels


def test_the_label_of_the_old_file(selinux: dict[str, bytes], resolv_conf: Path) -> None:
    publish(str(resolv_conf), SHORT)
    ((temporary, label),) = selinux.items()
    assert temporary.startswith(f"{resolv_conf.parent}/.resolv.conf."), "before the rename"
    assert label == f"security.selinux of {resolv_conf}".encode()


class Policy:
    """The module `selinux`, as far as it is used."""

    @staticmethod
    def matchpathcon(path: str, mode: int) -> list[object]:
        assert mode == 0o100000
        return [0, f"policy of {path}"]


@pytest.mark.parametrize("link", [False, True])
def test_the_label_of_the_policy(
    link: bool, selinux: dict[str, bytes], resolv_conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "selinux", Policy)
    resolv_conf.unlink()
    if link:
        resolv_conf.symlink_to("nowhere")
    publish(str(resolv_conf), SHORT)
    assert list(selinux.values()) == [f"policy of {resolv_conf}".encode() + b"\0"]


@pytest.mark.parametrize("failing", ["getxattr", "setxattr", "import"])
def test_a_file_without_a_label_is_better_than_none(
    failing: str,
    selinux: dict[str, bytes],
    resolv_conf: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if failing == "import":
        monkeypatch.setitem(sys.modules, "selinux", None)
        resolv_conf.unlink()
    else:
        refuse(monkeypatch, failing, errno.EOPNOTSUPP)
    assert publish(str(resolv_conf), SHORT) is Published.REPLACED
    assert resolv_conf.read_bytes() == SHORT
    assert not selinux
    assert "restorecon" in caplog.text
