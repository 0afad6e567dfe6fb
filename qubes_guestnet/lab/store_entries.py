# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries of QubesDB as text: what `multiread` prints, and what `--file` takes."""

from __future__ import annotations

import re

from ..errors import ConfigError, shown

_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")


def parse_entries(text: bytes, name: str) -> dict[bytes, bytes]:
    """Return entries from a file: one `/path = value` a line, as `multiread` prints them.

    Empty lines and lines that begin with `#` are left out. In values, two hex digits after a backslash and an x are
    that byte.

    Args:
        text: content of the file.
        name: of the file, for the message.

    Raises:
        ConfigError: a line is no entry.
    """
    entries = {}
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip() or line.startswith(b"#"):
            continue
        path, equals, value = line.partition(b"=")
        if not equals:
            raise ConfigError(f"{name}, line {number}: {shown(line)} is not an entry", "write `/path = value`")
        value = value.removeprefix(b" ") if path.endswith(b" ") else value
        entries[path.strip()] = unescape(value)
    return entries


def escape(value: bytes) -> str:
    r"""Return a value as the command line tools of QubesDB print it: what is not printable ASCII becomes \xNN."""
    return "".join([chr(byte) if 0x20 <= byte < 0x80 else f"\\x{byte:02x}" for byte in value])


def unescape(text: bytes) -> bytes:
    """Return the value that `escape` printed."""
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), text)
