# SPDX-License-Identifier: GPL-2.0-or-later
"""The network namespace that a mapped qube's vif is moved into (behaviour B60). What is in it is core/fakeip's.

For the short-lived hotplug command, which is root outside of every sandbox: it goes into the namespace itself for what
no program does (settings of the kernel, and rules nft has no words for), and comes back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address

from ..core import fakeip
from ..core.vif import Mapping, Vif, VifName, parse_name
from ..errors import FileError, KernelError
from . import netlink, nfnetlink_rules, nft, programs, tunables

FOLDER = "/run/netns"  # of ip-netns(8)
CLONE_NEWNET = 0x40000000
_SECONDS = 10.0


class FakeAddressError(programs.ProgramError):
    """A namespace was not made, or not taken down. Each can be tried again from where it stopped."""


def build(vif: Vif, mapping: Mapping, gateway: IPv4Address) -> None:
    """Put the namespace between a qube and this provider, or make the one that is there as it shall be.

    The vif's place is then taken by an interface of the same name and address, which is down: only what stands in the
    way of a spoofing qube may set it up.

    Args:
        vif: whose device is there.
        mapping: of its address.
        gateway: the real one.

    Raises:
        GuestnetError: it could not be done; nothing of the real addresses gets to the qube then.
    """
    name, path = vif.name.text, _path(vif.name)
    if not _is_namespace(path):
        if os.path.exists(path):
            _ip(f"netns delete {fakeip.namespace(vif.name)}")  # only a file: of one that was torn down half-way
        _ip(f"netns add {fakeip.namespace(vif.name)}")
    with _inside(path):
        _set(fakeip.tunables())
        moved, joined = _exists(name), _exists(fakeip.PEER)
        if joined and not moved:
            # Of a vif that is gone. While the other end of this has its name no new one can come.
            _ip(f"link delete {fakeip.PEER}")
            joined = False
    if not moved:
        _ip(f"link set dev {name} down", f"link set dev {name} netns {fakeip.namespace(vif.name)}")
    with _inside(path) as outside:
        if not joined:
            _ip(fakeip.pair(vif, _mtu(name), outside))
        nft.run(fakeip.rules(vif.name, mapping, gateway))
        nfnetlink_rules.append(fakeip.TABLE, fakeip.inner_rules(mapping, gateway))
        _set(fakeip.vif_tunables(vif.name))
        _ip(*fakeip.commands(vif, mapping, gateway))


def demolish(name: str) -> None:
    """Take the namespace of a vif away, and the interface in the vif's place. A vif that is still there comes back.

    Nothing is said where there is nothing.

    Args:
        name: of the vif.

    Raises:
        GuestnetError: it could not be done; ValueError: it is not the name of a vif.
    """
    vif = parse_name(name)
    path = _path(vif)
    if not os.path.exists(path):
        return
    if _is_namespace(path):
        with _inside(path) as outside:
            if _exists(fakeip.PEER):
                _ip(f"link delete {fakeip.PEER}")  # the vif's name is free from now on
            if _exists(name):
                _ip(f"link set dev {name} down", f"link set dev {name} netns {outside}")
    _ip(f"netns delete {fakeip.namespace(vif)}")


def _path(name: VifName) -> str:
    return os.path.join(FOLDER, fakeip.namespace(name))


def _is_namespace(path: str) -> bool:
    """Return whether a namespace is mounted there. Where none is, it is a file of the folder's own file system."""
    try:
        return os.stat(path).st_dev == os.stat("/proc/self/ns/net").st_dev
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _inside(path: str) -> Iterator[str]:
    """Be in a network namespace, also with every program that is started; a path to the one we were in before."""
    home = _opened("/proc/self/ns/net")
    try:
        there = _opened(path)
        try:
            _enter(there, path)
        finally:
            os.close(there)
        try:
            yield f"/proc/{os.getpid()}/fd/{home}"
        finally:
            _enter(home, "back")
    finally:
        os.close(home)


def _opened(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise FileError(path, error) from None


def _enter(fd: int, words: str) -> None:
    setns = getattr(os, "setns", None)
    try:
        if setns is not None:
            setns(fd, CLONE_NEWNET)
            return
        import ctypes  # before Python 3.12

        if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    except OSError as error:
        raise KernelError(f"setns {words}", error.errno or errno.EPERM) from None


def _set(settings: Iterable[tuple[tuple[str, ...], int]]) -> None:
    for words, value in settings:
        tunables.write(words, value)


def _exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _mtu(name: str) -> int:
    kernel = netlink.Kernel()
    try:
        link = kernel.link_named(name)
    finally:
        kernel.close()
    if link is None:
        raise KernelError(f"link show {name}", errno.ENODEV)
    return link.mtu


def _ip(*commands: str) -> None:
    """Run `ip` commands; it stops at the first that fails."""
    program = programs.find("ip")
    if not program:
        raise FakeAddressError("ip is not installed", "install iproute2")
    done = programs.run((program, "-batch", "-"), _SECONDS, input="".join(f"{line}\n" for line in commands).encode())
    if done.status:
        raise FakeAddressError(f"ip -batch ({'; '.join(commands)[:200]}): {' '.join(done.output.split())}")
