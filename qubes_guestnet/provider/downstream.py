# SPDX-License-Identifier: GPL-2.0-or-later
"""The set `downstream`: addresses of client qubes, running or not, which no outside machine may use (QSB-056).

It is separate from the vifs, because it is in force before the first vif, and imports none of their modules.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..core.nft import tables
from ..core.nft.listing_blocks import there
from ..core.provider import downstream, vif_order
from ..core.provider import settings as provider
from ..core.provider.downstream import Facts
from ..core.provider.provider_operations import ChangeDownstream
from ..core.provider.rules_operations import LoadRules
from ..core.provider.vif import Vif
from ..dispatch import of_rules
from ..errors import GuestnetError
from ..system import devices, vif_records
from .pass_state import PassState
from .ruleset_generation import Transactions

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..core.operations import Outcome, Planned
    from ..core.owned_state import Record
    from ..core.provider.settings import ProviderSettings


def apply(
    work: PassState, transactions: Transactions, records: Iterable[Vif], held: frozenset[str], *, complete: bool = True
) -> None:
    """Update the set; errors are added to those of the pass.

    Args:
        work: the pass.
        transactions: transactions of this process.
        records: records of all vifs.
        held: present elements, from `present`.
        complete: no record is missing; otherwise no element is removed.
    """
    behind = frozenset(address for vif in records for address in provider.elements(vif, work.settings).downstream)
    complete = complete and "connected" not in work.settings.held

    def plan(record: Record, so_far: Outcome) -> Planned:
        now = present(work, transactions) if so_far.done else held
        there = vif_order.downstream(now)
        return downstream.plan(Facts(work.settings.connected, behind, there, complete), record)

    work.settle(plan, of_rules(transactions))


def present(work: PassState, transactions: Transactions) -> frozenset[str]:
    """Return present and planned elements, in the form of `vif_order.listed`. Raises GuestnetError."""
    planned = (op.text for op in work.todo if isinstance(op, LoadRules | ChangeDownstream))  # and not carried out
    coming = vif_order.adding("".join(planned))
    families = transactions.families
    now = transactions.tables(families)
    sets = ((family, name) for family in families for name in tables.SETS[family])
    return vif_order.listed(there(now, "set", sets)).union(coming)


def letting_send(run: str, settings: ProviderSettings, *, arp: bool) -> str:
    """Return the elements that must be loaded in the same transaction as base rules while vifs exist.

    A set may be new: after a flush, or after an upgrade from a release without a table for ARP. Without the elements
    the packets of attached qubes would be dropped until the first sweep (behaviour B114).

    Args:
        run: /run/qubes-guestnet.
        settings: settings of the provider.
        arp: the kernel has nftables for ARP.
    """
    unread: list[GuestnetError] = []  # a sweep reports them
    records = vif_records.Folder(run).all(unread)
    indexes = {name: index for index, name in devices.names().items()}
    return vif_order.letting_send(vif_order.there(records, indexes), settings, arp=arp)


def followed(work: PassState) -> bool:
    """See `core.provider.downstream.follows`."""
    return downstream.follows(work.run.record, work.settings.connected)
