# SPDX-License-Identifier: GPL-2.0-or-later
"""The operations of a provider, for the qubes behind it."""

from __future__ import annotations

from . import flowtable
from .namedtuple import NamedTuple, distinct


@distinct
class LoadFlowtable(NamedTuple):
    """Offload connections of these devices; what was offloaded before goes the whole way again.

    Args:
        devices: index, name and MTU of each. The kernel keeps the MTU of the way in an offloaded connection, and does
            not look at it again in IPv6: with another one, what does not fit any more would be lost without a word.
        ipv6: whether the qubes have IPv6.
    """

    devices: tuple[tuple[int, str, int], ...]
    ipv6: bool

    def __str__(self) -> str:
        return f"nft -f: table inet {flowtable.TABLE} with a flowtable of {len(self.names)} devices"

    @property
    def names(self) -> tuple[str, ...]:
        """The devices that may stand in a text for nft."""
        return tuple(name for _, name, _ in self.devices if flowtable.usable(name))


@distinct
class EndFlowtable(NamedTuple):
    """End the offload, whether there is any or not."""

    def __str__(self) -> str:
        return f"nft -f: table inet {flowtable.TABLE} deleted"
