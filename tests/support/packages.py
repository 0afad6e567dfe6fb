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
# Name, what it stands in for, its place in the boot, and what it would run.
PROVIDER_UNIT = """\
[Unit]
Description=Stand-in for the {name} unit of qubes-core-agent-networking
{order}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'echo {name} >>/run/core-agent-units'

[Install]
"""
PROVIDER_UNITS = {
    "antispoof": ("Before=network-pre.target", "network-pre.target.requires"),
    "iptables": ("Requires=qubes-antispoof.service\nAfter=qubes-antispoof.service", "basic.target.wants"),
    "network": (
        "ConditionPathExists=/var/run/qubes-service/qubes-network\nBefore=network.target\n"
        "After=network-pre.target qubes-iptables.service",
        "multi-user.target.wants",
    ),
}
# As slow as a user's script in it; what was forwarded when it was ready is what a test asks it.
FIREWALL_UNIT = """\
[Unit]
Description=Stand-in for the firewall unit of qubes-core-agent-networking
ConditionPathExists=/var/run/qubes-service/qubes-firewall
After=qubes-iptables.service
Before=qubes-network.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'until systemctl is-active --quiet qubes-guestnet.service; do sleep 0.05; done'
ExecStart=/bin/sh -c 'cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding >/run/at-qubes-firewall'
TimeoutStartSec=60s
"""
# Each takes notes of its arguments; the last one is in /etc, so a configuration file of its package.
CONFFILE = "/etc/xen/scripts/vif-route-qubes"
SCRIPTS = ("/usr/lib/qubes/setup-ip", "/usr/lib/qubes/qubes-setup-dnat-to-ns", CONFFILE)
SCRIPT = """\
#!/bin/sh
# {version}
echo "$@" >>/run/core-agent-{name}
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


def core_agent(folder: Path, version: str = "4.3.0") -> Path:
    """qubes-core-agent-networking: the names that other things know, and scripts that only take notes."""
    root = folder / f"qubes-core-agent-networking-{version}"
    units, rule = root / "lib/systemd/system", root / "lib/udev/rules.d/99-qubes-network.rules"
    _put(units / "qubes-network-uplink@.service", UPLINK_UNIT)
    _put(units / "qubes-network-uplink.service", WAIT_UNIT)
    _enable(units, "qubes-network-uplink.service", "multi-user.target.wants")
    for name, (order, wanted_by) in PROVIDER_UNITS.items():
        _put(units / f"qubes-{name}.service", PROVIDER_UNIT.format(name=name, order=order))
        _enable(units, f"qubes-{name}.service", wanted_by)
    _put(units / "qubes-firewall.service", FIREWALL_UNIT)
    _enable(units, "qubes-firewall.service", "multi-user.target.wants")
    for script in SCRIPTS:
        path = root / script[1:]
        _put(path, SCRIPT.format(name=path.name, version=version))
        path.chmod(0o755)
    _put(
        rule,
        'ACTION=="add", SUBSYSTEM=="net", KERNEL!="vif*", ENV{ID_NET_DRIVER}=="vif", TAG+="systemd", '
        'ENV{SYSTEMD_WANTS}+="qubes-network-uplink@$name.service"\n',
    )
    _put(root / "DEBIAN/conffiles", f"{CONFFILE}\n")
    summary = "stand-in made by a test, not the package of Qubes OS"
    return _pack(root, "qubes-core-agent-networking", summary, version=version)


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _enable(units: Path, unit: str, wanted_by: str) -> None:
    (units / wanted_by).mkdir(exist_ok=True)
    (units / wanted_by / unit).symlink_to(f"../{unit}")


def _pack(root: Path, name: str, summary: str, depends: str = "", version: str = "4.3.0") -> Path:
    control = root / "DEBIAN/control"
    control.parent.mkdir(exist_ok=True)
    fields = {
        "Package": name,
        "Version": version,
        "Architecture": "all",
        "Maintainer": "nobody <nobody@localhost>",
        **({"Depends": depends} if depends else {}),
        "Description": summary,
    }
    control.write_text("".join(f"{field}: {value}\n" for field, value in fields.items()))
    package = root.with_name(f"{name}_{version}.deb")
    command = ["dpkg-deb", "--root-owner-group", "--build", str(root), str(package)]
    subprocess.run(command, capture_output=True, check=True)
    return package
