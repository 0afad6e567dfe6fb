# SPDX-License-Identifier: GPL-2.0-or-later
"""Show on the desktop which lists of single qubes have an error. Few providers have such a list, and import this."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from ..core.firewall import notice
from ..errors import as_error
from ..system import desktop
from ..system.qubesdb import store as qubesdb
from ..system.systemd import INFO

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..core.firewall.binding import Bound
    from ..core.firewall.pass_memory import FirewallMemory

_USER = "/default-user"


def show(memory: FirewallMemory, handled: Iterable[Bound], tell: Callable[[int, str], None]) -> FirewallMemory:
    """Show what is due. That it cannot be shown is told, and no more (B87).

    Args:
        memory: of the pass.
        handled: lists that have just come into force.
        tell: the journal.

    Returns:
        The memory, with when each was shown.
    """
    now = time.monotonic()
    due = notice.due(memory.noticed, handled, now)
    if not due:
        return memory
    try:
        store = qubesdb.connect()
        try:
            user = notice.user(store.read(_USER) or b"")
        finally:
            store.close()
        for bound in due if user else ():
            desktop.notify(user, *notice.text(bound))
    except Exception as error:
        tell(INFO, f"firewall: no notification: {as_error(error)}")
    return memory._replace(noticed=notice.noticed(memory.noticed, due, now))
