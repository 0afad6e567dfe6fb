# SPDX-License-Identifier: GPL-2.0-or-later
"""The set `downstream`: addresses of the qubes behind this one, running or not, that nothing outside may use (QSB-056).

Apart from the vifs, because it is in force before there is one, and loads nothing that only they need.
"""

from __future__ import annotations

from collections.abc import Iterable

from .core import attachment, nftables, provider
from .core.record import checksum
from .core.values import IPV4, IPAddress
from .core.vif import Vif
from .system import nft
from .transactions import Transactions
from .work import Work


def bring(
    work: Work, transactions: Transactions, records: Iterable[Vif], held: frozenset[str], *, complete: bool = True
) -> None:
    """Have it hold what it should.

    Args:
        work: the pass.
        transactions: of this process.
        records: of all vifs.
        held: what the sets hold, by `present`.
        complete: no record is missing; else nothing is taken out.

    Raises:
        NftError: it could not be done.
    """
    behind = {address for vif in records for address in provider.elements(vif, work.settings).downstream}
    connected = work.settings.connected
    there = attachment.downstream(held)
    known = complete and "connected" not in work.settings.held
    stale = there - connected - behind if known else frozenset[IPAddress]()
    text = nftables.downstream(ordered((connected | behind) - there), ordered(stale))
    lines = [f"nft {line}" for line in text.splitlines()]
    if work.dry_run:
        work.todo += lines
        return
    if text:
        transactions.run(text)
        work.done += lines
    work.save(work.provided._replace(connected=_sum(work)))


def present(work: Work, transactions: Transactions) -> frozenset[str]:
    """What the sets hold, by `attachment.listed`, with what is planned to come with the rules. Raises GuestnetError."""
    coming = work.settings.connected if work.planned else ()
    words = (f"{'ip' if address.version == IPV4 else 'ip6'} downstream {address}" for address in coming)
    return attachment.listed(nft.sets(transactions.families)).union(words)


def followed(work: Work) -> bool:
    """Whether dom0's list is still the one that was last brought: one attach does not look at all of them."""
    return work.provided.connected == _sum(work)


def ordered(addresses: Iterable[IPAddress]) -> list[IPAddress]:
    """One order each time, so that what is planned and what is done read alike."""
    return sorted(addresses, key=lambda address: (address.version, int(address)))


def _sum(work: Work) -> str:
    return checksum(" ".join(map(str, ordered(work.settings.connected))).encode())
