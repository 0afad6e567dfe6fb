# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian packages for the boot tests: ours, and stand-ins for those of Qubes OS that no registry here has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support.needs import needs

TREE = Path(__file__).resolve().parents[2]
BUILD_LIMIT_S = 300
STORE = "/opt/qubes-db-stand-in"
ENTRIES = "/etc/qubes-db-stand-in"

STORE_UNIT = f"""\
[Unit]
Description=QubesDB (stand-in: the lab's daemon)
DefaultDependencies=no
After=systemd-tmpfiles-setup.service
Before=sysinit.target

[Service]
Environment=PYTHONPATH={STORE}
RuntimeDirectory=qubes
ExecStart=/usr/bin/python3 -m qubes_guestnet.lab.store_cli --dir /run/qubes --file {ENTRIES}
ExecStartPost=/bin/sh -c 'until [ -S /run/qubes/qubesdb.ro.sock ]; do sleep 0.02; done'
"""
UPLINK_UNIT = """\
[Unit]
Description=Stand-in for the uplink unit of qubes-core-agent-networking (%i)
After=network-pre.target
Before=network.target
Wants=network.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/lib/qubes/setup-ip add "%i"
ExecStop=/usr/lib/qubes/setup-ip remove "%i"
"""
WAIT_UNIT = """\
[Unit]
Description=Stand-in for the waiting unit of qubes-core-agent-networking
Before=network.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/lib/qubes/setup-ip wait

[Install]
WantedBy=multi-user.target
"""
SETUP_IP = """\
#!/bin/sh
echo "$@" >>/run/core-agent-setup-ip
"""


def ours(folder: Path, version: str = "", build_type: str = "--build=binary") -> Path:
    """Build our package into a folder.

    Args:
        folder: made when missing.
        version: another than that of debian/changelog, for upgrades.
        build_type: what dpkg-buildpackage is to make.
    """
    needs("dpkg-buildpackage", "dh", "dh_python3")
    command = [str(TREE / "tools" / "build-deb"), str(folder), *([version] if version else [])]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=BUILD_LIMIT_S,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "GUESTNET_BUILD_TYPE": build_type},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (package,) = folder.glob("*.deb")
    return package


def binding(folder: Path) -> Path:
    """python3-qubesdb: the module that behaves as the C library's binding does."""
    root = folder / "python3-qubesdb"
    module = root / "usr/lib/python3/dist-packages/qubesdb.py"
    module.parent.mkdir(parents=True)
    shutil.copy(TREE / "tests/support/qubesdb_standin.py", module)
    return _pack(root, "python3-qubesdb", "stand-in made by a test, not the binding of Qubes OS", "python3")


def store(folder: Path) -> Path:
    """qubesdb-vm: the lab's daemon as qubes-db.service, with a copy of the tree that outlives our package."""
    root = folder / "qubesdb-vm"
    shutil.copytree(
        TREE / "qubes_guestnet",
        root / STORE[1:] / "qubes_guestnet",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    units = root / "lib/systemd/system"
    (units / "sysinit.target.wants").mkdir(parents=True)
    (units / "qubes-db.service").write_text(STORE_UNIT)
    (units / "sysinit.target.wants/qubes-db.service").symlink_to("../qubes-db.service")
    return _pack(root, "qubesdb-vm", "stand-in made by a test: a QubesDB daemon in Python", "python3")


def core_agent(folder: Path) -> Path:
    """qubes-core-agent-networking: the names that other things know, and a setup-ip that only takes notes."""
    root = folder / "qubes-core-agent-networking"
    units, script = root / "lib/systemd/system", root / "usr/lib/qubes/setup-ip"
    rule = root / "lib/udev/rules.d/99-qubes-network.rules"
    (units / "multi-user.target.wants").mkdir(parents=True)
    script.parent.mkdir(parents=True)
    rule.parent.mkdir(parents=True)
    (units / "qubes-network-uplink@.service").write_text(UPLINK_UNIT)
    (units / "qubes-network-uplink.service").write_text(WAIT_UNIT)
    (units / "multi-user.target.wants/qubes-network-uplink.service").symlink_to("../qubes-network-uplink.service")
    script.write_text(SETUP_IP)
    script.chmod(0o755)
    rule.write_text(
        'ACTION=="add", SUBSYSTEM=="net", ENV{ID_NET_DRIVER}=="vif", TAG+="systemd", '
        'ENV{SYSTEMD_WANTS}+="qubes-network-uplink@$name.service"\n'
    )
    return _pack(root, "qubes-core-agent-networking", "stand-in made by a test, not the package of Qubes OS")


def _pack(root: Path, name: str, summary: str, depends: str = "") -> Path:
    control = root / "DEBIAN/control"
    control.parent.mkdir()
    fields = {
        "Package": name,
        "Version": "4.3.0",
        "Architecture": "all",
        "Maintainer": "nobody <nobody@localhost>",
        **({"Depends": depends} if depends else {}),
        "Description": summary,
    }
    control.write_text("".join(f"{field}: {value}\n" for field, value in fields.items()))
    package = root.with_suffix(".deb")
    command = ["dpkg-deb", "--root-owner-group", "--build", str(root), str(package)]
    subprocess.run(command, capture_output=True, check=True)
    return package
