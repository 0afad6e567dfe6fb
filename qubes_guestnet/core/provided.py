# SPDX-License-Identifier: GPL-2.0-or-later
"""What a pass found and did for the qubes behind this one."""

from __future__ import annotations

from ipaddress import IPv4Address

from ..errors import GuestnetError
from .attachment import VifReport
from .namedtuple import NamedTuple
from .provider import ProviderSettings


class ProviderReport(NamedTuple):
    """The provider's half of one pass.

    Args:
        settings: validated.
        active: this qube gives network to others: its key and its service flag are there.
        ipv6: to them IPv6 as well.
        forwarding: families (4, 6) that the kernel forwards at the end of the pass.
        servers: where the virtual DNS addresses lead to; empty: they are rejected.
        servers_reason: where these come from, in words.
        vifs: those that were looked at; a resident pass looks at all of them only when it has a reason to.
        todo: what is still to do, one line each.
        done: what was done, in words.
        errors: everything that went wrong, settings first.
        ruled: the base rules are in force as they were loaded.
        closed: `forwarding off` was said, and not taken back.
        offload: whether connections are offloaded, in words; "" when nobody has looked.
        early: how many of the lines of `todo`, or of `done`, come before the uplink: rules first.
    """

    settings: ProviderSettings
    active: bool = False
    ipv6: bool = False
    forwarding: frozenset[int] = frozenset()
    servers: tuple[IPv4Address, ...] = ()
    servers_reason: str = ""
    vifs: tuple[VifReport, ...] = ()
    todo: tuple[str, ...] = ()
    done: tuple[str, ...] = ()
    errors: tuple[GuestnetError, ...] = ()
    ruled: bool = False
    closed: bool = False
    offload: str = ""
    early: int = 0
