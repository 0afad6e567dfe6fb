# SPDX-License-Identifier: GPL-2.0-or-later
"""The network namespace for the vif of a qube with a fake address (behaviour B60).

core/provider/fake_address plans its steps; this module carries them out. Only the short-lived hotplug command uses it,
as root and without a sandbox: it enters the namespace, writes sysctls and rules that nft's language lacks, and returns.
"""

from __future__ import annotations

import errno
import os

from ..core.provider.fake_address import PEER, TABLE, Facts, Ip, Load, Step, Tune, namespace
from ..core.vif_name import VifName
from ..errors import FileError, KernelError
from . import plain_socket as socket
from . import procfs_sysctl, programs
from .netlink import rtnl as netlink
from .nft import program as nft
from .nft import quoted_address

FOLDER = "/run/netns"  # of ip-netns(8)
CLONE_NEWNET = 0x40000000
_SECONDS = 10.0


class FakeAddressError(programs.ProgramError):
    """A namespace was not completely built or removed. Either can be repeated."""


class Namespace:
    """The namespace of one vif, whether it is there or not; to be used in `with`.

    Args:
        vif: its name.

    Attributes:
        outside: a path to the provider's own namespace.

    Raises:
        GuestnetError: from every method, when a step fails; all can be repeated.
    """

    def __init__(self, vif: VifName) -> None:
        self._name, self._path = vif.text, os.path.join(FOLDER, namespace(vif))
        self._home = -1
        self.outside = ""

    def __enter__(self) -> Namespace:
        self._home = _opened("/proc/self/ns/net")
        self.outside = f"/proc/{os.getpid()}/fd/{self._home}"
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._home)

    def observe(self) -> Facts:
        """Return what there is of it."""
        facts = Facts(os.path.exists(self._path), _is_namespace(self._path), mtu=_mtu(self._name))
        if not facts.is_namespace:
            return facts
        with _Inside(self._path, self._home):
            moved = _exists(self._name)
            return facts._replace(moved=moved, joined=_exists(PEER), mtu=_mtu(self._name) if moved else facts.mtu)

    def carry_out(self, step: Step) -> None:
        """Carry out one step of a plan, with all programs that it starts where it belongs."""
        if isinstance(step, Ip) and not step.inside:
            _ip(*step.commands)
            return
        with _Inside(self._path, self._home):
            if isinstance(step, Ip):
                _ip(*step.commands)
            elif isinstance(step, Tune):
                for words, value in step.settings:
                    procfs_sysctl.write(words, value)
            elif isinstance(step, Load):
                nft.run(step.text)
                quoted_address.append(TABLE, step.inner)


class _Inside:
    """This process in a network namespace, while a block runs.

    Args:
        path: of the namespace.
        home: file descriptor of the one to return to.
    """

    def __init__(self, path: str, home: int) -> None:
        self._path, self._home = path, home

    def __enter__(self) -> None:
        there = _opened(self._path)
        try:
            _enter(there, self._path)
        finally:
            os.close(there)

    def __exit__(self, *_error: object) -> None:
        _enter(self._home, "back")


def _is_namespace(path: str) -> bool:
    """Return whether a namespace is mounted there, and not just a file of the folder's file system."""
    try:
        return os.stat(path).st_dev == os.stat("/proc/self/ns/net").st_dev
    except FileNotFoundError:
        return False


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


def _exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _mtu(name: str) -> int:
    """Return the MTU of an interface, 0 where it is gone."""
    kernel = netlink.Kernel()
    try:
        link = kernel.link_named(name)
    finally:
        kernel.close()
    return link.mtu if link is not None else 0


def _ip(*commands: str) -> None:
    """Run `ip` commands up to the first failure."""
    program = programs.find("ip")
    if not program:
        raise FakeAddressError("ip is not installed", "install iproute2")
    done = programs.run((program, "-batch", "-"), _SECONDS, input="".join(f"{line}\n" for line in commands).encode())
    if done.status:
        raise FakeAddressError(f"ip -batch ({'; '.join(commands)[:200]}): {' '.join(done.output.split())}")
