# SPDX-License-Identifier: GPL-2.0-or-later
"""Expressions of nftables rules as netlink attributes; and the frame of a table that a process of ours owns."""

from __future__ import annotations

import struct

from ...core.nft.tables import Hook
from ..netlink import wire
from . import batch

# linux/netfilter/nf_tables.h, linux/netfilter.h
NFPROTO_INET = 1
_NFTA_TABLE_NAME, _NFTA_TABLE_FLAGS, _NFT_TABLE_F_OWNER = 1, 2, 0x2
_NFTA_CHAIN_TABLE, _NFTA_CHAIN_NAME, _NFTA_CHAIN_HOOK, _NFTA_CHAIN_TYPE = 1, 3, 4, 7
_NFTA_HOOK_HOOKNUM, _NFTA_HOOK_PRIORITY = 1, 2
_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "postrouting": 4}
_NFTA_META_DREG, _NFTA_META_KEY = 1, 2
PRIORITY, IIFNAME, OIFNAME, NFPROTO, L4PROTO, PKTTYPE, IIFGROUP, OIFGROUP = 2, 6, 7, 15, 16, 19, 21, 22
_NFTA_CT_DREG, _NFTA_CT_KEY, _NFT_CT_STATE = 1, 2, 0
INVALID, ESTABLISHED, RELATED, NEW = 1, 2, 4, 8  # bits of the state
_NFTA_BITWISE_SREG, _NFTA_BITWISE_DREG, _NFTA_BITWISE_LEN, _NFTA_BITWISE_MASK, _NFTA_BITWISE_XOR = 1, 2, 3, 4, 5
_NFTA_CMP_SREG, _NFTA_CMP_OP, _NFTA_CMP_DATA = 1, 2, 3
EQUAL, UNEQUAL = 0, 1
NO_BITS = bytes(4)


def owned_table(name: str) -> bytes:
    """Return the body of the message that makes a table of the family inet, owned by the socket that sends it."""
    flags = batch.number(_NFTA_TABLE_FLAGS, _NFT_TABLE_F_OWNER)
    return batch.header(NFPROTO_INET) + batch.text(_NFTA_TABLE_NAME, name) + flags


def chain(table: str, name: str, hook: Hook) -> bytes:
    """Return the body of the message that makes a chain with a hook in such a table; its policy is accept."""
    place = batch.number(_NFTA_HOOK_HOOKNUM, _HOOKS[hook.hook]) + batch.number(_NFTA_HOOK_PRIORITY, hook.priority)
    names = batch.text(_NFTA_CHAIN_TABLE, table) + batch.text(_NFTA_CHAIN_NAME, name)
    names += batch.nested(_NFTA_CHAIN_HOOK, place) + batch.text(_NFTA_CHAIN_TYPE, hook.kind)
    return batch.header(NFPROTO_INET) + names


def numbers(*pairs: tuple[int, int]) -> bytes:
    """Return attributes that are numbers."""
    return b"".join(batch.number(kind, value) for kind, value in pairs)


def load(key: int) -> bytes:
    """Return the expression that puts what is known of the packet into the first register."""
    return batch.expression("meta", numbers((_NFTA_META_DREG, batch.NFT_REG_1), (_NFTA_META_KEY, key)))


def meta(key: int, relation: int, value: bytes) -> bytes:
    """Return the expressions that compare what is known of the packet."""
    return load(key) + compare(relation, value)


def state(bits: int) -> bytes:
    """Return the expressions for whether conntrack calls the packet one of these."""
    asked = numbers((_NFTA_CT_DREG, batch.NFT_REG_1), (_NFTA_CT_KEY, _NFT_CT_STATE))
    return batch.expression("ct", asked) + masked(bits) + compare(UNEQUAL, NO_BITS)


def masked(mask: int, added: int = 0) -> bytes:
    """Return the expression that leaves these bits of the first register, a number of 32, and sets others."""
    return bitwise(struct.pack("=I", mask), struct.pack("=I", added))


def bitwise(mask: bytes, added: bytes) -> bytes:
    """Return the expression that leaves these bits of as many bytes of the first register, and sets others."""
    words = ((_NFTA_BITWISE_SREG, batch.NFT_REG_1), (_NFTA_BITWISE_DREG, batch.NFT_REG_1))
    values = b"".join(
        batch.nested(kind, wire.attribute(batch.NFTA_DATA_VALUE, value))
        for kind, value in ((_NFTA_BITWISE_MASK, mask), (_NFTA_BITWISE_XOR, added))
    )
    return batch.expression("bitwise", numbers(*words, (_NFTA_BITWISE_LEN, len(mask))) + values)


def compare(relation: int, value: bytes) -> bytes:
    """Return the expression that compares the first register."""
    data = batch.nested(_NFTA_CMP_DATA, wire.attribute(batch.NFTA_DATA_VALUE, value))
    words = numbers((_NFTA_CMP_SREG, batch.NFT_REG_1), (_NFTA_CMP_OP, relation))
    return batch.expression("cmp", words + data)
