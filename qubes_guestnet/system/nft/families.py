# SPDX-License-Identifier: GPL-2.0-or-later
"""Test which table families the kernel supports; ARP is optional (CONFIG_NF_TABLES_ARP)."""

from __future__ import annotations

import errno

from ...core.nft.tables import ARP, FAMILIES, QUBES
from ...errors import KernelError
from ..netlink import wire
from . import batch
from . import kernel as nft_kernel

# linux/netfilter.h, linux/netfilter/nf_tables.h, linux/netfilter_arp.h
NFPROTO_ARP = 3
_NFTA_TABLE_NAME, _NFTA_CHAIN_TABLE, _NFTA_CHAIN_NAME, _NFTA_CHAIN_HOOK, _NFTA_CHAIN_TYPE = 1, 1, 3, 4, 7
_NFTA_HOOK_HOOKNUM, _NFTA_HOOK_PRIORITY, _INPUT = 1, 2, 0
_PROBE = "qubes-probe"
# "Not supported" since Linux 6.7. Before, the table could be created, but not its first chain with a hook.
_LACKING = frozenset({errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.ENOENT})


def there() -> tuple[str, ...]:
    """Return those of our families that the kernel has.

    Raises:
        KernelError: it has no nftables, or this process lacks the permission.
    """
    # Our own table shows it with one message; reverting a probe takes the kernel 10 ms.
    lacking = f"{ARP} {QUBES}" not in nft_kernel.table_names() and not has(NFPROTO_ARP)
    return tuple(family for family in FAMILIES if family != ARP) if lacking else FAMILIES


def has(family: int) -> bool:
    """Return whether a chain with a hook can be created in a family, without creating it.

    Args:
        family: its number, of those that have the hook `input` as number 0.

    Raises:
        KernelError: as for `there`.
    """
    create = wire.NLM_F_ACK | batch.NLM_F_CREATE
    place = batch.number(_NFTA_HOOK_HOOKNUM, _INPUT) + batch.number(_NFTA_HOOK_PRIORITY, 0)
    names = batch.text(_NFTA_CHAIN_TABLE, _PROBE) + batch.text(_NFTA_CHAIN_NAME, "input")
    chain = names + batch.nested(_NFTA_CHAIN_HOOK, place) + batch.text(_NFTA_CHAIN_TYPE, "filter")
    head = batch.header(family)
    messages = (
        (batch.NFT_MSG_NEWTABLE, create, head + batch.text(_NFTA_TABLE_NAME, _PROBE)),
        (batch.NFT_MSG_NEWCHAIN, create, head + chain),
    )
    try:
        asking = wire.opened(wire.NETLINK_NETFILTER)
        try:
            batch.attempt(asking, messages)
        finally:
            asking.close()
    except OSError as error:
        if error.errno in _LACKING:
            return False
        raise KernelError("nft list families", error.errno or errno.EIO) from None
    return True
