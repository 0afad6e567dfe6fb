# SPDX-License-Identifier: GPL-2.0-or-later
"""What Xen boots in qemu: the hypervisor, a kernel, an initrd and a disk, the same for dom0 and for driver domains.

Made once and kept where tests/support/machines/image.py keeps its images. A qube behind a provider, of which only the
packets matter, has no disk: it stays in the initrd and answers on its console half a second after its kernel.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from tests.support.machines import image
from tests.support.needs import needs

SUITE = "bookworm"
# The last stable interface to us is the name of this package, which depends on the current one. Not the cloud kernel:
# that cannot be a dom0.
KERNEL = "linux-image-amd64"
SYSTEM = (
    *("python3-pyroute2", "python3-tenacity", "nftables", "iproute2", "iputils-ping", "kmod", "procps"),
    *("xen-system-amd64", "xenstore-utils", "busybox-static"),
)
WITHOUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
# What is needed to find a disk, to be heard, and by a qube without a disk.
EARLY = ("virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "ext4", "xen-blkfront", "xen-netfront")
# All modules are 390 MB.
MODULES = (
    *("modules.*", "kernel/net/*", "kernel/lib/*", "kernel/crypto/*", "kernel/arch/*"),
    *("*xen*", "*virtio*", "*/veth*", "*/ext4*", "*/jbd2*", "*/mbcache*"),
)
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /root /tmp
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
for module in $(cat /modules); do insmod /$module 2>/dev/null; done
if grep -q diskless /proc/cmdline; then
    mount -t sysfs sys /sys
    ip link set lo up
    exec sh /serve /dev/hvc0
fi
until [ -b /dev/vdb ] || [ -b /dev/xvdb ]; do usleep 10000; done
[ -b /dev/vda ] && disk=/dev/vd || disk=/dev/xvd
mount -t ext4 ${disk}a /root
mount -t tmpfs -o mode=755 stage /root/stage
tar -x -f ${disk}b -C /root/stage
cp /serve /root/stage
mount --move /dev /root/dev
mount --move /proc /root/proc
exec switch_root /root /bin/sh /stage/init
"""
# Each line is a command; the answer is its output, its errors and its status, set off by bytes 1, 1 and 3.
SERVE = r"""
[ $1 != /dev/hvc0 ] || stty raw -echo <$1
exec 3<>$1
printf '\001\001\0030\n' >&3
while IFS= read -r line <&3; do
    (eval "$line") </dev/null >/tmp/output 2>/tmp/errors
    status=$?
    { printf '\001'; cat /tmp/output; printf '\001'; cat /tmp/errors; printf '\003%s\n' $status; } >&3
done
"""
UNPACK = """
import lzma, sys
data = open(sys.argv[1], 'rb').read()
sys.stdout.buffer.write(lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data[data.index(b'\\xfd7zXZ\\0'):]))
"""
# Runs in the image. In its /tmp is more than ours: the settings with which mmdebstrap goes on afterwards.
MAKE = f"""set -eu
cd /tmp
apt-get download --quiet "$(apt-cache depends --important {KERNEL} | sed -n 's/^ *Depends: *//p')"
dpkg --fsys-tarfile linux-image-*.deb >kernel
rm linux-image-*.deb
tar -x -f kernel -C / --wildcards './boot/vmlinuz-*' {" ".join(f"'./lib/modules/*/{path}'" for path in MODULES)}
rm kernel
version=$(ls /usr/lib/modules)
depmod "$version"
mkdir -p initrd/bin /stage
cp /bin/busybox initrd/bin
cp init serve initrd
chmod 755 initrd/init
# Each after those it needs, as they are told, and none twice.
modprobe --set-version "$version" --show-depends --all {" ".join(EARLY)} >depends
sed -n 's/^insmod \\([^ ]*\\).*/\\1/p' depends | awk '!seen[$1]++' >paths
while read -r path; do cp "$path" initrd; basename "$path"; done <paths >initrd/modules
(cd initrd && find . | busybox cpio -o -H newc >/boot/initrd)
rm -r initrd init serve make depends paths
cd /boot
# Unpacked at each start of a domain, which takes seconds.
python3 -c "{UNPACK}" vmlinuz-* >vmlinux
gunzip -c xen-4*.gz >xen
find . -type f ! -name vmlinux ! -name initrd ! -name xen -delete
"""
DISK_SIZE = "500M"
BUILD_LIMIT_S = 600


def disk() -> Path:
    """The folder with `disk`, `xen`, `vmlinux` and `initrd`; the last two are in the disk's /boot as well.

    Made if it is not there, which takes half a minute and root.
    """
    needs("mmdebstrap", "mkfs.ext4")
    recipe = hashlib.sha256(repr((SUITE, SYSTEM, WITHOUT, INIT, SERVE, MAKE, DISK_SIZE)).encode()).hexdigest()[:12]
    return image.kept(f"xen-{recipe}", _make)


def _make(folder: Path) -> None:
    root = folder / "root"
    folder.mkdir()
    for name, text in (("init", INIT), ("serve", SERVE), ("make", MAKE)):
        (folder / name).write_text(text)
    options = [f"--dpkgopt=path-exclude={path}" for path in WITHOUT]
    options += [f"--customize-hook=copy-in {folder}/init {folder}/serve {folder}/make /tmp"]
    options += ['--customize-hook=chroot "$1" sh /tmp/make', f"--customize-hook=copy-out /boot {folder}"]
    image.bootstrap(SUITE, root, SYSTEM, options)
    command = ["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", str(root), str(folder / "disk"), DISK_SIZE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_LIMIT_S)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-4000:]}"
    for name in ("vmlinux", "initrd", "xen"):
        (folder / "boot" / name).rename(folder / name)
    for name in ("boot", "root"):
        shutil.rmtree(folder / name)
