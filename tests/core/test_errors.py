# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors: one safe line each, its cause, and whether a retry can help."""

from __future__ import annotations

import errno

import pytest

from qubes_guestnet.errors import (
    ConfigError,
    FileError,
    GuestnetError,
    KernelError,
    SettingsError,
    StoreError,
    StoreRefused,
    UsageError,
    Vanished,
    shown,
)

RETRYABLE = [
    (GuestnetError("x"), False),
    (SettingsError("/qubes-ip", b"x", "an address"), False),
    (ConfigError("x"), False),
    (StoreError("x"), True),
    (StoreRefused("x"), False),
    (KernelError("ip link", errno.ENOBUFS), True),
    (KernelError("ip link", errno.EPERM, retryable=False), False),
    (Vanished("ip link", errno.ENODEV), True),
    (FileError("/f", OSError(errno.ENOSPC, "full")), True),
    (UsageError("x"), False),
]


@pytest.mark.parametrize(("error", "retryable"), RETRYABLE, ids=lambda value: type(value).__name__)
def test_whether_a_retry_can_help(error: GuestnetError, retryable: bool) -> None:
    assert error.retryable is retryable
    assert isinstance(error, GuestnetError)


def test_problem_and_remedy_make_one_line() -> None:
    assert str(GuestnetError("it is broken", "mend it")) == "it is broken; mend it"
    assert str(GuestnetError("it is broken")) == "it is broken"


def test_what_the_kernel_said_by_number_and_name() -> None:
    error = KernelError("ip link set dev eth0 up", errno.EPERM, "run as root")
    assert str(error) == "ip link set dev eth0 up: Operation not permitted (EPERM); run as root"
    assert error.errno == errno.EPERM
    assert str(KernelError("ip link", 4095)).endswith("(4095)")


def test_a_file_error_names_the_file_and_what_the_system_said() -> None:
    error = FileError("/etc/resolv.conf", OSError(errno.EROFS, "Read-only file system"), "mount it")
    assert str(error) == "/etc/resolv.conf: Read-only file system; mount it"
    assert (error.path, error.errno) == ("/etc/resolv.conf", errno.EROFS)
    assert str(FileError("/f", OSError("odd"))) == "/f: odd"


def test_a_settings_error_names_key_value_and_what_would_be_right() -> None:
    error = SettingsError("/qubes-ip", b"10.0.0.256\n", "an IPv4 address")
    assert str(error).startswith("/qubes-ip: '10.0.0.256\\n' is not valid, expected an IPv4 address; ")
    assert (error.key, error.expected) == ("/qubes-ip", "an IPv4 address")


SHOWN = {
    b"": "''",
    b"plain": "'plain'",
    b"a\nb\x1b[31m": r"'a\nb\x1b[31m'",
    b"\xff\xfe": r"'\\xff\\xfe'",
    b"A" * 60: f"'{'A' * 60}'",
    b"A" * 61: f"'{'A' * 60}…' (61 bytes)",
    b"\n" * 40: "'" + r"\n" * 30 + "…' (40 bytes)",
}


@pytest.mark.parametrize(("value", "text"), SHOWN.items())
def test_a_hostile_value_made_safe(value: bytes, text: str) -> None:
    assert shown(value) == text
    assert text.replace("…", "").isascii()
    assert text.isprintable()
