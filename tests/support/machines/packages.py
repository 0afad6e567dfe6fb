# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian packages for the boot tests: ours, and stand-ins for those of Qubes OS that no registry here has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support.machines.core_agent import fill, put
from tests.support.needs import needs

TREE = Path(__file__).resolve().parents[3]
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
CLIENT = f"""\
#!/bin/sh
# qubesdb-NAME ARGUMENT..., as far as a stand-in of the other packages asks.
name=${{0##*/qubesdb-}}
PYTHONPATH={STORE} exec /usr/bin/python3 -m qubes_guestnet.lab.store_cli --dir /run/qubes "$name" --raw "$@"
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
    shutil.copy(TREE / "tests/support/programs/qubesdb_standin.py", module)
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
    for name in ("read", "multiread"):
        put(root / f"usr/bin/qubesdb-{name}", CLIENT, 0o755)
    return _pack(root, "qubesdb-vm", "stand-in made by a test: a QubesDB daemon in Python", "python3")


def core_agent(folder: Path, version: str = "4.3.0") -> Path:
    """qubes-core-agent-networking, see core_agent.py."""
    root = folder / f"qubes-core-agent-networking-{version}"
    fill(root, version)
    summary = "stand-in made by a test, not the package of Qubes OS"
    return _pack(root, "qubes-core-agent-networking", summary, "nftables, python3, qubesdb-vm", version)


def _pack(root: Path, name: str, summary: str, depends: str = "", version: str = "4.3.0") -> Path:
    control = root / "DEBIAN/control"
    control.parent.mkdir(exist_ok=True)
    fields = {
        "Package": name,
        "Version": version,
        "Architecture": "all",
        "Maintainer": "Tests <tests@localhost>",
        **({"Depends": depends} if depends else {}),
        "Description": summary,
    }
    control.write_text("".join(f"{field}: {value}\n" for field, value in fields.items()))
    package = root.with_name(f"{name}_{version}.deb")
    command = ["dpkg-deb", "--root-owner-group", "--build", str(root), str(package)]
    subprocess.run(command, capture_output=True, check=True)
    return package
