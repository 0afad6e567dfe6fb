# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's network settings below /proc/sys/net.

By words and not by one name with dots: the name of an interface has a dot of its own (vif4.0).
"""

from __future__ import annotations

import errno
import os

from ..errors import FileError

FOLDER = "/proc/sys/net"
_LONGEST = 4096
_REMEDIES = {
    errno.EROFS: "/proc/sys is read-only here; allow writes in the unit's sandbox",
    errno.EACCES: "run this as root",
    errno.EPERM: "run this as root",
}


def read(words: tuple[str, ...]) -> str | None:
    """Return a setting; None when this kernel, or this interface, does not have it.

    Args:
        words: such as ("ipv4", "conf", "vif4.0", "proxy_arp").

    Raises:
        FileError: it cannot be read.
    """
    path = _path(words)
    try:
        with open(path, "rb", buffering=0) as file:
            return (file.read(_LONGEST) or b"").decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FileError(path, error, _REMEDIES.get(error.errno or 0, "")) from None


def interfaces(family: str) -> tuple[str, ...]:
    """Return the names of the interfaces that have settings of a family ("ipv4", "ipv6"), but for lo."""
    try:
        names = os.listdir(_path((family, "conf")))
    except OSError:
        return ()
    return tuple(sorted(name for name in names if name not in ("all", "default", "lo")))


def write(words: tuple[str, ...], value: str | int) -> bool:
    """Make a setting have this value; one that has it is not written: some have effects even then.

    Args:
        words: as for `read`.
        value: what shall be there.

    Returns:
        False when this kernel (one without IPv6), or this interface, does not have it.

    Raises:
        FileError: it cannot be read or written.
    """
    found = read(words)
    if found is None:
        return False
    if found == str(value):
        return True
    path = _path(words)
    try:
        # One write() of everything: the kernel takes each one for the whole value.
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, f"{value}\n".encode("ascii"))
        finally:
            os.close(fd)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise FileError(path, error, _REMEDIES.get(error.errno or 0, "")) from None
    return True


def _path(words: tuple[str, ...]) -> str:
    for word in words:
        if not word or word in (".", "..") or "/" in word or "\0" in word:
            raise ValueError(f"{word!r} is not the name of a network setting")
    return "/".join((FOLDER, *words))
