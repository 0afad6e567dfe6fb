# SPDX-License-Identifier: GPL-2.0-or-later
"""Decisions in plain words: the owner of resolv.conf, the manager of an interface, its kind of default route."""

from __future__ import annotations

from .dns.resolv_conf import Decision, Owner
from .uplink.desired import Style, StyleChoice
from .uplink.networkmanager import ManagerChoice

# The owner of the file, and the reason; {} is the detail of the decision.
_OWNERS = {
    Owner.PROTECTED: ("not written by qubes-guestnet", "protected by {}"),
    Owner.IMMUTABLE: ("not written by qubes-guestnet", "the file is immutable or append-only: lsattr shows it"),
    Owner.DISABLED: ("no name server is written", "service flag disable-dns-server"),
    Owner.NETWORKMANAGER: ("written by NetworkManager", "service flag network-manager"),
    Owner.HOOK: ("kept as a hook wrote it", "{}"),
    Owner.TUNNEL: ("kept as another program wrote it", "a VPN is up: {}"),
    Owner.DIRECT: ("written by qubes-guestnet", "no other program manages this file"),
}
_MANAGERS = {
    "network-manager=yes nmcli=yes manager=networkmanager": "NetworkManager (service flag network-manager)",
    "network-manager=yes nmcli=no manager=direct": (
        "qubes-guestnet (service flag network-manager is set, but nmcli is not installed)"
    ),
    "network-manager=no manager=direct": "qubes-guestnet (service flag network-manager is not set)",
}
STYLES = {Style.DEVICE: "device route", Style.GATEWAY: "gateway route"}


def owner(decision: Decision) -> str:
    """Return the owner of resolv.conf, and the reason."""
    written, reason = _OWNERS[decision.owner]
    return f"{written} ({reason.format(decision.detail or 'yes')})"


def manager(choice: ManagerChoice) -> str:
    """Return the manager of an interface, and the reason."""
    return _MANAGERS.get(choice.reasons, choice.reasons)


def style(choice: StyleChoice) -> str:
    """Return the kind of default route of an interface, and the reason."""
    return f"{STYLES[choice.style]} ({choice.reason})"
