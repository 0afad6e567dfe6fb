# SPDX-License-Identifier: GPL-2.0-or-later
"""Transactions of nftables as netlink messages, for functions that the nft program lacks."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable

from .. import plain_socket as socket
from ..netlink import wire
from .kernel import NFNL_SUBSYS_NFTABLES

# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
NLM_F_CREATE, NLM_F_APPEND, NLA_F_NESTED = 0x400, 0x800, 0x8000
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 0x10, 0x11
NFT_MSG_NEWTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_DELCHAIN, NFT_MSG_NEWRULE, NFT_MSG_DELRULE = 0, 3, 5, 6, 8
NFT_MSG_NEWSET, NFT_MSG_DELSET, NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM = 9, 11, 12, 14
NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS = 1, 2, 4
NFTA_LIST_ELEM, NFTA_EXPR_NAME, NFTA_EXPR_DATA = 1, 1, 2
NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA, NFTA_DATA_VALUE, NFTA_DATA_VERDICT = 1, 2, 1, 2
NFT_REG_1 = 1
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h; as root it is not limited by net.core.wmem_max
_OVERHEAD = 32  # netlink_sendmsg()

Message = tuple[int, int, bytes]


class MessageRefused(OSError):
    """The kernel refused one message of a transaction, and so all of it.

    Args:
        number: errno.
        place: of the message, from 0; None where the refusal is of none of them.
    """

    def __init__(self, number: int, place: int | None) -> None:
        super().__init__(number, "netlink")
        self.place = place


def commit(asking: socket.socket, messages: Iterable[Message]) -> None:
    """Carry out one transaction, all of it or nothing.

    Args:
        asking: a socket of netfilter.
        messages: type, flags and body of each; the last one with NLM_F_ACK, and any other that is to be answered.

    Raises:
        MessageRefused: with the errno of the kernel; nothing is in force then.
        OSError: the socket does not serve.
    """
    _carried_out(asking, tuple(messages), keep=True)


def attempt(asking: socket.socket, messages: Iterable[Message]) -> None:
    """Let the kernel check one transaction and revert it. Arguments and errors are those of `commit`."""
    _carried_out(asking, tuple(messages), keep=False)


def _carried_out(asking: socket.socket, messages: tuple[Message, ...], *, keep: bool) -> None:
    control = struct.pack("!BBH", socket.AF_UNSPEC, 0, NFNL_SUBSYS_NFTABLES)
    parts = [_message(NFNL_MSG_BATCH_BEGIN, 0, 0, control)]
    parts += [
        _message(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, sequence, body)
        for sequence, (kind, flags, body) in enumerate(messages, start=1)
    ]
    if keep:  # a batch without an end is reverted
        parts.append(_message(NFNL_MSG_BATCH_END, 0, len(messages) + 1, control))
    asking.settimeout(wire.ANSWER_SECONDS)
    whole = b"".join(parts)
    _make_room(asking, len(whole))
    asking.send(whole)
    # A refusal of the whole batch is also an answer, and raised.
    left = sum(bool(flags & wire.NLM_F_ACK) for _, flags, _ in messages)
    while left:
        data = _answer(asking)
        for offset, length, kind, _, sequence in wire.messages(data):
            if kind == wire.NLMSG_ERROR:
                _raise_refusal(data, offset, length, sequence - 1 if 1 <= sequence <= len(messages) else None)
                left -= 1


def _answer(asking: socket.socket) -> bytes:
    """Return the next answers. Of more refusals than the buffer can hold, the first ones are in it."""
    try:
        return asking.recv(wire.RECEIVE_BYTES)
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise
    return asking.recv(wire.RECEIVE_BYTES)


def _make_room(asking: socket.socket, length: int) -> None:
    """Raise the buffer of a socket until it can hold a message, or as far as this process may."""
    if length <= asking.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - _OVERHEAD:
        return
    try:
        asking.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, length)
    except PermissionError:  # not root of the first user namespace
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, length)


def _raise_refusal(data: bytes, offset: int, length: int, place: int | None) -> None:
    try:
        wire.raise_errno(data, offset, length)
    except OSError as error:
        raise MessageRefused(error.errno or errno.EIO, place) from None


def rule(family: int, table: str, chain: str, expressions: bytes) -> bytes:
    """Return the body of a message that adds a rule."""
    names = text(NFTA_RULE_TABLE, table) + text(NFTA_RULE_CHAIN, chain)
    return header(family) + names + nested(NFTA_RULE_EXPRESSIONS, expressions)


def header(family: int) -> bytes:
    """Return the header of each body: struct nfgenmsg."""
    return struct.pack("!BBH", family, 0, 0)


def load(value: bytes) -> bytes:
    """Return the expression that puts a value into the first register."""
    data = nested(NFTA_IMMEDIATE_DATA, wire.attribute(NFTA_DATA_VALUE, value))
    return expression("immediate", number(NFTA_IMMEDIATE_DREG, NFT_REG_1) + data)


def expression(name: str, data: bytes) -> bytes:
    """Return one expression of a rule."""
    return nested(NFTA_LIST_ELEM, text(NFTA_EXPR_NAME, name) + nested(NFTA_EXPR_DATA, data))


def nested(kind: int, data: bytes) -> bytes:
    """Return an attribute that holds attributes."""
    return wire.attribute(kind | NLA_F_NESTED, data)


def text(kind: int, value: str) -> bytes:
    """Return an attribute that is a word."""
    return wire.attribute(kind, value.encode("ascii") + b"\0")


def number(kind: int, value: int) -> bytes:
    """Return an attribute that is a number, in network byte order."""
    return wire.attribute(kind, struct.pack("!i" if value < 0 else "!I", value))


def _message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return wire.HEADER.pack(wire.HEADER.size + len(body), kind, flags | wire.NLM_F_REQUEST, sequence, 0) + body
