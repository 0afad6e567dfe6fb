# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors, by their cause and by whether a retry can succeed.

Every error is one line: the problem, with the key, file or operation, and the remedy.
"""

from __future__ import annotations

import errno as _errno
import os

SHOWN_VALUE_LENGTH = 60


class GuestnetError(Exception):
    """Base of all our errors.

    Args:
        problem: one line that names the key, file or operation.
        remedy: an action for the user, or "" if only waiting helps.
    """

    retryable = False
    needs_root = False  # the operation requires root
    refused = False  # of a transaction that was answered, and of which nothing is in force

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}" if self.remedy else self.problem


class SettingsError(GuestnetError):
    """A value from dom0 is invalid. Only a new value helps, so there is no retry.

    Args:
        key: the QubesDB path.
        untrusted_value: the raw value; shown escaped and shortened.
        expected: the valid form.
    """

    def __init__(self, key: str, untrusted_value: bytes, expected: str) -> None:
        super().__init__(
            f"{key}: {shown(untrusted_value)} is not valid, expected {expected}",
            "the settings in use stay; set the value again in dom0",
        )
        self.key = key
        self.expected = expected


class ConfigError(GuestnetError):
    """A user's file (guestnet.toml) is invalid."""


class StoreError(GuestnetError):
    """QubesDB failed to answer. A new connection may help."""

    retryable = True


class StoreRefused(StoreError):
    """QubesDB answered ERROR: a write without permission, or an invalid path or value."""

    retryable = False


class KernelError(GuestnetError):
    """The kernel refused an operation.

    Args:
        operation: in the syntax of `ip`.
        errno: the positive errno of the reply.
        remedy: an action for the user.
        retryable: whether the same operation may succeed later.
    """

    def __init__(self, operation: str, errno: int, remedy: str = "", retryable: bool = True) -> None:
        name = _errno.errorcode.get(errno, str(errno))
        self.needs_root = errno == _errno.EPERM
        remedy = remedy or ("run as root" if self.needs_root else "")
        super().__init__(f"{operation}: {os.strerror(errno)} ({name})", remedy)
        self.errno = errno
        self.retryable = retryable


class Vanished(KernelError):
    """The interface disappeared between observe and apply; this causes a new pass."""


class FileError(GuestnetError):
    """A file could not be read or published.

    Args:
        path: the file.
        error: of the system call.
        remedy: an action for the user.
    """

    retryable = True

    def __init__(self, path: str, error: OSError, remedy: str = "") -> None:
        super().__init__(f"{path}: {error.strerror or error}", remedy)
        self.path = path
        self.errno = error.errno


class UnexpectedError(GuestnetError):
    """An exception that its adapter should have caught: a bug, which must not take the qube's network down."""

    retryable = True


def as_error(error: Exception) -> GuestnetError:
    """Return an error of ours as it is, and any other exception as `unexpected` describes it."""
    return error if isinstance(error, GuestnetError) else unexpected(error)


def unexpected(error: Exception) -> UnexpectedError:
    """Return an error that describes a foreign exception and its origin."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = ""
    if trace is not None:
        code = trace.tb_frame.f_code
        place = f" at {os.path.basename(code.co_filename)}:{trace.tb_lineno} ({code.co_name})"
    words = printable(f"{type(error).__name__}: {error}{place}")
    return UnexpectedError(words, "trying again; if the error persists, report it as a bug of qubes-guestnet")


def did_not_persist(change: object) -> GuestnetError:
    """Return the error for a change that is missing after it was applied.

    Args:
        change: an operation, or its text.
    """
    return GuestnetError(f"change did not persist: {change}", "is another program reverting it?")


class UsageError(GuestnetError):
    """The command line is wrong; exit status 2."""


# What `str.isprintable` lets through though it leaves no mark on a screen. Default_Ignorable_Code_Point of Unicode, as
# far as it is not in a category of control, format, private, unassigned or separator characters; and below it what is
# drawn as blank: a text of such characters would be taken for none, and two names that differ for the same one.
_UNSEEN = (
    (0x034F, 0x034F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x3164, 0x3164), (0xFE00, 0xFE0F),
    (0xFFA0, 0xFFA0), (0xE0000, 0xE0FFF),
    (0x2800, 0x2800), (0x16FE4, 0x16FE4), (0x1D159, 0x1D159),
)  # fmt: skip


def printable(untrusted_text: str) -> str:
    """Make foreign text safe for a terminal, a log and JSON (behaviour B120).

    Escaped are control characters (including ESC and newline), invalid UTF-8 (surrogates), direction-changing
    characters, spaces other than the usual one, private and unassigned characters, and all invisible ones. Visible text
    is returned unchanged.

    Args:
        untrusted_text: from other programs, files or the kernel.
    """
    if untrusted_text.isascii() and untrusted_text.isprintable():
        return untrusted_text
    return "".join(map(_escaped, untrusted_text))


def _escaped(character: str) -> str:
    if character.isprintable() and not any(first <= ord(character) <= last for first, last in _UNSEEN):
        return character
    if "\udc80" <= character <= "\udcff":  # a byte that surrogateescape kept
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def shown(untrusted_value: bytes) -> str:
    """Make a hostile value safe for a log line: ASCII, escaped, quoted, at most 60 characters."""
    text = untrusted_value[: SHOWN_VALUE_LENGTH + 1].decode("ascii", "backslashreplace")
    text = text.encode("unicode_escape").decode("ascii")
    if len(text) > SHOWN_VALUE_LENGTH or len(untrusted_value) > SHOWN_VALUE_LENGTH:
        return f"'{text[:SHOWN_VALUE_LENGTH]}…' ({len(untrusted_value)} bytes)"
    return f"'{text}'"
