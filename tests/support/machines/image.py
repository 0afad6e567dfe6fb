# SPDX-License-Identifier: GPL-2.0-or-later
"""Base images for the boot tests: a minimal Debian with systemd, made once and kept outside the tree.

Where: $GUESTNET_TEST_CACHE, else /var/cache/qubes-guestnet-tests. A missing image is made anew from the mirror that
this machine's own apt uses; another recipe gives another name. Delete the folder to start over.

What our packages depend on is not installed in it: the packages lie in its apt cache, so that apt resolves and
installs them in the test itself, without a network.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.needs import needs

SYSTEM = ("systemd", "systemd-sysv", "dbus", "udev", "iproute2", "kmod", "procps")
DEPENDENCIES = (
    "nftables", "python3", "python3-dnspython", "python3-pyroute2", "python3-tenacity", "xenstore-utils",
)  # fmt: skip
# Others that tests install beside ours; of netbase firewalld only knows the protocols.
OTHERS = ("firewalld", "netbase", "network-manager", "dbus-broker", "systemd-resolved")
CACHED = " ".join((*DEPENDENCIES, *OTHERS))
# In the image apt knows only the packages in its cache: with all of Debian it computes 1.3 s for each installation.
FEWER = """\
set -e
cd "$1"
ls var/cache/apt/archives | sed -n 's/_.*\\.deb$//p' >names
for list in var/lib/apt/lists/*_Packages; do
    awk 'BEGIN { while ((getline name <"names") > 0) cached[name]; RS = ""; ORS = "\\n\\n" }
         { split($0, lines, "\\n") } substr(lines[1], 10) in cached' "$list" >kept
    mv kept "$list"
done
rm names var/cache/apt/*.bin
"""
HOOKS = (
    f'chroot "$1" apt-get install --quiet --yes --download-only --no-install-recommends {CACHED}',
    FEWER,
    # What they start at the time of day that a test runs takes dpkg's lock, asks for the network, and may fail.
    "for each in apt-daily apt-daily-upgrade dpkg-db-backup e2scrub_all fstrim; do"
    ' ln -s /dev/null "$1/etc/systemd/system/$each.timer"; done',
    # It would override the name of the machine.
    'rm -f "$1/etc/hostname"',
    # The image shares its kernel with the machine, and what it sets globally would be set there.
    'ln -s /dev/null "$1/etc/systemd/system/systemd-sysctl.service"',
    # The machine's other devices are none of its business.
    'mkdir -p "$1/etc/systemd/system/systemd-udev-trigger.service.d"',
    r'printf "[Service]\nExecStart=\nExecStart=-udevadm trigger --type=all --action=add --subsystem-match=net\n"'
    ' > "$1/etc/systemd/system/systemd-udev-trigger.service.d/net-only.conf"',
    # Without this file systemd believes that there is no udev, and never looks again.
    r'printf "#!/bin/sh\nmkdir -p /run/udev; : >/run/udev/control\nexec /lib/systemd/systemd \"\$@\"\n"'
    ' > "$1/usr/local/sbin/early-init"; chmod +x "$1/usr/local/sbin/early-init"',
)
BUILD_LIMIT_S = 900


def base(suite: str) -> Path:
    """The folder of the image of a Debian release; it is only ever a lower layer, and never written to."""
    recipe = hashlib.sha256(repr((SYSTEM, HOOKS)).encode()).hexdigest()[:12]
    needs("mmdebstrap")
    options = [*(f"--customize-hook={hook}" for hook in HOOKS), "--skip=cleanup/apt/cache", "--skip=cleanup/apt/lists"]
    return kept(f"{suite}-{recipe}", lambda folder: bootstrap(suite, folder, SYSTEM, options))


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of that name in the cache; if it is not there, `make` makes what it is given the path of.

    One process makes it, others that run tests at the same time wait for that.
    """
    cache = Path(os.environ.get("GUESTNET_TEST_CACHE") or "/var/cache/qubes-guestnet-tests")
    folder = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            making = cache / f"{name}.{os.getpid()}"
            try:
                make(making)
                making.rename(folder)
            finally:
                shutil.rmtree(making, ignore_errors=True)
    return folder


def bootstrap(suite: str, folder: Path, packages: Sequence[str], options: Sequence[str]) -> None:
    """Put a minimal Debian with these packages into a folder; `options` are mmdebstrap's."""
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}", *options]
    command += [suite, str(folder), _mirror()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_LIMIT_S)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def _mirror() -> str:
    """Where this machine gets its own Debian from."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert found, "apt knows no Debian mirror: run apt-get update"
    return found[0]
