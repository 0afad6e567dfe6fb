# SPDX-License-Identifier: GPL-2.0-or-later
"""The QubesDB wire format: a 72-byte header, then data. Pure; the direct client and the lab's daemon both speak it.

The header is a C struct in native byte order: type (u8) at 0, path (64 bytes, NUL-terminated) at 1, three bytes of
padding, length of the data (u32) at 68. What follows the NUL in a received path is garbage and is ignored; what we
send there is zero.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from ...core.namedtuple import NamedTuple

CMD_READ, CMD_WRITE, CMD_MULTIREAD, CMD_LIST, CMD_RM, CMD_WATCH, CMD_UNWATCH = range(7)
RESP_OK, RESP_NOENT, RESP_ERROR, RESP_READ, RESP_MULTIREAD, RESP_LIST, RESP_WATCH = range(7, 14)

HEADER_SIZE = 72
PATH_SIZE = 64  # QDB_MAX_PATH, with the NUL
DATA_LIMIT = 3072  # QDB_MAX_DATA; a value is shorter
MAX_CLIENTS = 256

_HEADER = struct.Struct("=B64s3xI")
# A leading dash is refused since 4.3.3.
_PATH_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:/@-"


class Header(NamedTuple):
    """A received header.

    Args:
        kind: one of CMD_* or RESP_*, or any other byte a broken peer sent.
        path: up to the first NUL; all 64 bytes where there is none.
        length: of the data that follows, in bytes, as claimed by the peer.
    """

    kind: int
    path: bytes
    length: int


def pack(kind: int, path: bytes = b"", data: bytes = b"") -> bytes:
    """Return one whole message.

    Args:
        kind: CMD_* or RESP_*.
        path: at most 64 bytes; filled up with zeroes.
        data: the value, for CMD_WRITE, RESP_READ and RESP_MULTIREAD.
    """
    return _HEADER.pack(kind, path, len(data)) + data


def unpack(message: bytes | bytearray | memoryview, offset: int = 0) -> Header:
    """Return the header at `offset`; 72 bytes must be there.

    Raises:
        struct.error: fewer bytes are left.
    """
    kind, path, length = _HEADER.unpack_from(message, offset)
    return Header(kind, path.partition(b"\0")[0], length)


def valid_path(path: bytes) -> bool:
    """Return whether the daemon takes this path in a header (it may still refuse to write there).

    The empty path is valid: MULTIREAD of it is the whole database.
    """
    return len(path) < PATH_SIZE and not path.startswith(b"-") and not path.translate(None, _PATH_BYTES)


def in_order(paths: Iterable[str]) -> tuple[str, ...]:
    """Return paths without repetition, each in the place of its last event."""
    found: dict[str, None] = {}
    for path in paths:
        found.pop(path, None)
        found[path] = None
    return tuple(found)
