# SPDX-License-Identifier: GPL-2.0-or-later
"""The operations of a provider, for the qubes behind it."""

from __future__ import annotations

from ..namedtuple import NamedTuple, distinct
from ..nft.tables import GUARD
from ..values import IPV4, IPV6, IPAddress, Tunable

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ipaddress import IPv4Address
    from types import ModuleType

    from ..dns.endpoint import Endpoint

# Where the kernel has the switch of forwarding of each family.
# The same of one interface; the switch of the family sets all of them.
INTERFACE_FORWARDING = {IPV4: ("ipv4", "conf", "{}", "forwarding"), IPV6: ("ipv6", "conf", "{}", "forwarding")}
FORWARDING = {IPV4: ("ipv4", "ip_forward"), IPV6: ("ipv6", "conf", "all", "forwarding")}


@distinct
class CloseForwarding(NamedTuple):
    """Forward nothing of a family, 4 or 6."""

    family: int

    @property
    def tunable(self) -> Tunable:
        """As the kernel takes it."""
        return Tunable(FORWARDING[self.family], "0")

    def __str__(self) -> str:
        return str(self.tunable)


@distinct
class OpenForwarding(NamedTuple):
    """Forward packets of a family, 4 or 6."""

    family: int

    @property
    def tunable(self) -> Tunable:
        """As the kernel takes it."""
        return Tunable(FORWARDING[self.family], "1")

    def __str__(self) -> str:
        return str(self.tunable)


@distinct
class StandGuard(NamedTuple):
    """Have nothing pass from or to a qube while the base rules are away, as long as this process is there."""

    def __str__(self) -> str:
        return f"nft: table inet {GUARD} of this process"


@distinct
class LeaveGuard(NamedTuple):
    """End that."""

    def __str__(self) -> str:
        return f"nft: table inet {GUARD} deleted"


@distinct
class ChangeDownstream(NamedTuple):
    """Add addresses to the sets `downstream`, and take others out, in one transaction."""

    add: tuple[IPAddress, ...]
    remove: tuple[IPAddress, ...]

    @property
    def text(self) -> str:
        """As nft takes it."""
        from ..nft import rules_text

        return rules_text.downstream(self.add, self.remove)

    def __str__(self) -> str:
        return "; ".join(f"nft {line}" for line in self.text.splitlines())


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
        from ..dns import upstream_servers

        return upstream_servers.pairs(self.virtual, self.servers)

    def hinders(self, other: object) -> bool:
        """Whether another operation must not be done because this one failed."""
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
        """Whether another operation must not be done because this one failed."""
        return other == PurgeConntrack(self.virtual)

    def __str__(self) -> str:
        return f"nft -f: virtual DNS: keeping another program's rules in dnat-dns: {self.ends}"


@distinct
class PurgeConntrack(NamedTuple):
    """Forget the connections of these addresses, in either direction and translated or not (behaviours B50, B53).

    Args:
        addresses: of both families.
        name: of the vif that it is done for; "" for none.
    """

    addresses: tuple[IPAddress, ...]
    name: str = ""

    def __str__(self) -> str:
        return f"conntrack -D: entries of {', '.join(map(str, self.addresses))}"


@distinct
class SetFirewallServers(NamedTuple):
    """Have the set of the firewall's table hold these name servers and no others (behaviour B45)."""

    addresses: tuple[IPv4Address, ...]

    def __str__(self) -> str:
        return f"nft -f: dns-addr of qubes-firewall: {' '.join(map(str, self.addresses)) or 'none'}"


@distinct
class UnitJob(NamedTuple):
    """Queue a job of systemd for a unit, and do not wait for its end.

    Args:
        verb: `reload`, `try-restart` or another one of systemctl.
        unit: with its suffix.
    """

    verb: str
    unit: str

    def __str__(self) -> str:
        return f"systemctl --no-block {self.verb} {self.unit}"


@distinct
class LoadFlowtable(NamedTuple):
    """Offload connections of these devices; what was offloaded before goes the whole way again.

    Args:
        devices: index, name and MTU of each. The kernel keeps the MTU of the way in an offloaded connection, and does
            not look at it again in IPv6: with another one, what does not fit any more would be lost without a word.
        ipv6: whether the qubes have IPv6.
    """

    devices: tuple[tuple[int, str, int], ...]
    ipv6: bool

    def __str__(self) -> str:
        return f"nft -f: table inet {_flowtable().TABLE} with a flowtable of {len(self.names)} devices"

    @property
    def names(self) -> tuple[str, ...]:
        """The devices that may stand in a text for nft."""
        return tuple(name for _, name, _ in self.devices if _flowtable().usable(name))


@distinct
class EndFlowtable(NamedTuple):
    """End the offload, whether there is any or not."""

    def __str__(self) -> str:
        return f"nft -f: table inet {_flowtable().TABLE} deleted"


def _flowtable() -> ModuleType:
    from ..nft import flowtable  # a boot, which closes and opens, has none

    return flowtable


if TYPE_CHECKING:
    ProviderOperation = (
        CloseForwarding
        | OpenForwarding
        | StandGuard
        | LeaveGuard
        | ChangeDownstream
        | LoadRedirection
        | KeepForeignRedirection
        | PurgeConntrack
        | SetFirewallServers
        | UnitJob
        | LoadFlowtable
        | EndFlowtable
    )
