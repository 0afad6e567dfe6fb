# SPDX-License-Identifier: GPL-2.0-or-later
"""The owned record without a disk, for the property tests of planners."""

from __future__ import annotations

from qubes_guestnet.core.owned_state import Record
from qubes_guestnet.errors import GuestnetError


class Memory:
    """A ledger: what was saved is there after an agent was killed.

    Attributes:
        record: as it was saved last.
        full: saving fails.
    """

    def __init__(self, record: Record | None = None) -> None:
        self.record = record or Record()
        self.full = False

    def save(self, changed: Record) -> None:
        """See `system.owned_state.Ledger`."""
        if self.full:
            raise GuestnetError("/run is full")
        self.record = changed
