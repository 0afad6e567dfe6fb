# SPDX-License-Identifier: GPL-2.0-or-later
"""The operations on the firewall of client qubes. The texts of one pass form one transaction.

If nft refuses it, `halves` finds the qube that is the cause (behaviour B66): the rules of this qube are replaced by
their `instead`, and those of the others take effect.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..namedtuple import NamedTuple, distinct
from ..plural import amount
from ..values import IPAddress
from . import ruleset
from .binding import Bound
from .lines import FAMILIES
from .rules import Problem, Ruleset

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from typing import TypeAlias


@distinct
class LoadFirewallTable(NamedTuple):
    """Create the table of a family with its chains, and add our rules to the chains that have none of them.

    Args:
        version: the family.
        fill: the chains that get rules.
    """

    version: int
    fill: tuple[str, ...]

    @property
    def text(self) -> str:
        """Return the text for nft."""
        return ruleset.tables(self.version, self.fill)

    def __str__(self) -> str:
        rules = f", our rules in {', '.join(self.fill)}" if self.fill else ""
        return f"nft -f: table {FAMILIES[self.version].table}{rules}"


@distinct
class SetDnsServers(NamedTuple):
    """Set the elements of `dns-addr` to exactly these servers."""

    version: int
    servers: tuple[IPAddress, ...]

    @property
    def text(self) -> str:
        """Return the text for nft."""
        return ruleset.dns_servers(self.version, self.servers)

    def __str__(self) -> str:
        servers = ", ".join(map(str, self.servers)) or "none"
        return f"nft -f: name servers of {FAMILIES[self.version].table}: {servers}"


@distinct
class ChangeName(NamedTuple):
    """Change the addresses of a name that rules use.

    Args:
        version: the family.
        host: the name.
        add, remove: addresses.
        make: its set does not exist yet.
    """

    version: int
    host: str
    add: tuple[IPAddress, ...]
    remove: tuple[IPAddress, ...] = ()
    make: bool = False

    @property
    def text(self) -> str:
        """Return the text for nft."""
        return ruleset.name(self.version, self.host, self.add, self.remove, make=self.make)

    def __str__(self) -> str:
        changes = [*(f"+{address}" for address in self.add), *(f"-{address}" for address in self.remove)]
        return f"nft -f: IPv{self.version} addresses of {self.host}: {' '.join(changes) or 'none'}"


@distinct
class SetQubeRules(NamedTuple):
    """Replace the rules of a qube, chain and element together.

    Args:
        bound: its list.
        displaces: another program has redirected its element to another chain.
    """

    bound: Bound
    displaces: bool = False

    @property
    def text(self) -> str:
        """Return the text for nft."""
        return ruleset.qube(self.bound, displaces=self.displaces)

    @property
    def instead(self) -> SetQubeRules | None:
        """Return the operation if nft refuses only the rules of this qube: refuse everything; None for that itself."""
        address = self.bound.ruleset.address
        remedy = "all traffic of this address is refused; report it as a bug of qubes-guestnet"
        problem = Problem(f"/qubes-firewall/{address}", "", "nft refused the rules", remedy)
        refusal = Bound(Ruleset(address, problems=(problem,)), refused=True)
        return None if self.bound.refused else SetQubeRules(refusal, self.displaces)

    def __str__(self) -> str:
        address, lines = self.bound.ruleset.address, len(self.bound.lines)
        what = "everything is refused" if self.bound.refused else amount(lines, "rule")
        return f"nft -f: firewall of {address}: {what}"


@distinct
class RemoveQubeRules(NamedTuple):
    """Remove the element of a qube, so that all its packets are dropped."""

    address: IPAddress

    @property
    def text(self) -> str:
        """Return the text for nft."""
        return ruleset.without_element(self.address)

    def __str__(self) -> str:
        return f"nft -f: firewall of {self.address}: removed, everything is dropped"


@distinct
class RemoveQubeChain(NamedTuple):
    """Remove a chain without an element.

    Args:
        version: the family.
        chain: its name.
        keep: only empty it, because another program's rule jumps to it.
    """

    version: int
    chain: str
    keep: bool = False

    @property
    def text(self) -> str:
        """Return the text for nft."""
        return ruleset.without_chain(self.version, self.chain, keep=self.keep)

    def __str__(self) -> str:
        done = "emptied, a rule of another program jumps to it" if self.keep else "removed"
        return f"nft -f: chain {FAMILIES[self.version].table} {self.chain}: {done}"


@distinct
class RemoveName(NamedTuple):
    """Remove the set of a name that no rule uses any more."""

    version: int
    host: str

    @property
    def text(self) -> str:
        """Return the text for nft."""
        return ruleset.without_name(self.version, self.host)

    def __str__(self) -> str:
        return f"nft -f: IPv{self.version} addresses of {self.host}: no rule uses the name, removed"


if TYPE_CHECKING:
    Operation: TypeAlias = (
        LoadFirewallTable
        | SetDnsServers
        | ChangeName
        | SetQubeRules
        | RemoveQubeRules
        | RemoveQubeChain
        | RemoveName
    )  # fmt: skip

# In the order of a plan: a set is created before the rules that use it, and removed after the last of them.
ORDER = (LoadFirewallTable, SetDnsServers, ChangeName, SetQubeRules, RemoveQubeRules, RemoveQubeChain, RemoveName)
_SHARED = (LoadFirewallTable, SetDnsServers, ChangeName)


def transaction(operations: Iterable[Operation]) -> str:
    """Return the text of all operations, as one transaction."""
    return "".join(operation.text for operation in operations)


def halves(operations: tuple[Operation, ...]) -> tuple[tuple[Operation, ...], tuple[Operation, ...]] | None:
    """Split a transaction that nft refused into two; return None if it has only one qube.

    Shared operations are in both, and may be loaded twice. Operations that only remove names are in neither, because a
    chain that could not be replaced may use the names; the next plan contains them again.

    Args:
        operations: operations of one transaction, in order.
    """
    shared = tuple(each for each in operations if isinstance(each, _SHARED))
    single = tuple(each for each in operations if not isinstance(each, (*_SHARED, RemoveName)))
    if len(single) < 2:
        return None
    middle = len(single) // 2
    return shared + single[:middle], shared + single[middle:]
