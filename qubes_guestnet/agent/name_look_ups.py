# SPDX-License-Identifier: GPL-2.0-or-later
"""The look-ups of names in firewall rules, as the loop waits for them; without such a rule there are none."""

from __future__ import annotations

import time
from collections.abc import Collection

from ..system.signals import Signals
from .descriptors import Descriptors

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..provider.firewall_names import FirewallNames


class NameLookUps:
    """What is in flight, and what is due.

    Args:
        signals: the loop's poll.
    """

    def __init__(self, signals: Signals) -> None:
        self._descriptors = Descriptors(signals)
        self._names: FirewallNames | None = None

    def follow(self, names: FirewallNames | None) -> None:
        """Wait for what is in flight after a pass.

        Args:
            names: of the firewall's rules; None where no rule has any.
        """
        self._names = names
        self._descriptors.follow(names.filenos() if names is not None else ())

    def due(self) -> float | None:
        """Return when there is something to do without another event, by the monotonic clock; None for never."""
        return self._names.due() if self._names is not None else None

    def changed(self, ready: Collection[int]) -> bool:
        """Take what answers are there, and ask for what is due; return whether a pass has to follow.

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
