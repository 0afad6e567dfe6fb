# SPDX-License-Identifier: GPL-2.0-or-later
"""Read and write files, and collect the facts about resolv.conf.

The steps of `publish`, and the reason for their order:

1. A file with the same bytes, mode and kind is not written: programs that watch the file are not woken.
2. A new file in the same folder gets the bytes, the mode (by `fchmod`, independent of the umask), the SELinux label and
   an fsync, and is then renamed over the old one. A reader sees either the whole old or the whole new file; a symbolic
   link is replaced, and its target stays unchanged. After an error before the rename the new file is removed and the
   old one stays.
3. Where the name cannot be replaced (a bind mount gives EBUSY, and Qubes' bind-dirs makes those; a read-only folder)
   the old file is overwritten: first the bytes, made as long as the old ones by empty lines at the end, in one write,
   only then the cut to length. A reader may see empty lines at the end, but no empty file. When the disk is full
   the old bytes are put back.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator, Sequence

from qubes_guestnet.core.enumeration import Enum
from qubes_guestnet.core.namedtuple import NamedTuple
from qubes_guestnet.errors import FileError

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from qubes_guestnet.core.dns.resolv_conf import FileFacts

RESOLV_CONF = "/etc/resolv.conf"
PROTECTED_DIRS = ("/etc/qubes/protected-files.d", "/rw/config/protected-files.d")
# A resolv.conf has some hundred bytes; of a longer one the beginning is enough.
PUBLIC = 0o644
LONGEST = 65536
LONGEST_LIST = 1 << 20
# To write a few hundred bytes takes milliseconds, on a disk that spins up some seconds.
ABANDONED_AFTER_S = 60

# Backups of a list by editors and rpm; Qubes' scripts skip them too.
_NO_LISTS = ("~", ".rpmsave", ".rpmnew", ".rpmold")
# Errors of a list that is a dangling or circular link, or disappeared: it counts as missing.
_NO_LIST = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)

# <linux/fs.h>: _IOR('f', 1, long) as x86 and arm encode it, and the flags that forbid writing (chattr +i, +a).
_FS_IOC_GETFLAGS = 2 << 30 | struct.calcsize("l") << 16 | ord("f") << 8 | 1
_FORBID_WRITING = 0x10 | 0x20

_SELINUX = "/sys/fs/selinux/enforce"
_SELINUX_LABEL = "security.selinux"

# The folder or the name cannot get a new file, but the old one may be writable.
_NOT_REPLACEABLE = (errno.EBUSY, errno.EXDEV, errno.EROFS, errno.EACCES, errno.EPERM)
# Errors of a file system without sync.
_CANNOT_SYNC = (errno.EINVAL, errno.EOPNOTSUPP)
_REMEDIES = {
    errno.ENOSPC: "the former file is unchanged; free some space on this file system",
    errno.EDQUOT: "the former file is unchanged; free some space on this file system",
    errno.EROFS: "make the file system writable",
    errno.EFBIG: "shorten the file",
    errno.EACCES: "run this as root, and check whether a security module denies it",
    errno.EPERM: "run this as root, and check for chattr +i",
    errno.ENOENT: "the folder does not exist",
    errno.EISDIR: "a directory has the name of the file; move it away",
    errno.EEXIST: "another kind of object has the name of the file; move it away",
    errno.ELOOP: "the path is a loop of symbolic links, or a link appeared just now",
}


class Published(Enum):
    """The result of `publish`."""

    UNCHANGED = "unchanged"
    REPLACED = "replaced"
    IN_PLACE = "in place"


class _Found(NamedTuple):
    kind: str = "missing"
    data: bytes = b""
    mode: int = 0
    link_target: str = ""
    immutable: bool = False


def read(path: str, limit: int = LONGEST) -> bytes | None:
    """Return the bytes of a file, links followed; None when there is none.

    Raises:
        FileError: it cannot be read, is not a regular file, or is longer than `limit` bytes.
    """
    try:
        data = _read_regular(path, limit + 1)
        if len(data) > limit:
            raise OSError(errno.EFBIG, f"longer than {limit} bytes")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _file_error(path, error) from error
    return data


def facts(
    path: str = RESOLV_CONF,
    protected_dirs: Sequence[str] = PROTECTED_DIRS,
    *,
    disabled: bool = False,
    networkmanager: bool = False,
) -> FileFacts:
    """Gather what `core.dns.resolv_conf.choose_owner` needs to know about `path`.

    Args:
        path: the resolv.conf.
        protected_dirs: folders with lists of protected files.
        disabled: the service flag `disable-dns-server`; passed through.
        networkmanager: NetworkManager configures the uplink; passed through.

    Raises:
        FileError: an existing file cannot be read.
    """
    from qubes_guestnet.core.dns.resolv_conf import (
        FileFacts,  # not needed for hotplug and the boot, which write other files
    )

    try:
        found = _look(path, LONGEST, attributes=True)
    except OSError as error:
        raise _file_error(path, error) from error
    return FileFacts(
        kind=found.kind,
        data=found.data,
        mode=found.mode,
        link_target=found.link_target,
        protected_by=_protected_by(path, protected_dirs),
        immutable=found.immutable,
        disabled=disabled,
        networkmanager=networkmanager,
        linked=_behind(path) if found.kind == "symlink" else b"",
    )


def _behind(path: str) -> bytes:
    """Return the beginning of a link's target; empty if it is not a file."""
    try:
        return _read_regular(path, LONGEST)
    except OSError:
        return b""


def publish(
    path: str, data: bytes, mode: int = PUBLIC, *, sync: bool = True, over: FileFacts | None = None
) -> Published:
    """Make `path` a regular file with exactly these bytes and this mode.

    Args:
        path: the file; its folder must exist.
        data: the whole content.
        mode: permission bits.
        sync: call fsync, so that the file survives a power cut; not needed below /run.
        over: what was there when it was decided to write; anything else is left (ESTALE). None: whatever is there.

    Raises:
        FileError: with the remedy. The former file is unchanged (except after a disk error).
    """
    try:
        found = _look(path, len(data) + 1)
        if found.kind == "regular" and (found.data, found.mode) == (data, mode):
            return Published.UNCHANGED
        if found.kind == "other":
            raise OSError(errno.EEXIST, "not a regular file")
        try:
            _replace(path, data, mode, sync=sync, regular=found.kind == "regular", over=over)
        except OSError as error:
            if found.kind != "regular" or error.errno not in _NOT_REPLACEABLE:
                raise
            _overwrite(path, data, mode, sync=sync)
            return Published.IN_PLACE
    except OSError as error:
        raise _file_error(path, error) from error
    return Published.REPLACED


def append(path: str, data: bytes) -> None:
    """Append to a log, which is created if missing. Raises OSError; does not wait for the reader of a FIFO."""
    fd = _open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        _write_all(fd, data)
    finally:
        os.close(fd)


def _file_error(path: str, error: OSError) -> FileError:
    return FileError(path, error, _REMEDIES.get(error.errno or 0, ""))


def _open(path: str, flags: int) -> int:
    # O_NONBLOCK: the opening of a FIFO would otherwise wait for a writer for ever.
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, PUBLIC)


def _read_all(fd: int, limit: int) -> bytes:
    """Read up to `limit` bytes from the beginning."""
    pieces = []
    while limit > 0 and (piece := os.read(fd, limit)):
        pieces.append(piece)
        limit -= len(piece)
    return b"".join(pieces)


def _read_regular(path: str, limit: int) -> bytes:
    fd = _open(path, os.O_RDONLY)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EEXIST, "not a regular file")
        return _read_all(fd, limit)
    finally:
        os.close(fd)


def _look(path: str, limit: int, *, attributes: bool = False) -> _Found:
    """Return the object at `path`, links not followed, with the first `limit` bytes of a regular file."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return _Found()
    if stat.S_ISLNK(mode):
        return _Found("symlink", link_target=os.readlink(path))
    if not stat.S_ISREG(mode):
        return _Found("other")
    fd = _open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        return _Found("regular", _read_all(fd, limit), mode, immutable=attributes and _immutable(fd))
    finally:
        os.close(fd)


def _immutable(fd: int) -> bool:
    flags = bytearray(struct.calcsize("l"))
    try:
        fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags)
    except OSError:
        return False  # a file system without such attributes
    # The kernel fills in an int, whatever the size in the request's number says.
    return bool(struct.unpack_from("i", flags)[0] & _FORBID_WRITING)


def _protected_by(path: str, folders: Sequence[str]) -> str:
    """Return the list with `path` as a whole line. An unreadable list counts as one that has it."""
    for folder in folders:
        where = folder
        try:
            for where in _lists(folder):
                if os.fsencode(path) in _lines(where):
                    return where
        except OSError:
            return f"{where} (unreadable)"
    return ""


def _lists(folder: str) -> Iterator[str]:
    """Yield the files below a folder, in the order of their names."""
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        path = os.path.join(folder, name)
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            if error.errno in _NO_LIST:
                continue
            raise
        if stat.S_ISDIR(mode) and not os.path.islink(path):
            yield from _lists(path)
        elif stat.S_ISREG(mode) and not name.endswith(_NO_LISTS):
            yield path


def _lines(path: str) -> list[bytes]:
    try:
        data = _read_regular(path, LONGEST_LIST + 1)
    except FileNotFoundError:
        return []  # it disappeared after its folder was listed
    if len(data) > LONGEST_LIST:
        raise OSError(errno.EFBIG, f"longer than {LONGEST_LIST} bytes")
    return data.split(b"\n")


def _replace(path: str, data: bytes, mode: int, *, sync: bool, regular: bool, over: FileFacts | None) -> None:
    folder, name = os.path.split(path)
    # All in one opened folder, which stays the same even if its path changes meanwhile.
    folder_fd = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        prefix = f".{name}.guestnet-"
        temporary = prefix + os.urandom(8).hex()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600, dir_fd=folder_fd)
        try:
            try:
                _write_all(fd, data)
                os.fchmod(fd, mode)
                _label(fd, path, regular=regular)
                if sync:
                    _sync(fd)
            finally:
                os.close(fd)
            now = _look(path, LONGEST)
            if over is not None and (now.kind, now.data, now.link_target) != (over.kind, over.data, over.link_target):
                raise OSError(errno.ESTALE, "another program wrote it just now")
            os.rename(temporary, name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
        except BaseException:
            _remove(temporary, folder_fd)
            raise
        _sweep(prefix, folder_fd)
        if sync:
            _sync(folder_fd)
    finally:
        os.close(folder_fd)


def _sweep(prefix: str, folder_fd: int) -> None:
    """Remove temporary files of killed processes, but not those that a process may still be writing."""
    for name in os.listdir(folder_fd):
        try:
            if name.startswith(prefix) and time.time() - os.lstat(name, dir_fd=folder_fd).st_mtime > ABANDONED_AFTER_S:
                os.unlink(name, dir_fd=folder_fd)
        except OSError:
            continue  # another process removed it


def _remove(name: str, folder_fd: int) -> None:
    try:
        os.unlink(name, dir_fd=folder_fd)
    except OSError:
        return  # the error that led here is the one to report


def _overwrite(path: str, data: bytes, mode: int, *, sync: bool) -> None:
    fd = _open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        before = os.fstat(fd)
        padded = data.ljust(min(before.st_size, LONGEST), b"\n")
        old = os.pread(fd, len(padded), 0)
        try:
            _write_all(fd, padded)
        except OSError:
            os.pwrite(fd, old, 0)
            os.ftruncate(fd, before.st_size)
            raise
        os.ftruncate(fd, len(data))
        if stat.S_IMODE(before.st_mode) != mode:
            os.fchmod(fd, mode)
        if sync:
            _sync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _sync(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def _label(fd: int, path: str, *, regular: bool) -> None:
    """Set the SELinux label of the old file, or the policy's, on the new one. A failure is only logged."""
    if not os.path.exists(_SELINUX):
        return
    try:
        label = os.getxattr(path, _SELINUX_LABEL, follow_symlinks=False) if regular else _policy_label(path)
        os.setxattr(fd, _SELINUX_LABEL, label)
    except (OSError, ImportError) as error:
        import logging  # needed only after an error

        logging.getLogger(__name__).warning("%s: no SELinux label: %s; restorecon %s sets it", path, error, path)


def _policy_label(path: str) -> bytes:
    import importlib  # only on machines with SELinux, and only where no file stood before; selinux is heavy

    selinux = importlib.import_module("selinux")
    context: str = selinux.matchpathcon(path, stat.S_IFREG)[1]
    return context.encode() + b"\0"
