# SPDX-License-Identifier: GPL-2.0-or-later
"""The conditions for a user's hooks after a change of the uplink (behaviour B14), and for vifs.

Uplink hooks run only in a provider, once for each change of addresses, gateways, name servers or interface. Changes by
a hook itself, by a VPN or by a restart of the agent do not count: the owned record has the hooks' last input.
"""

from __future__ import annotations

from collections.abc import Iterable

from .namedtuple import NamedTuple
from .values import IPAddress, State

# The second name dates from before Qubes 4.0 and is still in use.
HOOKS = ("/rw/config/qubes-ip-change-hook", "/rw/config/qubes_ip_change_hook")
LIMIT_SECONDS = 60.0
# Called for each vif of a provider as COMMAND VIF TYPE ADDRESS (behaviour B59). Xen waits for them.
NETWORK_HOOKS = "/rw/config/network-hooks.d"
NETWORK_LIMIT_SECONDS = 10.0


class HookFacts(NamedTuple):
    """A hook on disk.

    Args:
        path: its path.
        executable: it is a regular file with an executable bit.
        target: its path with links resolved, so that two names of one file are one hook.
    """

    path: str
    executable: bool
    target: str


def fingerprint(desired: State, servers: Iterable[IPAddress]) -> str:
    """Return the input of the hooks as one word without spaces, for the owned record."""
    gateways = {str(neighbour.address) for neighbour in desired.neighbours}
    gateways |= {str(route.gateway) for route in desired.routes if route.gateway is not None}
    parts = (sorted(map(str, desired.addresses)), sorted(gateways), map(str, servers))
    return "|".join(",".join(part) for part in parts)


def due(told: str, now: str, *, provider: bool, configured: bool) -> bool:
    """Return whether the hooks are to run.

    Args:
        told: fingerprint of their last run for this interface, "" for none.
        now: present fingerprint.
        provider: this qube provides network to others.
        configured: the interface is completely configured; before that a hook would see an incomplete state.
    """
    return provider and configured and now != told


def runnable(hooks: Iterable[HookFacts]) -> tuple[str, ...]:
    """Return the hooks to run, in order, each file once. A file without its executable bit is disabled."""
    chosen: dict[str, str] = {}
    for hook in hooks:
        if hook.executable:
            chosen.setdefault(hook.target, hook.path)
    return tuple(chosen.values())
