# SPDX-License-Identifier: GPL-2.0-or-later
"""The operations of a provider for its client qubes."""

from __future__ import annotations

from ..namedtuple import NamedTuple, distinct
from ..nft.tables import GUARD
from ..values import IPV4, IPV6, IPAddress, Tunable

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from types import ModuleType

# The forwarding sysctl of each family.
FORWARDING = {IPV4: ("ipv4", "ip_forward"), IPV6: ("ipv6", "conf", "all", "forwarding")}
# The sysctl of one interface; that of the family sets all of them.
INTERFACE_FORWARDING = {IPV4: ("ipv4", "conf", "{}", "forwarding"), IPV6: ("ipv6", "conf", "{}", "forwarding")}


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
    """Drop every packet from or to a client qube while the base rules are missing, as long as this process runs."""

    def __str__(self) -> str:
        return f"nft: table inet {GUARD} of this process"


@distinct
class LeaveGuard(NamedTuple):
    """Remove the guard."""

    def __str__(self) -> str:
        return f"nft: table inet {GUARD} deleted"


@distinct
class ChangeDownstream(NamedTuple):
    """Add addresses to the sets `downstream`, and remove others, in one transaction."""

    add: tuple[IPAddress, ...]
    remove: tuple[IPAddress, ...]

    @property
    def text(self) -> str:
        """Return the text for nft."""
        from ..nft import rules_text

        return rules_text.downstream(self.add, self.remove)

    def __str__(self) -> str:
        return "; ".join(f"nft {line}" for line in self.text.splitlines())


@distinct
class LoadFlowtable(NamedTuple):
    """Offload connections of these devices; formerly offloaded connections first pass all rules again.

    Args:
        devices: index, name and MTU of each. The kernel stores the path MTU in an offloaded connection and, in IPv6,
            never updates it: after a change of the MTU, larger packets would be lost silently.
        ipv6: whether client qubes have IPv6.
    """

    devices: tuple[tuple[int, str, int], ...]
    ipv6: bool

    def __str__(self) -> str:
        return f"nft -f: table inet {_flowtable().TABLE} with a flowtable of {len(self.names)} devices"

    @property
    def names(self) -> tuple[str, ...]:
        """Return the devices whose names are valid in a text for nft."""
        return tuple(name for _, name, _ in self.devices if _flowtable().usable(name))


@distinct
class EndFlowtable(NamedTuple):
    """End the offload, if there is any."""

    def __str__(self) -> str:
        return f"nft -f: table inet {_flowtable().TABLE} deleted"


def _flowtable() -> ModuleType:
    from ..nft import flowtable  # a boot, which closes and opens, has none

    return flowtable


if TYPE_CHECKING:
    ProviderOperation = (
        CloseForwarding | OpenForwarding | StandGuard | LeaveGuard | ChangeDownstream | LoadFlowtable | EndFlowtable
    )
