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
    """Redirect the virtual DNS addresses, and refuse what is not redirected, in one transaction.

    Args:
        virtual: the addresses that the qubes ask.
        servers: name servers that they are redirected to in turn; none: all that goes to them is refused.
        refused: how that reads, and why.
        trouble: what is wrong with rules of another program whose place it takes, "" where there are none.
        allows: the rules for DNS of single qubes accept these servers and no others, from the same moment on.
    """

    virtual: tuple[IPv4Address, ...]
    servers: tuple[Endpoint, ...]
    refused: str = ""
    trouble: str = ""
    allows: bool = False

    @property
    def text(self) -> str:
        """As nft takes it."""
        from ..nft import rules_text

        text = rules_text.dnat(self._pairs, self.virtual, self.servers)
        if not self.allows:
            return text
        from ..firewall import ruleset  # of a provider that enforces the lists

        return text + ruleset.dns_servers(IPV4, self.allowed)

    @property
    def allowed(self) -> tuple[IPAddress, ...]:
        """The servers for the rules for DNS of single qubes."""
        return tuple(sorted({server.address for server in self.servers if server.address.version == IPV4}, key=int))

    @property
    def instead(self) -> LoadRedirection | None:
        """Where both together are refused: names work, and the pass that follows mends the other table."""
        return self._replace(allows=False) if self.allows else None

    @property
    def _pairs(self) -> tuple[tuple[IPv4Address, Endpoint], ...]:
        from . import upstream_servers

        return upstream_servers.pairs(self.virtual, self.servers)

    def hinders(self, other: object) -> bool:
        """Return whether another operation must not be done because this one failed."""
        return other == PurgeConntrack(self.virtual)

    def __str__(self) -> str:
        words = " ".join(f"{address}->{server}" for address, server in self._pairs)
        return f"nft -f: virtual DNS {words or self.refused}"


@distinct
class KeepForeignRedirection(NamedTuple):
    """Leave the rules of another program in `dnat-dns`, and refuse what they do not redirect (behaviour B123).

    Args:
        rules: all of the chain, where some among them are ours and change; None: the chain stays as it is.
        virtual: the addresses that the qubes ask.
        passing: those of our servers that have a virtual address, and are led to by rules of ours in the chain.
        ends: where the rules lead, in words.
    """

    rules: tuple[str, ...] | None
    virtual: tuple[IPv4Address, ...]
    passing: tuple[Endpoint, ...]
    ends: str

    @property
    def text(self) -> str:
        """As nft takes it."""
        from ..nft import rules_text

        first = rules_text.redirection(self.rules) if self.rules is not None else ""
        return first + rules_text.refusal(self.virtual, self.passing)

    def hinders(self, other: object) -> bool:
        """Return whether another operation must not be done because this one failed."""
        return other == PurgeConntrack(self.virtual)

    def __str__(self) -> str:
        return f"nft -f: virtual DNS: keeping another program's rules in dnat-dns: {self.ends}"


@distinct
class SetFirewallServers(NamedTuple):
    """Have the set of the firewall's table hold these name servers and no others (behaviour B45)."""

    addresses: tuple[IPv4Address, ...]

    def __str__(self) -> str:
        return f"nft -f: dns-addr of qubes-firewall: {' '.join(map(str, self.addresses)) or 'none'}"


if TYPE_CHECKING:
    RedirectionOperation = LoadRedirection | KeepForeignRedirection | SetFirewallServers
