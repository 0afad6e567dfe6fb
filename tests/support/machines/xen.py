# SPDX-License-Identifier: GPL-2.0-or-later
"""Real Xen in qemu: dom0, and domains that it starts. In each of them a shell on its console runs what it is told.

dom0 and driver domains have the whole system of xen_image.py and our package as it is built; their process 1 is a
script.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.support.judge.oracle import Oracle
from tests.support.machines import xen_image
from tests.support.machines.emulated import QEMU, Died, Emulated

HYPERVISOR_MB, DOM0_MB, DRIVER_DOMAIN_MB, DISKLESS_MB = 100, 420, 288, 96
BOOT_LIMIT_S = 150.0
COMMAND_LIMIT_S = 100.0
# libxl gives a script 10 s, which is no setting: on a host that is busy this is no fault of the domain.
CREATIONS, HOTPLUG_TIMEOUT = 5, "because of timeout"
APPEND = "console=hvc0 quiet net.ifnames=0 panic=-1 mitigations=off"
APPEND_XEN = "com1=115200,8n1 console=com1 no-real-mode edd=off xpti=off spec-ctrl=no"
# Of them nft needs so many that the first rules would take too long for our program.
MODULES = (
    *("xen-netback", "xen-blkback", "xen-gntdev", "xen-evtchn", "xen-gntalloc", "veth", "nf_tables", "nft_chain_nat"),
    *("nft_ct", "nft_masq", "nft_nat", "nft_numgen", "nft_reject_ipv4", "nft_reject_ipv6", "nf_conntrack_netlink"),
)
# Process 1 of dom0 and of driver domains.
INIT = f"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir -p /dev/pts /var/log/xen /run/qubes /run/qubes-service
mount -t devpts devpts /dev/pts
mount -t xenfs xenfs /proc/xen
modprobe -a {" ".join(MODULES)}
ip link set lo up
tar -x -f /stage/ours -C / --keep-directory-symlink
cd /
grep -q control_d /proc/xen/capabilities || exec sh /stage/serve /dev/hvc0
cp /stage/block /etc/xen/scripts/block
/etc/init.d/xen start
until [ -c /dev/vport*p1 ]; do sleep 0.05; done
exec sh /stage/serve /dev/vport*p1
"""
# In dom0, by its shell: find the console of a domain; and have the domain run a line. Its answer is set off by other
# bytes than dom0's own.
FIND = "xenstore-read /local/domain/{0}/console/tty >/run/{0}.console; stty -F $(cat /run/{0}.console) raw -echo"
ASK = r"read console </run/{0}.console; {{ {1}sed --unbuffered 'y/\x01\x03/\x02\x04/; /\x04/q' <&4; }} 4<>$console"
# In the place of Xen's own script for disks, which takes long.
BLOCK = """#!/bin/sh
[ "$1" = add ] || exit 0
number=$(stat --format=%t:%T "$(xenstore-read "$XENBUS_PATH/params")")
xenstore-write "$XENBUS_PATH/physical-device" "$number" "$XENBUS_PATH/hotplug-status" connected
"""


class Domain(Oracle):
    """One of Xen's domains.

    Args:
        xen: the machine.
        domid: its number, 0 for dom0.
    """

    def __init__(self, xen: Xen, domid: int) -> None:
        super().__init__()
        self.xen, self.domid = xen, domid

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return self.sh(shlex.join(command), check=check)

    def sh(self, line: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one line of shell in it."""
        done = self.xen.ask(self.domid, line)
        assert not check or done.returncode == 0, f"domain {self.domid}: {line}: {done.returncode}\n{done.stderr}"
        return done

    def says(self, *command: str) -> str:
        """What a command prints."""
        return self.run(*command).stdout.strip()


class Xen(Emulated):
    """The machine.

    Args:
        package: ours, as a .deb; every domain with a disk has what is in it.
        texts: files for /stage in these domains.
    """

    def __init__(self, package: Path, texts: Mapping[str, str]) -> None:
        memory_mb = HYPERVISOR_MB + DOM0_MB + DRIVER_DOMAIN_MB + 2 * DISKLESS_MB
        with tempfile.TemporaryDirectory() as folder:
            ours = _unpacked(package, Path(folder))
            super().__init__(INIT, {"ours": ours}, {**texts, "block": BLOCK}, memory_mb=memory_mb)
        self.dom0 = Domain(self, 0)
        self._domains = 0

    def booted(self) -> None:
        """Wait until dom0 listens."""
        self._answer(BOOT_LIMIT_S)

    def create(self, name: str, *, disk: bool = False) -> Domain:
        """Start a domain; `listening` waits for it.

        Args:
            name: for xl.
            disk: it has the same system as dom0, and is to be a driver domain.
        """
        append, memory_mb = f"{APPEND}{'' if disk else ' diskless'}", DRIVER_DOMAIN_MB if disk else DISKLESS_MB
        lines = [f'name="{name}"', f"memory={memory_mb}", "vcpus=1", 'on_crash="destroy"']
        lines += ['kernel="/boot/vmlinux"', 'ramdisk="/boot/initrd"', f'extra="{append}"']
        if disk:
            lines += ["driver_domain=1", 'disk=["phy:/dev/vdc,xvda,w", "phy:/dev/vdb,xvdb,r"]']
        for _ in range(CREATIONS):
            self._domains += 1  # one that fails takes a number too
            done = self.dom0.run("xl", "create", "/dev/null", *lines, check=False)
            if HOTPLUG_TIMEOUT not in done.stderr:
                break
        assert done.returncode == 0, done.stderr
        return Domain(self, self._domains)

    def listening(self, domain: Domain) -> None:
        """Wait until a domain that was just started listens."""
        self.dom0.sh(FIND.format(domain.domid))
        self.ask(domain.domid, "")

    def ask(self, domid: int, line: str) -> subprocess.CompletedProcess[str]:
        """Have a line of shell run in a domain; "": only wait for what it says."""
        assert "\n" not in line
        say = f"printf '%s\\n' {shlex.quote(line)} >&4; " if line else ""
        words = line if domid == 0 else ASK.format(domid, say)
        assert self.process.stdin is not None
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()
        output, errors, status = self._answer(COMMAND_LIMIT_S)
        if domid:
            parts = re.fullmatch("[^\2]*\2([^\2]*)\2([^\4]*)\4([0-9]+)\n", output)
            assert parts, f"domain {domid}: {line}: {output!r} {errors}"
            output, errors, status = parts[1], parts[2], int(parts[3])
        return subprocess.CompletedProcess(line, status, output, errors)

    def command(self, folder: Path, memory_mb: int, cpus: int) -> list[str]:
        """See `Emulated`."""
        made = xen_image.disk()
        drives = (made / "disk", folder / "stage", made / "disk")
        options = [
            option
            for number, path in enumerate(drives)
            for option in (
                *("-drive", f"file={path},if=none,id=disk{number},format=raw,snapshot=on"),
                *("-device", f"virtio-blk-pci,drive=disk{number}"),
            )
        ]
        return [
            # On the model `max`, which has SMAP, dom0 crashes.
            *(QEMU, "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "qemu64,+svm"),
            *("-smp", str(cpus), "-m", str(memory_mb)),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-kernel", str(made / "xen"), "-initrd", f"{made}/vmlinux {APPEND},{made}/initrd"),
            *("-append", f"dom0_mem={DOM0_MB}M,max:{DOM0_MB}M {APPEND_XEN}"),
            *options,
            *("-device", "virtio-rng-pci", "-serial", f"file:{folder}/console"),
            *("-chardev", "stdio,id=port,signal=off", "-device", "virtio-serial-pci"),
            *("-device", "virtserialport,chardev=port"),
        ]

    def _answer(self, limit_s: float) -> tuple[str, str, int]:
        text = ""
        while "\3" not in text:
            line = self.line(limit_s)
            if not line and self.process.poll() is not None:
                raise Died(f"Xen has ended\n{self.console()}")
            text += line + "\n"
        parts = re.fullmatch("\1([^\1]*)\1([^\3]*)\3([0-9]+)\n", text)
        assert parts, f"dom0: {text!r}"
        return parts[1], parts[2], int(parts[3])


def _unpacked(package: Path, folder: Path) -> Path:
    """The files of a package with their bytecode, which the domains would be long in making, as an archive."""
    root, archive = folder / "root", folder / "ours"
    subprocess.run(["dpkg-deb", "--extract", str(package), str(root)], check=True)
    modules = root / "usr/lib/python3/dist-packages"
    subprocess.run(["/usr/bin/python3", "-m", "compileall", "-q", "-s", str(root), str(modules)], check=True)
    with tarfile.open(archive, "w") as tar:
        tar.add(root, ".")
    return archive
