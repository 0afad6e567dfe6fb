# SPDX-License-Identifier: GPL-2.0-or-later
"""The set `downstream`: addresses of the qubes behind this one, running or not, that nothing outside may use (QSB-056).

Apart from the vifs, because it is in force before there is one, and loads nothing that only they need.
"""

from __future__ import annotations

from collections.abc import Iterable

from .core import attachment, downstream, provider
from .core.downstream import Facts
from .core.values import IPV4
from .core.vif import Vif
from .dispatch import of_rules
from .system import nft
from .transactions import Transactions
from .work import Work

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/lean)
if TYPE_CHECKING:
    from .core.operations import Outcome, Planned
    from .core.record import Record


def bring(
    work: Work, transactions: Transactions, records: Iterable[Vif], held: frozenset[str], *, complete: bool = True
) -> None:
    """Have it hold what it should; errors are added to those of the pass.

    Args:
        work: the pass.
        transactions: of this process.
        records: of all vifs.
        held: what the sets hold, by `present`.
        complete: no record is missing; else nothing is taken out.
    """
    behind = frozenset(address for vif in records for address in provider.elements(vif, work.settings).downstream)
    complete = complete and "connected" not in work.settings.held

    def plan(record: Record, so_far: Outcome) -> Planned:
        now = present(work, transactions) if so_far.done else held
        there = attachment.downstream(now)
        return downstream.plan(Facts(work.settings.connected, behind, there, complete), record)

    work.settle(plan, of_rules(transactions))


def present(work: Work, transactions: Transactions) -> frozenset[str]:
    """What the sets hold, by `attachment.listed`, with what is planned to come with the rules. Raises GuestnetError."""
    coming = work.settings.connected if work.planned else ()
    words = (f"{'ip' if address.version == IPV4 else 'ip6'} downstream {address}" for address in coming)
    return attachment.listed(nft.sets(transactions.families)).union(words)


def followed(work: Work) -> bool:
    """See `core.downstream.follows`."""
    return downstream.follows(work.ledger.record, work.settings.connected)
