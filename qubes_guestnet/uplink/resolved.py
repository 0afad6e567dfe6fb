# SPDX-License-Identifier: GPL-2.0-or-later
"""systemd-resolved: the servers of the uplinks in it, and the servers that it asks. `core.dns.resolved_links` decides.

It is called over the bus, or by resolvectl if the bus ends the connection during a call. It may hang: after a timeout
it is not called for some time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ..core.operations import Outcome, Planned
from ..core.owned_state import Record
from ..core.report import Uplinks
from ..errors import GuestnetError
from ..system.dbus import resolved
from .system_bus import BusHolder

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from typing import TypeVar

    from ..core.dns.resolved_links import LinkFacts
    from ..core.dns.upstream_servers import Heard, LinkServers
    from ..core.uplink.service_operations import RevertLinkNames, SetLinkNames

    Port = resolved.ByBus | resolved.ByCommand
    Answer = TypeVar("Answer")

PATIENCE_SECONDS = 3.0


class Resolved:
    """systemd-resolved as this process asks it.

    Args:
        bus: of this process.
    """

    def __init__(self, bus: BusHolder) -> None:
        self._bus = bus
        self._again = 0.0  # when it is asked again after it let us wait
        self._error: GuestnetError | None = None
        self._links: tuple[LinkServers, ...] | None = None  # what it said last
        self._silent: tuple[float, Heard] | None = None  # until when it is not asked for names again, and what it said

    def plan(self, uplinks: Uplinks, record: Record, _so_far: Outcome) -> Planned:
        """Observe and plan; see `networkmanager.plan`."""
        if not resolved.present() or self._bus.resolved() is None:
            return Planned((), record)
        if self._error is not None and time.monotonic() < self._again:
            return Planned((), record, errors=(self._error,))  # so that it is tried again
        self._error = None
        from ..core.dns import resolved_links  # where it is

        asked = (resolved_links.asked(interface, uplinks.settings, uplinks.flags) for interface in uplinks.interfaces)
        links = [facts for facts in asked if facts is not None and resolved_links.concerned(facts, record)]
        try:
            links = [self._observed(facts) for facts in links]
        except GuestnetError as error:
            return Planned((), record, errors=(error,))
        return resolved_links.plan(links, record, _so_far)

    def _observed(self, facts: LinkFacts) -> LinkFacts:
        return facts._replace(seen=self._ask(lambda port: port.link(facts.link.ifindex, facts.link.name)))

    def set(self, op: SetLinkNames) -> None:
        """Give a link its servers. Raises GuestnetError."""
        self._ask(lambda port: port.set(op.ifindex, op.interface, op.names))

    def revert(self, op: RevertLinkNames) -> None:
        """Take the servers of a link away. Raises GuestnetError."""
        self._ask(lambda port: port.revert(op.ifindex, op.interface))

    def _ask(self, question: Callable[[Port], Answer]) -> Answer:
        """Return one question, by the other way where the first one ends in the middle of it. Raises GuestnetError."""
        try:
            port = self._bus.resolved()
            if port is None:
                raise GuestnetError("cannot query systemd-resolved", "install jeepney, or resolvectl of systemd")
            try:
                return question(port)
            except GuestnetError:
                other = self._bus.instead()
                if other is None:
                    raise
                return question(other)
        except GuestnetError as error:
            error.retryable = True
            self._again, self._error = time.monotonic() + PATIENCE_SECONDS, error
            raise

    # --- the servers that it asks, which a provider's virtual DNS follows ------------------------------------------

    def hear(self, uplinks: frozenset[int]) -> Heard:
        """Return the servers that systemd-resolved asks, or why they are not to be had (behaviour B35).

        Args:
            uplinks: interface indexes of this qube's uplinks.
        """
        if self._silent is not None and time.monotonic() < self._silent[0]:
            return self._silent[1]
        self._silent = None
        if not resolved.present():
            from ..core.dns.upstream_servers import NEVER_THERE  # a provider's alone

            return NEVER_THERE
        self._bus.open()
        heard = resolved.ask(self._bus.resolved(), uplinks, self._links)
        if heard.links is None and (port := self._bus.instead()) is not None:
            heard = resolved.ask(port, uplinks, self._links)
        self._links = heard.links
        if heard.problem == resolved.SILENT:
            self._silent = (time.monotonic() + PATIENCE_SECONDS, heard)
        return heard

    def stirred(self) -> None:
        """Call the service again at once, because one started or ended, or a late answer may have arrived."""
        self._silent = None
