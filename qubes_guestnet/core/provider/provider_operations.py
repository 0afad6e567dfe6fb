# SPDX-License-Identifier: GPL-2.0-or-later
"""The operations of a provider, for the qubes behind it."""

from __future__ import annotations

from ..namedtuple import NamedTuple, distinct
from ..nft.tables import GUARD
from ..values import IPV4, IPV6, IPAddress, Tunable

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from types import ModuleType

# Where the kernel has the switch of forwarding of each family.
FORWARDING = {IPV4: ("ipv4", "ip_forward"), IPV6: ("ipv6", "conf", "all", "forwarding")}
# The same of one interface; the switch of the family sets all of them.
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
        """Return the text for nft."""
        from ..nft import rules_text

        return rules_text.downstream(self.add, self.remove)

    def __str__(self) -> str:
        return "; ".join(f"nft {line}" for line in self.text.splitlines())


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
        CloseForwarding | OpenForwarding | StandGuard | LeaveGuard | ChangeDownstream | LoadFlowtable | EndFlowtable
    )
