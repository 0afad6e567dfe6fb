# SPDX-License-Identifier: GPL-2.0-or-later
"""Distinguish late fake addresses from changed ones, if dom0 writes them after a vif was configured (B61, B159).

The qube has the addresses of its own entries at the time it was attached, and dom0 changes these only when it attaches
the qube again. dom0 rewrites the provider's `/mapped-ip/…` of every running qube at other times too, for example when
the provider's own netvm changes. So the mapping at `vif online` stays in force until the next one.

Only dom0 before 2024-06 wrote the entries of a qube after its vif appeared. Then there was no entry at all at `online`,
and the qube, which knows only its fake address, sends nothing from its real one.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping as Entries

from ..namedtuple import NamedTuple
from ..values import IPV4, IPAddress
from .settings import mapping_prefix, parse_mappings
from .vif import Mapping, Vif

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Address

KEEP, LEARN, FOLLOW = "keep", "learn", "follow"


class Shown(NamedTuple):
    """The present entries about a qube's visible addresses.

    Args:
        told: an entry exists.
        valid: its values are addresses.
        mappings: mappings of the qube's addresses; empty if all visible addresses are real.
    """

    told: bool
    valid: bool = True
    mappings: tuple[Mapping, ...] = ()


def is_told(untrusted_entries: Entries[str, bytes], addresses: Iterable[IPAddress]) -> bool:
    """Return whether dom0 has written the visible addresses of a qube, as it does for every qube, faked or not."""
    keys = (f"{mapping_prefix(address)}visible-ip" for address in addresses if address.version == IPV4)
    return any(untrusted_entries.get(key) for key in keys)


def shown(untrusted_entries: Entries[str, bytes], vif: Vif) -> Shown:
    """Return the present entries about a vif's visible addresses.

    Args:
        untrusted_entries: entries below `mapping_prefix` of each address.
        vif: the recorded vif.
    """
    mappings, errors = parse_mappings(untrusted_entries, vif.addresses)
    return Shown(is_told(untrusted_entries, vif.addresses), not errors, mappings)


def late(vif: Vif, now: Shown, *, spoken: bool) -> str:
    """Return how to handle the present entries.

    Args:
        vif: the recorded vif.
        now: result of `shown`.
        spoken: whether the qube has sent packets from its real address since it was attached.

    Returns:
        FOLLOW for a late fake address: configure the vif again. LEARN if dom0 has written the entries only now and they
        change nothing: record them. Otherwise KEEP.
    """
    if vif.told or vif.mappings or not now.told or not now.valid:
        return KEEP
    return FOLLOW if now.mappings and not spoken else LEARN


def changed(vif: Vif, now: Shown, gateway: IPv4Address | None) -> bool:
    """Return whether the present entries differ from those that the qube was attached with.

    Args:
        vif: the recorded vif.
        now: result of `shown`; invalid entries are not a change.
        gateway: this provider's own gateway address, which is equivalent to none.
    """
    return now.valid and _alike(now.mappings, gateway) != _alike(vif.mappings, gateway)


def _alike(mappings: tuple[Mapping, ...], gateway: IPv4Address | None) -> tuple[Mapping, ...]:
    return tuple(each._replace(gateway=each.gateway or gateway) for each in mappings)
