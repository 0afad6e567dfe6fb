# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure which qubes reach the world, with packets from all at once, so that timeouts run in parallel."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Mapping
from typing import NamedTuple

from . import world
from .probes import Echo
from .qube import Qube

LIMIT = 1.5
# Where the qube's own kernel refuses to send, there is nothing to wait for but an agent that is about to set a route.
_REFUSED = 0.4
# The first packet may be lost while a neighbour is looked for, or find an agent still at work on the route.
_AGAIN = 0.1
_HOSTS = {4: world.HOST, 6: world.HOST6}


class Reach(NamedTuple):
    """Whether the host of the world answered, by IPv4 and by IPv6."""

    ipv4: bool
    ipv6: bool


NOTHING = Reach(False, False)


def measure(qubes: Mapping[str, Qube], limit: float = LIMIT) -> dict[str, Reach]:
    """Ping the world from each qube, over and over until it answers.

    Args:
        qubes: running ones, by name. One that is paused sends nothing.
        limit: seconds after which no answer means "not reached".
    """
    with contextlib.ExitStack() as stack:
        waiting = {
            stack.enter_context(contextlib.closing(Echo(qube, host))): (name, version)
            for name, qube in qubes.items()
            for version, host in _HOSTS.items()
            if not qube.paused
        }
        reached = _answered(waiting, limit)
    return {name: Reach((name, 4) in reached, (name, 6) in reached) for name in qubes}


def _answered(waiting: dict[Echo, tuple[str, int]], limit: float) -> set[tuple[str, int]]:
    """Return the values whose echoes were answered in time."""
    reached = set()
    start = time.monotonic()
    end = start + limit
    while waiting and (now := time.monotonic()) < end:
        for echoes in list(waiting):
            if not echoes.send() and now - start > _REFUSED:
                del waiting[echoes]
        pause = min(now + _AGAIN, end)
        while waiting and (left := pause - time.monotonic()) > 0:
            for echoes in select.select(list(waiting), [], [], left)[0]:
                if echoes.answered():
                    reached.add(waiting.pop(echoes))
    return reached
