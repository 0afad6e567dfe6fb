# SPDX-License-Identifier: GPL-2.0-or-later
"""The network namespace for the vif of a qube with a fake address (behaviour B60); core/provider/fake_address has its
texts.

Only the short-lived hotplug command uses it, as root and without a sandbox: it enters the namespace to write sysctls
and rules that nft's language lacks, and returns.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address

from ..core.provider import fake_address
from ..core.provider.vif import Mapping, Vif
from ..core.vif_name import VifName, parse_name
from ..errors import FileError, KernelError
from . import procfs_sysctl, programs
from .netlink import rtnl as netlink
from .nft import program as nft
from .nft import quoted_address

FOLDER = "/run/netns"  # of ip-netns(8)
CLONE_NEWNET = 0x40000000
_SECONDS = 10.0


class FakeAddressError(programs.ProgramError):
    """A namespace was not completely built or removed. Either can be repeated."""


def build(vif: Vif, mapping: Mapping, gateway: IPv4Address) -> None:
    """Build the namespace between a qube and this provider, or complete an existing one.

    An interface of the same name and address replaces the vif. It stays down until anti-spoofing is in force.

    Args:
        vif: whose device is there.
        mapping: of its address.
        gateway: the real one.

    Raises:
        GuestnetError: the namespace is incomplete; the qube then learns no real address.
    """
    name, path = vif.name.text, _path(vif.name)
    if not _is_namespace(path):
        if os.path.exists(path):
            _ip(f"netns delete {fake_address.namespace(vif.name)}")  # only a file, left by an incomplete removal
        _ip(f"netns add {fake_address.namespace(vif.name)}")
    with _inside(path):
        _set(fake_address.tunables())
        moved, joined = _exists(name), _exists(fake_address.PEER)
        if joined and not moved:
            # Left by a former vif. While its peer has the name, no new vif can get it.
            _ip(f"link delete {fake_address.PEER}")
            joined = False
    if not moved:
        _ip(f"link set dev {name} down", f"link set dev {name} netns {fake_address.namespace(vif.name)}")
    with _inside(path) as outside:
        if not joined:
            _ip(fake_address.pair(vif, _mtu(name), outside))
        nft.run(fake_address.rules(vif.name, mapping, gateway))
        quoted_address.append(fake_address.TABLE, fake_address.inner_rules(mapping, gateway))
        _set(fake_address.vif_tunables(vif.name))
        _ip(*fake_address.commands(vif, mapping, gateway))


def demolish(name: str) -> None:
    """Remove the namespace of a vif and the replacing interface; an existing vif is moved back. Missing parts are
    ignored.

    Args:
        name: of the vif.

    Raises:
        GuestnetError: the removal failed; ValueError: it is not the name of a vif.
    """
    vif = parse_name(name)
    path = _path(vif)
    if not os.path.exists(path):
        return
    if _is_namespace(path):
        with _inside(path) as outside:
            if _exists(fake_address.PEER):
                _ip(f"link delete {fake_address.PEER}")  # from here on the vif's name is free
            if _exists(name):
                _ip(f"link set dev {name} down", f"link set dev {name} netns {outside}")
    _ip(f"netns delete {fake_address.namespace(vif)}")


def _path(name: VifName) -> str:
    return os.path.join(FOLDER, fake_address.namespace(name))


def _is_namespace(path: str) -> bool:
    """Return whether a namespace is mounted there, and not just a file of the folder's file system."""
    try:
        return os.stat(path).st_dev == os.stat("/proc/self/ns/net").st_dev
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _inside(path: str) -> Iterator[str]:
    """Enter a network namespace, with all programs started inside; yield a path to the former namespace."""
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
        procfs_sysctl.write(words, value)


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
    """Run `ip` commands up to the first failure."""
    program = programs.find("ip")
    if not program:
        raise FakeAddressError("ip is not installed", "install iproute2")
    done = programs.run((program, "-batch", "-"), _SECONDS, input="".join(f"{line}\n" for line in commands).encode())
    if done.status:
        raise FakeAddressError(f"ip -batch ({'; '.join(commands)[:200]}): {' '.join(done.output.split())}")
