# SPDX-License-Identifier: GPL-2.0-or-later
"""A table that `nft flush ruleset` leaves alone, and in which packets of the qubes wait for the word of the base rules.

Theory of operation. A table that belongs to a netlink socket (flag `owner`, kernel 5.12) is changed and deleted through
that socket alone, and goes with it. Its chain `prerouting`, ahead of all others, makes each unicast packet that comes
from a vif, or is on its way to one, a packet for another host (`meta pkttype other`). Such a packet is not forwarded
(ip_forward() and ip6_forward() drop it first of all), and the chain `input` takes none in. The base rules make it an
ordinary packet again, once they let it pass. So a qube sends nothing, and is sent nothing, while they are not there
(B125): the agent hears of a flush some milliseconds later, and many packets can be out by then.
"""

from __future__ import annotations

import errno
import socket
import struct

from ..core.nftables import GUARD as TABLE
from ..errors import KernelError
from . import netlink_wire as wire
from . import nfnetlink_batch as batch

# linux/netfilter/nf_tables.h, linux/netfilter.h, linux/if_packet.h
_NFPROTO_INET = 1
_NFTA_TABLE_NAME, _NFTA_TABLE_FLAGS, _NFT_TABLE_F_OWNER = 1, 2, 0x2
_NFTA_CHAIN_TABLE, _NFTA_CHAIN_NAME, _NFTA_CHAIN_HOOK, _NFTA_CHAIN_TYPE = 1, 3, 4, 7
_NFTA_HOOK_HOOKNUM, _NFTA_HOOK_PRIORITY = 1, 2
_PREROUTING, _INPUT = 0, 1
_NFTA_META_DREG, _NFTA_META_KEY, _NFTA_META_SREG, _PKTTYPE, _IIFGROUP = 1, 2, 3, 19, 21
_NFTA_FIB_DREG, _NFTA_FIB_RESULT, _NFTA_FIB_FLAGS, _OIFNAME, _BY_DESTINATION = 1, 2, 3, 2, 0x2
_NFTA_CMP_SREG, _NFTA_CMP_OP, _NFTA_CMP_DATA = 1, 2, 3
_EQUAL, _UNEQUAL = 0, 1
_HOST, _OTHER = b"\0", b"\3"
_NFTA_VERDICT_CODE, _NFTA_DATA_VERDICT, _NF_DROP = 1, 2, 0
_VIF, _VIF_NAME = struct.pack("=I", 2), b"vif"

# Hook and priority of each chain: ahead of the base rules, and of whoever tracks connections.
_CHAINS = {"prerouting": (_PREROUTING, -400), "input": (_INPUT, -400)}


class Guard:
    """The table, there while this object has it `stand`."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def stand(self) -> bool:
        """Have the table there; only once the base rules are in, or nothing of the qubes passes.

        Returns:
            Whether it was made just now.

        Raises:
            KernelError: it cannot be made; EOPNOTSUPP where the kernel is older than 5.12.
        """
        if self._socket is not None:
            return False
        owner = wire.opened(wire.NETLINK_NETFILTER)
        try:
            batch.commit(owner, _messages())
        except OSError as error:
            owner.close()
            raise KernelError(f"nft add table inet {TABLE}", error.errno or errno.EIO) from None
        self._socket = owner
        return True

    def leave(self) -> bool:
        """Have it gone; whether it was there."""
        if self._socket is None:
            return False
        self._socket.close()
        self._socket = None
        return True


def _messages() -> list[batch.Message]:
    create = wire.NLM_F_ACK | batch.NLM_F_CREATE
    head = batch.header(_NFPROTO_INET)
    flags = batch.number(_NFTA_TABLE_FLAGS, _NFT_TABLE_F_OWNER)
    messages = [(batch.NFT_MSG_NEWTABLE, create, head + batch.text(_NFTA_TABLE_NAME, TABLE) + flags)]
    for name, (hook, priority) in _CHAINS.items():
        place = batch.number(_NFTA_HOOK_HOOKNUM, hook) + batch.number(_NFTA_HOOK_PRIORITY, priority)
        names = batch.text(_NFTA_CHAIN_TABLE, TABLE) + batch.text(_NFTA_CHAIN_NAME, name)
        kind = batch.text(_NFTA_CHAIN_TYPE, "filter")
        messages.append((batch.NFT_MSG_NEWCHAIN, create, head + names + batch.nested(_NFTA_CHAIN_HOOK, place) + kind))
    unicast = _meta(_PKTTYPE, _EQUAL, _HOST)
    rules = (
        # Broadcasts and multicasts are never forwarded as they are; what comes in of them the base rules judge.
        ("prerouting", _meta(_IIFGROUP, _EQUAL, _VIF) + unicast + _of_another_host()),
        ("prerouting", _meta(_IIFGROUP, _UNEQUAL, _VIF) + unicast + _routed_to_a_vif() + _of_another_host()),
        ("input", _meta(_PKTTYPE, _EQUAL, _OTHER) + _drop()),
    )
    append = create | batch.NLM_F_APPEND
    return messages + [
        (batch.NFT_MSG_NEWRULE, append, batch.rule(_NFPROTO_INET, TABLE, chain, expressions))
        for chain, expressions in rules
    ]


def _meta(key: int, relation: int, value: bytes) -> bytes:
    """Compare what is known of the packet."""
    asked = _numbers((_NFTA_META_DREG, batch.NFT_REG_1), (_NFTA_META_KEY, key))
    return batch.expression("meta", asked) + _compare(relation, value)


def _routed_to_a_vif() -> bytes:
    """Compare the name of the interface that leads to the destination; an address of this qube's own has none."""
    asked = ((_NFTA_FIB_DREG, batch.NFT_REG_1), (_NFTA_FIB_RESULT, _OIFNAME), (_NFTA_FIB_FLAGS, _BY_DESTINATION))
    return batch.expression("fib", _numbers(*asked)) + _compare(_EQUAL, _VIF_NAME)


def _compare(relation: int, value: bytes) -> bytes:
    data = batch.nested(_NFTA_CMP_DATA, wire.attribute(batch.NFTA_DATA_VALUE, value))
    words = _numbers((_NFTA_CMP_SREG, batch.NFT_REG_1), (_NFTA_CMP_OP, relation))
    return batch.expression("cmp", words + data)


def _of_another_host() -> bytes:
    store = _numbers((_NFTA_META_KEY, _PKTTYPE), (_NFTA_META_SREG, batch.NFT_REG_1))
    return batch.load(_OTHER) + batch.expression("meta", store)


def _numbers(*pairs: tuple[int, int]) -> bytes:
    return b"".join(batch.number(kind, value) for kind, value in pairs)


def _drop() -> bytes:
    verdict = batch.nested(_NFTA_DATA_VERDICT, batch.number(_NFTA_VERDICT_CODE, _NF_DROP))
    counter = batch.expression("counter", b"")
    immediate = batch.number(batch.NFTA_IMMEDIATE_DREG, 0) + batch.nested(batch.NFTA_IMMEDIATE_DATA, verdict)
    return counter + batch.expression("immediate", immediate)
