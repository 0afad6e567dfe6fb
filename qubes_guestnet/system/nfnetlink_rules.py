# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules that the kernel's nftables can carry out and nft's language cannot say: write, and mend an inner checksum.

Of an address in the packet that an ICMP error quotes, nft knows neither header nor checksum. The payload expression of
the kernel does both for any place, and then the sum over the quoted header, and so the ICMP checksum, is the same.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable

from ..core.fakeip import INNER_CHECKSUM, InnerRule
from ..errors import KernelError
from . import netlink_wire as wire
from .nft import NFNL_SUBSYS_NFTABLES

# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
NLM_F_CREATE, NLM_F_APPEND, NLA_F_NESTED = 0x400, 0x800, 0x8000
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFT_MSG_NEWRULE = 0x10, 0x11, 6
NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS = 1, 2, 4
NFTA_LIST_ELEM, NFTA_EXPR_NAME, NFTA_EXPR_DATA = 1, 1, 2
NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA, NFTA_DATA_VALUE = 1, 2, 1
NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_OFFSET, NFTA_PAYLOAD_LEN, NFTA_PAYLOAD_SREG = 2, 3, 4, 5
NFTA_PAYLOAD_CSUM_TYPE, NFTA_PAYLOAD_CSUM_OFFSET = 6, 7
NFT_PAYLOAD_TRANSPORT_HEADER, NFT_PAYLOAD_CSUM_INET, NFT_REG_1 = 2, 1, 1


def append(table: str, rules: Iterable[InnerRule]) -> None:
    """Append rules to chains of an `ip` table in this network namespace, all or none.

    Raises:
        KernelError: they are not in force.
    """
    rules = tuple(rules)
    control = struct.pack("!BBH", socket.AF_UNSPEC, 0, NFNL_SUBSYS_NFTABLES)
    create = wire.NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND
    batch = [_message(NFNL_MSG_BATCH_BEGIN, 0, 0, control)]
    batch += [
        _message(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWRULE, create, number, _rule(table, rule))
        for number, rule in enumerate(rules, start=1)
    ]
    batch.append(_message(NFNL_MSG_BATCH_END, 0, len(rules) + 1, control))
    try:
        with wire.opened(wire.NETLINK_NETFILTER) as asking:
            asking.settimeout(wire.ANSWER_SECONDS)
            asking.send(b"".join(batch))
            _take_answers(asking, len(rules))
    except OSError as error:
        raise KernelError(f"nft add rule ip {table} inner-…", error.errno or errno.EIO) from None


def _take_answers(asking: socket.socket, count: int) -> None:
    """Each rule is answered once; what refuses the batch as a whole is an answer too, and raised."""
    while count:
        data = asking.recv(wire.RECEIVE_BYTES)
        for offset, length, kind, _, _ in wire.messages(data):
            if kind == wire.NLMSG_ERROR:
                wire.raise_errno(data, offset, length)
                count -= 1


def _message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return wire.HEADER.pack(wire.HEADER.size + len(body), kind, flags | wire.NLM_F_REQUEST, sequence, 0) + body


def _rule(table: str, rule: InnerRule) -> bytes:
    value = wire.attribute(NFTA_DATA_VALUE, rule.address.packed)
    load = _number(NFTA_IMMEDIATE_DREG, NFT_REG_1) + wire.attribute(NFTA_IMMEDIATE_DATA | NLA_F_NESTED, value)
    store = b"".join(
        _number(kind, number)
        for kind, number in (
            (NFTA_PAYLOAD_SREG, NFT_REG_1),
            (NFTA_PAYLOAD_BASE, NFT_PAYLOAD_TRANSPORT_HEADER),
            (NFTA_PAYLOAD_OFFSET, rule.offset),
            (NFTA_PAYLOAD_LEN, len(rule.address.packed)),
            (NFTA_PAYLOAD_CSUM_TYPE, NFT_PAYLOAD_CSUM_INET),
            (NFTA_PAYLOAD_CSUM_OFFSET, INNER_CHECKSUM),
        )
    )
    expressions = _expression("immediate", load) + _expression("payload", store)
    names = _text(NFTA_RULE_TABLE, table) + _text(NFTA_RULE_CHAIN, rule.chain)
    header = struct.pack("!BBH", socket.AF_INET, 0, 0)
    return header + names + wire.attribute(NFTA_RULE_EXPRESSIONS | NLA_F_NESTED, expressions)


def _expression(name: str, data: bytes) -> bytes:
    body = _text(NFTA_EXPR_NAME, name) + wire.attribute(NFTA_EXPR_DATA | NLA_F_NESTED, data)
    return wire.attribute(NFTA_LIST_ELEM | NLA_F_NESTED, body)


def _text(kind: int, value: str) -> bytes:
    return wire.attribute(kind, value.encode("ascii") + b"\0")


def _number(kind: int, value: int) -> bytes:
    return wire.attribute(kind, struct.pack("!I", value))
