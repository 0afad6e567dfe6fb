# SPDX-License-Identifier: GPL-2.0-or-later
"""The reason why a provider with loaded rules does not forward, in words for `status`, `check` and `firewall test`."""

from __future__ import annotations

from ..owned_state import FIREWALL, HELD

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..owned_state import Provided
    from .provider_report import ProviderReport

_HOLDS = {
    HELD: "another program removed our rules",
    FIREWALL: "another program removed our rules, and qubes-firewall.service is not ready yet",
}


def reason(of: Provided | ProviderReport) -> str:
    """Return the recorded reason; "" for none.

    Args:
        of: the record, or the report of a pass, which has the same three fields.
    """
    if of.unfiltered:
        return "qubes-firewall.service is not ready"
    if of.closed:
        return "`forwarding off` was run"
    return _HOLDS[of.hold] if of.hold else ""
