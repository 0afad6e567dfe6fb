# SPDX-License-Identifier: GPL-2.0-or-later
"""Expressions of nftables rules as netlink attributes; and the frame of a table that a process of ours owns."""

from __future__ import annotations

import struct

from ...core.nft.tables import Hook
from ..netlink import wire
from . import batch

# linux/netfilter/nf_tables.h, linux/netfilter.h
NFPROTO_INET = 1
NFTA_TABLE_NAME, NFTA_TABLE_FLAGS, _NFT_TABLE_F_OWNER = 1, 2, 0x2
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE = 1, 3, 4, 5, 7
_NFTA_HOOK_HOOKNUM, _NFTA_HOOK_PRIORITY = 1, 2
HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "postrouting": 4}
_NFTA_META_DREG, _NFTA_META_KEY = 1, 2
PRIORITY, IIFNAME, OIFNAME, NFPROTO, L4PROTO, PKTTYPE, IIFGROUP, OIFGROUP = 2, 6, 7, 15, 16, 19, 21, 22
NFTA_CT_DREG, NFTA_CT_KEY, NFTA_CT_DIRECTION, _NFT_CT_STATE = 1, 2, 3, 0
INVALID, ESTABLISHED, RELATED, NEW = 1, 2, 4, 8  # bits of the state
_NFTA_BITWISE_SREG, _NFTA_BITWISE_DREG, _NFTA_BITWISE_LEN, _NFTA_BITWISE_MASK, _NFTA_BITWISE_XOR = 1, 2, 3, 4, 5
_NFTA_CMP_SREG, _NFTA_CMP_OP, _NFTA_CMP_DATA = 1, 2, 3
EQUAL, UNEQUAL, AT_MOST, AT_LEAST = 0, 1, 3, 5
_NFTA_PAYLOAD_DREG, _NFTA_PAYLOAD_BASE, _NFTA_PAYLOAD_OFFSET, _NFTA_PAYLOAD_LEN = 1, 2, 3, 4
NETWORK, TRANSPORT = 1, 2  # headers
_NFTA_LOOKUP_SET, _NFTA_LOOKUP_SREG, _NFTA_LOOKUP_DREG, _NFTA_LOOKUP_SET_ID, _NFTA_LOOKUP_FLAGS = 1, 2, 3, 4, 5
_NFT_LOOKUP_F_INV = 1
DROP, ACCEPT, JUMP, GOTO = 0, 1, -3, -4
_NFTA_VERDICT_CODE, _NFTA_VERDICT_CHAIN = 1, 2
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58}
NO_BITS = bytes(4)


def owned_table(name: str) -> bytes:
    """Return the body of the message that makes a table of the family inet, owned by the socket that sends it."""
    flags = batch.number(NFTA_TABLE_FLAGS, _NFT_TABLE_F_OWNER)
    return batch.header(NFPROTO_INET) + batch.text(NFTA_TABLE_NAME, name) + flags


def chain(table: str, name: str, hook: Hook) -> bytes:
    """Return the body of the message that makes a chain with a hook in such a table; its policy is accept."""
    names = batch.text(NFTA_CHAIN_TABLE, table) + batch.text(NFTA_CHAIN_NAME, name)
    names += hooked(hook.hook, hook.priority) + batch.text(NFTA_CHAIN_TYPE, hook.kind)
    return batch.header(NFPROTO_INET) + names


def hooked(hook: str, priority: int) -> bytes:
    """Return the attribute of a chain that says where it is called."""
    place = batch.number(_NFTA_HOOK_HOOKNUM, HOOKS[hook]) + batch.number(_NFTA_HOOK_PRIORITY, priority)
    return batch.nested(NFTA_CHAIN_HOOK, place)


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
    asked = numbers((NFTA_CT_DREG, batch.NFT_REG_1), (NFTA_CT_KEY, _NFT_CT_STATE))
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


def payload(header: int, offset: int, length: int) -> bytes:
    """Return the expression that puts some bytes of a header into the first register."""
    place = ((_NFTA_PAYLOAD_BASE, header), (_NFTA_PAYLOAD_OFFSET, offset), (_NFTA_PAYLOAD_LEN, length))
    return batch.expression("payload", numbers((_NFTA_PAYLOAD_DREG, batch.NFT_REG_1), *place))


def lookup(name: str, identifier: int = 0, *, to_verdict: bool = False, inverted: bool = False) -> bytes:
    """Return the expression that looks for the first register in a set.

    Args:
        name: of the set.
        identifier: of a set that is made in the same transaction; 0 for one that is there.
        to_verdict: it is a map, and what is found is the verdict.
        inverted: it is not to be there.
    """
    asked = batch.text(_NFTA_LOOKUP_SET, name) + batch.number(_NFTA_LOOKUP_SREG, batch.NFT_REG_1)
    asked += batch.number(_NFTA_LOOKUP_DREG, 0) if to_verdict else b""
    asked += batch.number(_NFTA_LOOKUP_SET_ID, identifier) if identifier else b""
    asked += batch.number(_NFTA_LOOKUP_FLAGS, _NFT_LOOKUP_F_INV) if inverted else b""
    return batch.expression("lookup", asked)


def verdict(code: int, to: str = "") -> bytes:
    """Return the attributes of a verdict; `to` is a chain."""
    return batch.number(_NFTA_VERDICT_CODE, code) + (batch.text(_NFTA_VERDICT_CHAIN, to) if to else b"")


def ending(code: int, to: str = "") -> bytes:
    """Return the expression of a verdict; `to` is a chain."""
    value = batch.nested(batch.NFTA_IMMEDIATE_DATA, batch.nested(batch.NFTA_DATA_VERDICT, verdict(code, to)))
    return batch.expression("immediate", batch.number(batch.NFTA_IMMEDIATE_DREG, 0) + value)
