# SPDX-License-Identifier: GPL-2.0-or-later
"""Namespaces without root: the system calls of the lab, and `isolate()`, which runs a whole lab in them.

`isolate()` runs a function as process 1 of new user, network, mount, process, host name and IPC namespaces. All its
processes, mounts and interfaces end with it, also after Ctrl-C and after `kill -9` of any process of the lab: the
kernel ends all processes of a process namespace with its first one, and frees mounts and interfaces with their last
user.

The calls go straight to libc: `os.unshare` and `os.setns` exist only from Python 3.12 on.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from ..errors import GuestnetError, printable
from . import interruption

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID = 2
MS_NODEV = 4
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

_PR_SET_PDEATHSIG = 1
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 1
# One number on every architecture Debian and Fedora build for; glibc has the wrapper only since 2.36.
_SYS_MOUNT_SETATTR = 442

# Folders over which the lab may mount its work folder: present in every Linux, and not needed by Python.
_WORK_CANDIDATES = ("/run", "/mnt", "/media", "/srv")
# Written last by tools/unpack-daemons, in its folder `usr`.
_UNPACKED = "share/qubes-guestnet-daemons"
_SIGNALLED = 128

_libc = ctypes.CDLL(None, use_errno=True)


class LabError(GuestnetError):
    """The lab failed, for example because a tool or a permission is missing."""


def _call(what: str, result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def unshare(flags: int) -> None:
    """Move this process (for CLONE_NEWPID: its children) into new namespaces; OSError when the kernel refuses."""
    _call("unshare", _libc.unshare(flags))


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """Mount, as mount(2); OSError names the target."""
    result = _libc.mount(source.encode(), target.encode(), fstype.encode() or None, flags, data.encode() or None)
    _call(f"mount on {target}", result)


def bind(source: str, target: str) -> None:
    """Bind `source`, with all mounts below it, read-only to `target`."""
    mount(source, target, flags=MS_BIND | MS_REC)
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    result = _libc.syscall(
        _SYS_MOUNT_SETATTR, _AT_FDCWD, target.encode(), _AT_RECURSIVE, attributes, ctypes.c_size_t(len(attributes))
    )
    _call(f"read-only mount on {target}", result)


def pivot(root: str) -> None:
    """Make `root` (a mount) the root of this mount namespace and unmount the former one."""
    os.chdir(root)
    _call("pivot_root", _libc.pivot_root(b".", b"."))
    _call("umount of the old root", _libc.umount2(b".", MNT_DETACH))
    os.chdir("/")


def die_with_parent(parent: int = 0) -> None:
    """Ask the kernel for SIGKILL when the parent ends. To be called after unshare(): a change of rights clears it.

    Args:
        parent: its process id, where that can be seen: if it ended before the prctl call, this process ends too.
    """
    _call("prctl", _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    if parent and os.getppid() != parent:
        os._exit(1)


def socket_in(pid: int, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """Return a socket in the network namespace of process `pid`, usable by the caller in its own namespace.

    A socket stays in the namespace where it was created, so real packets can be sent "from inside a qube" without a
    process there. Not for threaded callers that also create sockets.
    """
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call(f"setns to the network of {pid}", _libc.setns(there, CLONE_NEWNET))
        finally:
            os.close(there)
        try:
            return socket.socket(family, kind, protocol)
        finally:
            _call("setns back", _libc.setns(home, CLONE_NEWNET))
    finally:
        os.close(home)


def isolate(function: Callable[[], int]) -> int:
    """Run `function` as process 1 of its own namespaces, as root there; return its exit status.

    The caller's process only waits and hands on SIGINT, SIGTERM and SIGHUP, each of which ends the lab at once and
    silently; one that the caller ignores still ends nothing, but the programs that `function` starts begin with none
    ignored or blocked, as in a real qube. `function` sees a private /proc and finds an empty work folder in
    `work_folder()`. An exception in it prints its traceback and gives status 1; a GuestnetError
    prints its one line, as does a system that does not let us make namespaces: it names the setting.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited; with it a child's exit status is lost
    unshared, say_unshared = os.pipe()
    mapped, say_mapped = os.pipe()
    with interruption.held():
        caller, child = os.getpid(), os.fork()
        if child == 0:
            os.close(unshared)
            os.close(say_mapped)
            _middle(function, caller, say_unshared, mapped)
        os.close(say_unshared)
        os.close(mapped)
        if os.read(unshared, 1):
            _map_ids(child)
            os.write(say_mapped, b"1")
        os.close(unshared)
        status = _wait_for(child)
    os.close(say_mapped)
    return status


def _wait_for(child: int) -> int:
    """Wait for a child, handing on the signals that would end us; its exit status, or 128 + signal.

    They are held until their handlers are in place, and held again when this returns.
    """

    def relay(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended just now
            os.kill(child, number)

    before = {number: signal.signal(number, relay) for number in _not_ignored()}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, interruption.SIGNALS)
    try:
        _, status = os.waitpid(child, 0)
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, interruption.SIGNALS)
        for number, handler in before.items():
            signal.signal(number, handler)
    code = os.waitstatus_to_exitcode(status)
    return _SIGNALLED - code if code < 0 else code


def _not_ignored() -> list[signal.Signals]:
    return [number for number in interruption.SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def _middle(function: Callable[[], int], caller: int, say_unshared: int, mapped: int) -> NoReturn:
    """Run the process in between: make the namespaces, start process 1 in them, and kill it at its own end."""
    try:
        try:
            unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC)
        except OSError as error:
            raise LabError(
                f"cannot create namespaces: {error.strerror}",
                "unprivileged user namespaces must be allowed: sysctl user.max_user_namespaces above 0, "
                "kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0 (where they exist)",
            ) from error
        os.write(say_unshared, b"1")
        if not os.read(mapped, 1):
            os._exit(1)  # the caller has ended
        die_with_parent(caller)
        alive, keep_alive = os.pipe()
        first = os.fork()
        if first == 0:
            os.close(keep_alive)
            _first(function, alive)
        os.close(alive)
        os._exit(_wait_for(first))
    except GuestnetError as error:
        print(f"qubes-guestnet: {printable(str(error))}", file=sys.stderr, flush=True)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def _map_ids(child: int) -> None:
    """Map root of the child's user namespace to the caller; real root also keeps every other user and group."""
    try:
        _write(f"/proc/{child}/uid_map", "0 0 4294967295")
        _write(f"/proc/{child}/gid_map", "0 0 4294967295")
    except PermissionError:
        _write(f"/proc/{child}/setgroups", "deny")
        _write(f"/proc/{child}/uid_map", f"0 {os.geteuid()} 1")
        _write(f"/proc/{child}/gid_map", f"0 {os.getegid()} 1")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _first(function: Callable[[], int], alive: int) -> NoReturn:
    """Run process 1 of the lab. `alive` is at end of file if the parent died before PR_SET_PDEATHSIG was set."""
    status = 1
    try:
        die_with_parent()
        if select.select([alive], [], [], 0)[0]:
            os._exit(status)
        for number in _not_ignored():
            signal.signal(number, _end)
        interruption.let_programs_have_signals()
        _mounts()
        status = function()
    except GuestnetError as error:
        print(f"qubes-guestnet: {printable(str(error))}", file=sys.stderr)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _mounts() -> None:
    try:
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV)
        _show_unpacked()
        mount("lab", work_folder(), "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    except OSError as error:
        raise LabError(str(error), "mounts must be allowed in the lab's own namespace") from error


def _show_unpacked() -> None:
    """Overlay /usr with the daemons from tools/unpack-daemons, in this mount namespace only.

    Raises:
        LabError: the kernel refuses the overlay.
    """
    folder = unpacked_programs()
    if not folder or os.path.exists(f"/usr/{_UNPACKED}"):  # a lab inside a lab sees what the outer one shows
        return
    try:
        mount("daemons", "/usr", "overlay", MS_NOSUID | MS_NODEV, f"lowerdir={_escaped(folder)}:/usr")
    except OSError as error:
        problem = f"cannot overlay {folder} on /usr: {error.strerror}"
        raise LabError(problem, "remove that folder, and install the packages that the lab then lists") from error


def _escaped(path: str) -> str:
    """Escape a path for a list of overlayfs (Documentation/filesystems/overlayfs.rst, "Multiple lower layers")."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def unpacked_programs() -> str:
    """Return the folder of daemons that tools/unpack-daemons made in a source tree, "" where there is none."""
    folder = os.path.join(needed_paths()[0], ".daemons", "usr")
    return folder if os.path.exists(f"{folder}/{_UNPACKED}") else ""


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    os._exit(_SIGNALLED + number)  # and with process 1 all others of the lab


@functools.cache
def needed_paths() -> tuple[str, ...]:
    """Return folders this Python and this package run from: they must stay visible in the lab and in every qube.

    They are looked up once: each command that the lab runs in a qube needs them.
    """
    package_parent = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    wanted = [package_parent, sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path]
    wanted.append(os.path.dirname(os.path.realpath(sys.executable)))
    folders = (os.path.abspath(folder) for folder in wanted if folder)
    return tuple(dict.fromkeys(folder for folder in folders if os.path.isdir(folder)))


def work_folder() -> str:
    """Return the folder over which the lab mounts its tmpfs; LabError if Python uses every candidate."""
    for folder in _WORK_CANDIDATES:
        if os.path.isdir(folder) and not any(is_below(path, folder) for path in needed_paths()):
            return folder
    raise LabError("no folder to mount the lab's work folder on", f"tried {', '.join(_WORK_CANDIDATES)}")


def is_below(path: str, folder: str) -> bool:
    """Return whether `path` is `folder` or lies in it (both absolute)."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")
