# SPDX-License-Identifier: GPL-2.0-or-later
"""Check whether the lab can be built on this machine; if not, the error names the cause and the remedy."""

from __future__ import annotations

import os

from . import tools
from .namespaces import LabError, isolate

_STDERR = 2
_CONTAINERS = ("/.dockerenv", "/run/.containerenv")
# Settings of the kernel that forbid user namespaces: the file, the value that does, and the value that allows them.
_KINDS = ("user", "net", "mnt", "pid", "uts", "ipc")
_SETTINGS = (
    *((f"user.max_{kind}_namespaces", "0", "15000") for kind in _KINDS),
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
)


def require() -> None:
    """Raise LabError unless all programs are installed and the namespaces can be created, which is tried."""
    tools.require()
    said = _trial()
    if said is not None:
        why, remedy = _reason(said)
        raise LabError(f"the lab cannot create its namespaces: {why}", remedy)


def _trial() -> str | None:
    """Return the error output of an empty lab; None if it works."""
    answer, say = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(answer)
        os.dup2(say, _STDERR)
        status = 1
        try:
            status = isolate(lambda: 0)
        except OSError as error:
            os.write(_STDERR, str(error).encode())
        finally:
            os._exit(status)
    os.close(say)
    with open(answer, encoding="utf-8", errors="replace") as told:
        lines = told.read().splitlines()
    _, status = os.waitpid(child, 0)
    return None if status == 0 else lines[-1].removeprefix("qubes-guestnet: ") if lines else "no reason given"


def _reason(said: str) -> tuple[str, str]:
    """Return the first cause found, and the remedy."""
    if not os.path.exists("/proc/self/uid_map"):
        return "/proc is not mounted", "mount -t proc proc /proc"
    for name, forbids, allows in _SETTINGS:
        if _setting(name) == forbids:
            return f"{name} is {forbids}", f"as root: sysctl -w {name}={allows}"
    if _in_chroot():
        return "the kernel refuses them in a chroot", "run it outside, or enter it with systemd-nspawn -D FOLDER"
    if any(map(os.path.exists, _CONTAINERS)):
        return "this container has no permission to create them", "start it with --privileged, or use a virtual machine"
    return said.partition(";")[0], "run it as root, or on a machine that allows unprivileged user namespaces"


def _setting(name: str) -> str:
    try:
        with open(f"/proc/sys/{name.replace('.', '/')}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _in_chroot() -> bool:
    """Return whether this root differs from that of process 1 in the same mount namespace, or is not a mount."""
    root = _root_mount("self")
    try:
        same = os.readlink("/proc/1/ns/mnt") == os.readlink("/proc/self/ns/mnt")
    except OSError:  # an ordinary user may not look
        same = False
    return not root or (same and root != _root_mount("1"))


def _root_mount(process: str) -> str:
    """Return the number of the mount that a process has as its root; "" for none."""
    try:
        with open(f"/proc/{process}/mountinfo", encoding="utf-8", errors="replace") as mounts:
            return next((line.split()[0] for line in mounts if line.split()[4] == "/"), "")
    except OSError:
        return "unknown"
