# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules that nft's language cannot express: rewrite an address with its inner checksum.

nft cannot address the packet quoted in an ICMP error, nor its checksum. The kernel's payload expression handles any
offset; the checksum of the quoted header then balances the change, so that the ICMP checksum stays valid.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from ...core.provider.fake_address import INNER_CHECKSUM, InnerRule
from ...errors import KernelError
from .. import plain_socket as socket
from ..netlink import wire
from . import batch

# linux/netfilter/nf_tables.h
NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_OFFSET, NFTA_PAYLOAD_LEN, NFTA_PAYLOAD_SREG = 2, 3, 4, 5
NFTA_PAYLOAD_CSUM_TYPE, NFTA_PAYLOAD_CSUM_OFFSET = 6, 7
NFT_PAYLOAD_TRANSPORT_HEADER, NFT_PAYLOAD_CSUM_INET = 2, 1


def append(table: str, rules: Iterable[InnerRule]) -> None:
    """Append rules to chains of an `ip` table in this network namespace, all or none.

    Raises:
        KernelError: they are not in force.
    """
    create = wire.NLM_F_ACK | batch.NLM_F_CREATE | batch.NLM_F_APPEND
    messages = [(batch.NFT_MSG_NEWRULE, create, _rule(table, rule)) for rule in rules]
    try:
        with wire.opened(wire.NETLINK_NETFILTER) as asking:
            batch.commit(asking, messages)
    except OSError as error:
        raise KernelError(f"nft add rule ip {table} inner-…", error.errno or errno.EIO) from None


def _rule(table: str, rule: InnerRule) -> bytes:
    load = batch.load(rule.address.packed)
    store = b"".join(
        batch.number(kind, number)
        for kind, number in (
            (NFTA_PAYLOAD_SREG, batch.NFT_REG_1),
            (NFTA_PAYLOAD_BASE, NFT_PAYLOAD_TRANSPORT_HEADER),
            (NFTA_PAYLOAD_OFFSET, rule.offset),
            (NFTA_PAYLOAD_LEN, len(rule.address.packed)),
            (NFTA_PAYLOAD_CSUM_TYPE, NFT_PAYLOAD_CSUM_INET),
            (NFTA_PAYLOAD_CSUM_OFFSET, INNER_CHECKSUM),
        )
    )
    expressions = load + batch.expression("payload", store)
    return batch.rule(socket.AF_INET, table, rule.chain, expressions)
