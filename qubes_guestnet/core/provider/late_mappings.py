# SPDX-License-Identifier: GPL-2.0-or-later
"""Fake addresses that dom0 writes after a vif was set up: which are late, and which are changes (B61, B159).

The qube has the addresses of its own entries at the time it was attached, and dom0 changes these only when it attaches
the qube again. dom0 rewrites the provider's `/mapped-ip/…` of every running qube at other times too, for example when
the provider's own netvm changes. So the mapping at `vif online` stays in force until the next one.

Only dom0 before 2024-06 wrote the entries of a qube after its vif was there. Then there was no entry at all at
`online`, and the qube, which believes to have the fake address, does not speak by its real one.
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
    """What dom0 says now of the addresses that a qube is shown.

    Args:
        told: there is an entry.
        valid: its values are addresses.
        mappings: of the qube's addresses; none where each is shown as it is.
    """

    told: bool
    valid: bool = True
    mappings: tuple[Mapping, ...] = ()


def is_told(untrusted_entries: Entries[str, bytes], addresses: Iterable[IPAddress]) -> bool:
    """Return whether dom0 has said what a qube with these addresses sees; it says so of every qube, faked or not."""
    keys = (f"{mapping_prefix(address)}visible-ip" for address in addresses if address.version == IPV4)
    return any(untrusted_entries.get(key) for key in keys)


def shown(untrusted_entries: Entries[str, bytes], vif: Vif) -> Shown:
    """Return what dom0 says now of a vif's addresses.

    Args:
        untrusted_entries: as read with `mapping_prefix` of each address.
        vif: as recorded.
    """
    mappings, errors = parse_mappings(untrusted_entries, vif.addresses)
    return Shown(is_told(untrusted_entries, vif.addresses), not errors, mappings)


def late(vif: Vif, now: Shown, *, spoken: bool) -> str:
    """Return what to do about entries that are there now.

    Args:
        vif: as recorded.
        now: by `shown`.
        spoken: whether the qube has sent anything by its real address since it was attached.

    Returns:
        FOLLOW for a late fake address: set the vif up again. LEARN where dom0 has said it only now, and nothing is to
        be done: from now on it holds. Else KEEP.
    """
    if vif.told or vif.mappings or not now.told or not now.valid:
        return KEEP
    return FOLLOW if now.mappings and not spoken else LEARN


def changed(vif: Vif, now: Shown, gateway: IPv4Address | None) -> bool:
    """Return whether dom0 says other addresses than the qube was attached with.

    Args:
        vif: as recorded.
        now: by `shown`; what is not valid is no change.
        gateway: this provider's own: to name it and to name none is the same.
    """
    return now.valid and _alike(now.mappings, gateway) != _alike(vif.mappings, gateway)


def _alike(mappings: tuple[Mapping, ...], gateway: IPv4Address | None) -> tuple[Mapping, ...]:
    return tuple(each._replace(gateway=each.gateway or gateway) for each in mappings)
