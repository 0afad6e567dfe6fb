# SPDX-License-Identifier: GPL-2.0-or-later
"""The MTU that dom0 may set. Without a key the driver's MTU stays (behaviour B109).

`/vm-config/net-mtu` is the name proposed for Qubes OS (core-admin PR 791, not merged); `/net-config/MAC/mtu` is for one
interface and wins. The value is as hostile as any other of QubesDB, see `settings`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...errors import SettingsError
from .. import checks
from ..settings import MTU_KEY, PER_INTERFACE

# With a smaller MTU the kernel removes IPv6 from an interface (RFC 8200, 5).
LOWEST = 1280
# XEN_NETIF_MAX_TX_SIZE (65535) less the longest Ethernet header, as xen-netfront has it.
HIGHEST = 65517
_EXPECTED = f"a number from {LOWEST} to {HIGHEST}"


def parse(untrusted_entries: Mapping[str, bytes], macs: Iterable[str]) -> tuple[dict[str, int], list[SettingsError]]:
    """Return MTUs by MAC, of the interfaces that have one, and an error for each value that is not valid.

    Args:
        untrusted_entries: path → raw value.
        macs: addresses of the interfaces, lower case.
    """
    errors: list[SettingsError] = []
    common = _value(untrusted_entries, MTU_KEY, errors)
    found: dict[str, int] = {}
    for mac in macs:
        # As `settings` does it: any spelling of the folder; the lower-case one comes first.
        own = f"{PER_INTERFACE}{mac}/mtu"
        paths = [path for path in sorted(untrusted_entries, reverse=True) if path.lower() == own]
        bad = len(errors)
        mtu = _value(untrusted_entries, paths[0], errors) if paths else None
        if mtu is None and len(errors) == bad:
            mtu = common
        if mtu is not None:
            found[mac] = mtu
    return found, errors


def common(untrusted_entries: Mapping[str, bytes]) -> int:
    """Return the MTU of all interfaces, including vifs; 0 if there is none, or an invalid one."""
    return _value(untrusted_entries, MTU_KEY, []) or 0  # `parse` reports the error


def _value(untrusted_entries: Mapping[str, bytes], path: str, errors: list[SettingsError]) -> int | None:
    untrusted_value = untrusted_entries.get(path, b"")
    if not untrusted_value:
        return None
    if checks.is_decimal(untrusted_value, 5) and not untrusted_value.startswith(b"0"):
        mtu = int(untrusted_value)
        if LOWEST <= mtu <= HIGHEST:
            return mtu
    errors.append(SettingsError(path, untrusted_value, _EXPECTED))
    return None
