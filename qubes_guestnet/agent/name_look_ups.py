# SPDX-License-Identifier: GPL-2.0-or-later
"""The look-ups of names in firewall rules, for the loop's poll; without a rule with a name there are none."""

from __future__ import annotations

import time
from collections.abc import Collection

from ..system.signals import Signals
from .descriptors import Descriptors

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..provider.firewall_names import FirewallNames


class NameLookUps:
    """The look-ups in flight, and those that are due.

    Args:
        signals: the loop's poll.
    """

    def __init__(self, signals: Signals) -> None:
        self._descriptors = Descriptors(signals)
        self._names: FirewallNames | None = None

    def follow(self, names: FirewallNames | None) -> None:
        """Poll for the look-ups in flight after a pass.

        Args:
            names: names in the firewall's rules; None if there are none.
        """
        self._names = names
        self._descriptors.follow(names.filenos() if names is not None else ())

    def due(self) -> float | None:
        """Return the time of the next work without an event, by the monotonic clock; None for never."""
        return self._names.due() if self._names is not None else None

    def changed(self, ready: Collection[int]) -> bool:
        """Read the answers, and look up names that are due; return whether a pass must follow.

        Args:
            ready: readable descriptors.
        """
        due = self.due()
        waits = not self._descriptors.are_ready(ready) and (due is None or due > time.monotonic())
        if self._names is None or waits:
            return False
        try:
            return self._names.turn()
        finally:
            self._descriptors.follow(self._names.filenos())
