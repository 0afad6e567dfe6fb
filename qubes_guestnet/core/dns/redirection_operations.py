# SPDX-License-Identifier: GPL-2.0-or-later
"""The operations that redirect the virtual DNS addresses."""

from __future__ import annotations

from ..namedtuple import NamedTuple, distinct
from ..shared_operations import PurgeConntrack
from ..values import IPV4

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from ..endpoint import Endpoint
    from ..values import IPAddress


@distinct
class LoadRedirection(NamedTuple):
    """Redirect the virtual DNS addresses, and reject queries that are not redirected, in one transaction.

    Args:
        virtual: the addresses that client qubes query.
        servers: name servers, used in turn; if there are none, all queries are rejected.
        refused: the text for rejected queries, with the reason.
        trouble: why another program's rules are replaced, "" if there are none.
        allows: whether the same transaction makes the client qubes' rules for DNS accept exactly these servers.
    """

    virtual: tuple[IPv4Address, ...]
    servers: tuple[Endpoint, ...]
    refused: str = ""
    trouble: str = ""
    allows: bool = False

    @property
    def text(self) -> str:
        """Return the text for nft."""
        from ..nft import rules_text

        text = rules_text.dnat(self._pairs, self.virtual, self.servers)
        if not self.allows:
            return text
        from ..firewall import ruleset  # of a provider that enforces the lists

        return text + ruleset.dns_servers(IPV4, self.allowed)

    @property
    def allowed(self) -> tuple[IPAddress, ...]:
        """Return the servers for the client qubes' rules for DNS."""
        return tuple(sorted({server.address for server in self.servers if server.address.version == IPV4}, key=int))

    @property
    def instead(self) -> LoadRedirection | None:
        """Return the redirection alone, for a refused transaction; the next pass corrects the firewall's table."""
        return self._replace(allows=False) if self.allows else None

    @property
    def _pairs(self) -> tuple[tuple[IPv4Address, Endpoint], ...]:
        from . import upstream_servers

        return upstream_servers.pairs(self.virtual, self.servers)

    def hinders(self, other: object) -> bool:
        """Return whether another operation must be left out because this one failed."""
        return other == PurgeConntrack(self.virtual)

    def __str__(self) -> str:
        words = " ".join(f"{address}->{server}" for address, server in self._pairs)
        return f"nft -f: virtual DNS {words or self.refused}"


@distinct
class KeepForeignRedirection(NamedTuple):
    """Keep another program's rules in `dnat-dns`, and reject queries that they do not redirect (behaviour B123).

    Args:
        rules: all rules of the chain, if some of them are ours and change; None: the chain stays unchanged.
        virtual: the addresses that client qubes query.
        passing: targets of our rules in the chain that are virtual addresses themselves.
        ends: the targets of the rules, in words.
    """

    rules: tuple[str, ...] | None
    virtual: tuple[IPv4Address, ...]
    passing: tuple[Endpoint, ...]
    ends: str

    @property
    def text(self) -> str:
        """Return the text for nft."""
        from ..nft import rules_text

        first = rules_text.redirection(self.rules) if self.rules is not None else ""
        return first + rules_text.refusal(self.virtual, self.passing)

    def hinders(self, other: object) -> bool:
        """Return whether another operation must be left out because this one failed."""
        return other == PurgeConntrack(self.virtual)

    def __str__(self) -> str:
        return f"nft -f: virtual DNS: keeping another program's rules in dnat-dns: {self.ends}"


@distinct
class SetFirewallServers(NamedTuple):
    """Set the elements of the firewall's set to exactly these name servers (behaviour B45)."""

    addresses: tuple[IPv4Address, ...]

    def __str__(self) -> str:
        return f"nft -f: dns-addr of qubes-firewall: {' '.join(map(str, self.addresses)) or 'none'}"


if TYPE_CHECKING:
    RedirectionOperation = LoadRedirection | KeepForeignRedirection | SetFirewallServers
