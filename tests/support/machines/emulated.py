# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel of our own in qemu, for what the machine's kernel does not have: Debian's, emulated without KVM.

The disk is a small Debian, made once and kept where tests/support/machines/image.py keeps its images; it is never
written to. A tar archive is the second disk: it is unpacked at /stage in the guest, and the script `init` in it is
process 1. The console is a file; what the guest writes to its second serial port comes out line by line.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import select
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.support.machines import image
from tests.support.machines.machine import end, spawn
from tests.support.needs import needs

SUITE = "bookworm"
# Depends on the package of the current one, whose name has its version in it.
KERNEL = "linux-image-cloud-amd64"
SYSTEM = (
    *("python3-pytest", "python3-pyroute2", "python3-tenacity", "nftables", "conntrack", "iproute2", "iputils-ping"),
    *("kmod", "procps", "dnsmasq-base", "ethtool", "busybox-static"),
)
WITHOUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
# What is needed to find the disk, and what is on it.
EARLY = ("virtio_pci", "virtio_blk", "ext4", "virtio_rng")
INIT = """#!/bin/busybox sh
/bin/busybox mkdir /proc
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
for module in $(/bin/busybox cat /modules); do /bin/busybox insmod /$module; done
until [ -b /dev/vda ] && [ -b /dev/vdb ]; do /bin/busybox usleep 10000; done
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mount -t tmpfs -o mode=755 stage /root/stage
/bin/busybox tar -x -f /dev/vdb -C /root/stage
/bin/busybox mount --move /dev /root/dev
/bin/busybox mount --move /proc /root/proc
exec /bin/busybox switch_root /root /bin/sh /stage/init
"""
MAKE = f"""set -eu
cd /tmp
apt-get download --quiet "$(apt-cache depends --important {KERNEL} | sed -n 's/^ *Depends: *//p')"
dpkg --extract linux-image-*.deb kernel
rm linux-image-*.deb
mv kernel/lib/modules /usr/lib/modules
mv kernel/boot/vmlinuz-* /boot/vmlinuz
rm -r kernel
version=$(ls /usr/lib/modules)
depmod "$version"
mkdir -p initrd/bin /stage
cp /bin/busybox initrd/bin
mv /tmp/init initrd/init
chmod 755 initrd/init
# Each after those it needs, as they are told, and none twice.
modprobe --set-version "$version" --show-depends --all {" ".join(EARLY)} >depends
sed -n 's/^insmod //p' depends | awk '!seen[$1]++' >paths
while read -r path; do cp "$path" initrd; basename "$path"; done <paths >initrd/modules
cd initrd
find . | busybox cpio -o -H newc >/boot/initrd
rm -r /tmp/initrd /tmp/paths /tmp/depends
"""
DISK_SIZE = "600M"
BUILD_LIMIT_S = 600
# How many times longer than real hardware an emulated machine may take, on a host with other work (seen: a load of 16
# on two processors). All limits and deadlines of such machines and in them are multiplied by it.
SLOWNESS = 6
EMULATORS_NICENESS = -10
QEMU = "qemu-system-x86_64"
CONSOLE_END = 4000


def disk() -> Path:
    """The folder with `disk`, `vmlinuz` and `initrd`; made if it is not there, which takes half a minute and root."""
    needs("mmdebstrap", "mkfs.ext4")
    recipe = hashlib.sha256(repr((SUITE, KERNEL, SYSTEM, WITHOUT, INIT, MAKE, DISK_SIZE)).encode()).hexdigest()[:12]
    return image.kept(f"emulated-{recipe}", _make)


def _make(folder: Path) -> None:
    root, boot = folder / "root", folder / "boot"
    folder.mkdir()
    (folder / "init").write_text(INIT)
    (folder / "make").write_text(MAKE)
    options = [f"--dpkgopt=path-exclude={path}" for path in WITHOUT]
    options += [f"--customize-hook=copy-in {folder}/init {folder}/make /tmp"]
    options += ['--customize-hook=chroot "$1" sh /tmp/make', f"--customize-hook=copy-out /boot {folder}"]
    options += ['--customize-hook=rm -r "$1/boot" "$1/tmp/make"']
    image.bootstrap(SUITE, root, SYSTEM, options)
    _run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", str(root), str(folder / "disk"), DISK_SIZE)
    for name in ("vmlinuz", "initrd"):
        (boot / name).rename(folder / name)
    shutil.rmtree(root)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_LIMIT_S)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


class Died(AssertionError):
    """The guest ended, or said nothing in time."""


class Emulated:
    """A running guest.

    Args:
        init: the script that is process 1; when it ends the kernel panics, and so qemu ends.
        paths: files and folders for /stage, by their names there; without __pycache__.
        texts: more files for /stage, by their names there.
        memory_mb: of the guest.
        cpus: of the guest.
        options: more of qemu's.
    """

    def __init__(
        self, init: str, paths: Mapping[str, Path], texts: Mapping[str, str] | None = None,
        *, memory_mb: int = 1024, cpus: int = 2, options: Iterable[str] = (),
    ) -> None:  # fmt: skip
        needs(QEMU)
        self._folder = Path(tempfile.mkdtemp(prefix="emulated-"))
        self._console = self._folder / "console"
        _pack(self._folder / "stage", paths, {"init": init, **(texts or {})})
        self._rest = b""
        self.process = spawn(*self.command(self._folder, memory_mb, cpus), *options, prepare=_first_served)

    def command(self, folder: Path, memory_mb: int, cpus: int) -> list[str]:
        """What starts it; `console` and `stage` are in the folder, and the standard streams are the guest's port."""
        return _command(disk(), folder, memory_mb, cpus)

    def line(self, limit_s: float) -> str:
        """The next line that the guest wrote to ttyS1, "" when it has ended.

        Args:
            limit_s: seconds to wait for it, on an idle host.

        Raises:
            Died: nothing came in that time; with the end of its console.
        """
        limit_s *= SLOWNESS
        assert self.process.stdout is not None
        stream = self.process.stdout.fileno()
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([stream], [], [], left)[0]:
                raise Died(f"the guest has said nothing for {limit_s:g} s\n{self.console()}")
            came = os.read(stream, 1 << 16)
            if not came:
                return ""
            self._rest += came
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode(errors="replace").rstrip("\r")

    def console(self) -> str:
        """The end of what it said on its console."""
        text = self._console.read_text(errors="replace") if self._console.exists() else ""
        return f"console:\n{text[-CONSOLE_END:]}"

    def close(self) -> None:
        """Switch it off; nothing of it is left."""
        end(self.process)
        shutil.rmtree(self._folder, ignore_errors=True)


def _first_served() -> None:
    """Let the emulator have a processor before all else: in it are limits that no test can lengthen (libxl's 10 s)."""
    os.setsid()  # a group of its own for the scheduler: niceness counts within a group (sched(7), autogroup)
    with contextlib.suppress(OSError):
        os.nice(EMULATORS_NICENESS)
        Path("/proc/self/autogroup").write_text(str(EMULATORS_NICENESS))


def _command(made: Path, folder: Path, memory_mb: int, cpus: int) -> list[str]:
    return [
        *(QEMU, "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-smp", str(cpus), "-m", str(memory_mb)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(made / "vmlinuz"), "-initrd", str(made / "initrd")),
        *("-append", "console=ttyS0 quiet panic=-1 net.ifnames=0 mitigations=off tsc=reliable"),
        *("-drive", f"file={made}/disk,if=none,id=disk,format=raw,snapshot=on", "-device", "virtio-blk-pci,drive=disk"),
        *("-drive", f"file={folder}/stage,if=none,id=stage,format=raw,readonly=on"),
        *("-device", "virtio-blk-pci,drive=stage", "-device", "virtio-rng-pci"),
        *("-serial", f"file:{folder}/console", "-serial", "stdio"),
    ]


def _pack(archive: Path, paths: Mapping[str, Path], texts: Mapping[str, str]) -> None:
    def wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if member.name.endswith("__pycache__") else member

    with tarfile.open(archive, "w") as tar:
        for name, text in texts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
        for name, path in paths.items():
            tar.add(path, name, filter=wanted)
