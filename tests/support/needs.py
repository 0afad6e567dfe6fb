# SPDX-License-Identifier: GPL-2.0-or-later
"""What a test needs of the machine. A missing tool is a failure, never a skip: a skipped test proves nothing."""

from __future__ import annotations

import os
import shutil

import pytest

from qubes_guestnet.lab.namespaces import unpacked_programs

SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
PACKAGES = {
    "bash": "bash",
    "NetworkManager": "network-manager",
    "cc": "gcc",
    "conntrack": "conntrack",
    "dbus-broker-launch": "dbus-broker",
    "dbus-daemon": "dbus-daemon",
    "dh": "debhelper",
    "dh_python3": "dh-python",
    "dnsmasq": "dnsmasq-base",
    "dpkg-buildpackage": "dpkg-dev",
    "ethtool": "ethtool",
    "flock": "util-linux",
    "ip": "iproute2",
    "mandoc": "mandoc",
    "mkfs.ext4": "e2fsprogs",
    "mount": "mount",
    "nmcli": "network-manager",
    "nft": "nftables",
    "nmap": "nmap",
    "nsenter": "util-linux",
    "ping": "iputils-ping",
    "qemu-system-x86_64": "qemu-system-x86",
    "rpmbuild": "rpm",
    "sysctl": "procps",
    "systemd-analyze": "systemd",
    "systemd-nspawn": "systemd-container",
    "unshare": "util-linux",
}


def needs(*commands: str) -> None:
    """Fail the test unless every command is there, naming the Debian packages that have them.

    Raises:
        Failed (pytest): at least one is missing.
    """
    unpacked = unpacked_programs()  # at /usr within the lab, and tests ask also outside of it
    path = f"{os.environ.get('PATH', '')}:{SBIN}:{unpacked}/bin:{unpacked}/sbin"
    missing = [command for command in commands if shutil.which(command, path=path) is None]
    if missing:
        packages = " ".join(sorted({PACKAGES.get(command, command) for command in missing}))
        pytest.fail(f"missing: {', '.join(missing)}; install with: apt-get install {packages}", pytrace=False)
