# SPDX-License-Identifier: GPL-2.0-or-later
"""Plan the updates of the services that depend on the upstream DNS servers.

* The set `dns-addr` of the firewall's table (behaviour B45), which the firewall's service creates and initially fills.
* The updates proxy, which reads its name servers only when it starts (#3135). It is not started without a server.
* The firewall's daemon of core-agent, which looks names up again only when it is reloaded (behaviour B136).

The record is written after each update of the two services, so the next pass repeats a failed one (behaviour B147).
"""

from __future__ import annotations

from ipaddress import IPv4Address

from ..endpoint import Endpoint
from ..namedtuple import NamedTuple
from ..nft.tables import DNS_SET
from ..operations import Outcome, Planned
from ..owned_state import Record, checksum
from ..shared_operations import UnitJob
from .redirection_operations import SetFirewallServers

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..operations import Operation

PROXY = UnitJob("try-restart", "qubes-updates-proxy.service")
FIREWALL = UnitJob("reload", "qubes-firewall.service")


class Facts(NamedTuple):
    """The observed facts.

    Args:
        servers: servers in force, even if another program's rules chose them.
        chosen: servers that this qube would choose.
        held: elements of the firewall's set, in the form of `vif_order.listed`; None if it does not exist, or is known
            to be correct.
        proxy: an updates proxy runs here.
        firewall: the firewall's service is active; read only if it is `behind`, None if unknown.
    """

    servers: tuple[Endpoint, ...] = ()
    chosen: tuple[Endpoint, ...] = ()
    held: frozenset[str] | None = None
    proxy: bool = False
    firewall: bool | None = None


def behind(record: Record) -> bool:
    """Return whether the firewall's service was last reloaded for servers other than those in force."""
    return record.provided.reloaded != _sum(record)


def plan(facts: Facts, record: Record, so_far: Outcome) -> Planned:
    """Return the pending operations.

    Args:
        facts: observed facts.
        record: the owned record.
        so_far: result of the operations of this pass so far.
    """
    ops: list[Operation] = []
    provided = record.provided
    addresses = tuple(each.address for each in facts.servers if isinstance(each.address, IPv4Address))
    if facts.held is not None and facts.held != {f"ip {DNS_SET} {address}" for address in addresses}:
        ops.append(SetFirewallServers(addresses))
    chosen = tuple(map(str, facts.chosen))
    if chosen and chosen != provided.proxied:
        if facts.proxy and PROXY not in so_far.done:
            ops.append(PROXY)
        else:
            provided = provided._replace(proxied=chosen)
    if behind(record) and facts.firewall is not None:
        if facts.firewall and FIREWALL not in so_far.done:
            ops.append(FIREWALL)
        else:
            provided = provided._replace(reloaded=_sum(record))
    return Planned(tuple(ops), record._replace(provided=provided))


def _sum(record: Record) -> str:
    servers = record.provided.servers
    return checksum(" ".join(servers).encode()) if servers else ""
