# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's network settings, on the real /proc/sys/net of a namespace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qubes_guestnet.errors import FileError
from qubes_guestnet.system import procfs_sysctl
from tests.support.judge.oracle import Oracle

PROXY_ARP = ("ipv4", "conf", "vif4.0", "proxy_arp")


@pytest.fixture
def vif(oracle: Oracle) -> Path:
    oracle.run("ip", "link", "add", "vif4.0", "type", "veth", "peer", "name", "qube")
    return Path("/proc/sys/net/ipv4/conf/vif4.0")


def test_an_interface_with_a_dot_in_its_name(vif: Path) -> None:
    assert (vif / "proxy_arp").read_text() == "0\n"
    assert procfs_sysctl.read(PROXY_ARP) == "0"
    assert procfs_sysctl.write(PROXY_ARP, 1)
    assert (vif / "proxy_arp").read_text() == "1\n"
    assert procfs_sysctl.read(PROXY_ARP) == "1"
    assert procfs_sysctl.write(PROXY_ARP, "0")
    assert (vif / "proxy_arp").read_text() == "0\n"


def test_a_value_that_is_there_is_not_written(vif: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To write forwarding its own value would reset what users set for single interfaces."""
    procfs_sysctl.write(PROXY_ARP, 1)
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("written"))
    assert procfs_sysctl.write(PROXY_ARP, "1")


def test_what_the_kernel_does_not_have(vif: Path, oracle: Oracle) -> None:
    assert procfs_sysctl.read(("ipv9", "conf", "vif4.0", "proxy_arp")) is None
    assert not procfs_sysctl.write(("ipv9", "conf", "vif4.0", "proxy_arp"), 1)
    oracle.run("ip", "link", "delete", "vif4.0")
    assert not procfs_sysctl.write(PROXY_ARP, 1)


def test_an_interface_that_goes_between_reading_and_writing(vif: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs_sysctl, "read", lambda _words: "0")
    assert not procfs_sysctl.write(("ipv4", "conf", "vif5.0", "proxy_arp"), 1)


def test_what_the_kernel_refuses_is_told_with_the_file(vif: Path) -> None:
    with pytest.raises(FileError, match=r"^/proc/sys/net/ipv4/conf/vif4.0/proxy_arp: Invalid argument$"):
        procfs_sysctl.write(PROXY_ARP, "yes")
    with pytest.raises(FileError, match="Is a directory"):
        procfs_sysctl.read(("ipv4", "conf"))


def test_a_read_only_proc(oracle: Oracle, vif: Path) -> None:
    oracle.run("sh", "-ec", "mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys")
    with pytest.raises(FileError, match="Read-only file system; /proc/sys is read-only here"):
        procfs_sysctl.write(PROXY_ARP, 1)
    assert procfs_sysctl.write(PROXY_ARP, 0)


@pytest.mark.parametrize("word", ["", ".", "..", "a/b", "/", "a\0b"])
def test_a_word_that_would_leave_the_folder(word: str) -> None:
    for use in (lambda: procfs_sysctl.read(("ipv4", word)), lambda: procfs_sysctl.write(("ipv4", word), 1)):
        with pytest.raises(ValueError, match="not the name"):
            use()  # type: ignore[no-untyped-call]
