# SPDX-License-Identifier: GPL-2.0-or-later
"""Decide whether to harden vifs by sysctls (service harden-network-interfaces).

As in qubes-core-agent-networking (behaviours B17, B154) it is off by default, and read from QubesDB, so that a change
applies to the next interface without a restart of the qube.
"""

from __future__ import annotations

SERVICE = "harden-network-interfaces"
KEY = f"/qubes-service/{SERVICE}"


def wanted(untrusted_value: bytes, flag: bool) -> bool:
    """Return whether it is on.

    Args:
        untrusted_value: value of KEY, b"" if dom0 has not written it. "0" is off, as for every other service.
        flag: the service's file exists since boot; it counts if there is no key.
    """
    return untrusted_value != b"0" if untrusted_value else flag
