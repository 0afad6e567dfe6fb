# SPDX-License-Identifier: GPL-2.0-or-later
"""`check`: gather the evidence, and let `core.findings` say what it means."""

from __future__ import annotations

from collections.abc import Callable

from .core.findings import Evidence, Finding
from .core.findings import findings as judge
from .errors import StoreError
from .others import Others
from .reconcile import Pass, Paths, reconcile
from .system import nameserver, netlink, presence, standing

_NEIGHBOUR_LIMIT = "/proc/sys/net/ipv4/neigh/default/gc_thresh3"


def findings(paths: Paths, entries: Callable[[], dict[str, bytes]]) -> tuple[Finding, ...]:
    """Look at everything, change nothing.

    Args:
        paths: where the qube's files are.
        entries: reads QubesDB; may raise StoreError.
    """
    agent = standing.read(paths.run)
    try:
        untrusted_entries = entries()
    except StoreError as error:
        return judge(Evidence(None, store_error=str(error), standing=agent))
    found = reconcile(untrusted_entries, netlink.Kernel(), paths, Pass(dry_run=True, others=Others(paths.flags)))
    asked = any(interface.link is not None and interface.expected for interface in found.interfaces)
    servers = [str(server) for server in found.settings.dns.servers] if asked else []
    silent = tuple(server for server in servers if not nameserver.answers(server))
    return judge(Evidence(found, "", agent, silent, _neighbour_limit(), presence.look()))


def _neighbour_limit() -> int:
    """gc_thresh3; 0 in a network namespace other than the first, which shows none."""
    try:
        with open(_NEIGHBOUR_LIMIT) as limit:
            return int(limit.read())
    except OSError:
        return 0
