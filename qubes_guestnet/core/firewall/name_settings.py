# SPDX-License-Identifier: GPL-2.0-or-later
"""The table `[firewall]` of guestnet.toml: the effect of unknown names, and the frequency of look-ups."""

from __future__ import annotations

from collections.abc import Mapping

from ..namedtuple import NamedTuple
from .name_cache import SHORTEST

BLOCK_ENTRY, BLOCK_QUBE = "block-entry", "block-qube"
LEAST, MOST = 30, 1800  # seconds
KEYS = ("unresolved", "least_ttl")


class _NameSettingsFields(NamedTuple):
    unresolved: str = BLOCK_ENTRY
    least_ttl: int = SHORTEST


class NameSettings(_NameSettingsFields):
    """The owner's settings for names in firewall rules.

    Args:
        unresolved: BLOCK_ENTRY: while a name is unknown, an accept entry with it matches nothing, and a drop entry
            every destination; BLOCK_QUBE: everything from the qube is refused, as the daemon of core-agent does.
        least_ttl: the shortest time between two look-ups of a name, 30 to 1800 s, whatever its time to live.

    Raises:
        ValueError: a value is invalid; the message names the key.
    """

    __slots__ = ()

    def __new__(cls, unresolved: object = BLOCK_ENTRY, least_ttl: object = SHORTEST) -> NameSettings:
        """Check the fields."""
        if unresolved not in (BLOCK_ENTRY, BLOCK_QUBE):
            raise ValueError(
                f'[firewall] unresolved: {str(unresolved)[:40]!r} is neither "{BLOCK_ENTRY}" nor "{BLOCK_QUBE}"'
            )
        if type(least_ttl) is not int or not LEAST <= least_ttl <= MOST:
            shown = f"{str(least_ttl)[:40]!r}"
            raise ValueError(f"[firewall] least_ttl: {shown} is not a whole number from {LEAST} to {MOST}")
        return super().__new__(cls, str(unresolved), least_ttl)

    @property
    def blocks_qube(self) -> bool:
        """Return whether an unknown name makes everything from its qube refused."""
        return self.unresolved == BLOCK_QUBE


def parse(table: Mapping[str, object]) -> NameSettings:
    """Parse the table `[firewall]`.

    Args:
        table: its keys are known (`config.check_keys`).

    Raises:
        ValueError: a value is not valid; the message names the key.
    """
    return NameSettings(**table)
