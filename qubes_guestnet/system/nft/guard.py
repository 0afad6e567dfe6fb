# SPDX-License-Identifier: GPL-2.0-or-later
"""A table that `nft flush ruleset` does not remove, and that drops packets of client qubes without base rules.

Theory of operation. A table that belongs to a netlink socket (flag `owner`, kernel 5.12) is changed and deleted through
that socket alone, and goes with it. What the base rules say is in `core/nft/guard`, by two means:

* Its chain `prerouting`, ahead of all others, makes each unicast packet that comes from a vif, or is on its way to one,
  a packet for another host (`meta pkttype other`). Such a packet is not forwarded (ip_forward() and ip6_forward() drop
  it first of all), and the chain `input` takes none in. The base rules make it an ordinary packet again.
* Around the base rules' chains input, forward and egress a bit is set before, and looked at behind.

So a qube sends nothing, and is sent nothing, while they are not there (B125): the agent hears of a flush some
milliseconds later, and many packets can be out by then. Nothing new comes in to this qube either, from wherever.
"""

from __future__ import annotations

import errno
import socket
import struct

from ...core.nft.guard import ALL, ASKED, HELD, LEFT, UNNAMED
from ...core.nft.tables import GUARD as TABLE
from ...core.nft.tables import GUARD_HOOKS
from ...errors import KernelError
from ..netlink import wire
from . import batch

# linux/netfilter/nf_tables.h, linux/netfilter.h, linux/if_packet.h
_NFPROTO_INET, _NFPROTO_IPV4, _NFPROTO_IPV6 = 1, b"\2", b"\12"
_NFTA_TABLE_NAME, _NFTA_TABLE_FLAGS, _NFT_TABLE_F_OWNER = 1, 2, 0x2
_NFTA_CHAIN_TABLE, _NFTA_CHAIN_NAME, _NFTA_CHAIN_HOOK, _NFTA_CHAIN_TYPE = 1, 3, 4, 7
_NFTA_HOOK_HOOKNUM, _NFTA_HOOK_PRIORITY = 1, 2
_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "postrouting": 4}
_NFTA_META_DREG, _NFTA_META_KEY, _NFTA_META_SREG = 1, 2, 3
_PRIORITY, _IIFNAME, _OIFNAME, _NFPROTO, _L4PROTO, _PKTTYPE, _IIFGROUP, _OIFGROUP = 2, 6, 7, 15, 16, 19, 21, 22
_NFTA_CT_DREG, _NFTA_CT_KEY, _NFT_CT_STATE = 1, 2, 0
_INVALID, _ESTABLISHED, _RELATED, _NEW = 1, 2, 4, 8  # bits of the state
_NFTA_FIB_DREG, _NFTA_FIB_RESULT, _NFTA_FIB_FLAGS, _FIB_OIFNAME = 1, 2, 3, 2
_BY_SOURCE, _BY_DESTINATION = 0x1, 0x2
_NFTA_PAYLOAD_DREG, _NFTA_PAYLOAD_BASE, _NFTA_PAYLOAD_OFFSET, _NFTA_PAYLOAD_LEN, _TRANSPORT = 1, 2, 3, 4, 2
_NFTA_BITWISE_SREG, _NFTA_BITWISE_DREG, _NFTA_BITWISE_LEN, _NFTA_BITWISE_MASK, _NFTA_BITWISE_XOR = 1, 2, 3, 4, 5
_NFTA_CMP_SREG, _NFTA_CMP_OP, _NFTA_CMP_DATA = 1, 2, 3
_EQUAL, _UNEQUAL = 0, 1
_HOST, _OTHER, _NO_BITS = b"\0", b"\3", bytes(4)
_NFTA_VERDICT_CODE, _NFTA_DATA_VERDICT, _NF_DROP, _NF_ACCEPT = 1, 2, 0, 1
_UPLINK, _VIF, _VIF_NAME, _LOOPBACK = struct.pack("=I", 1), struct.pack("=I", 2), b"vif", b"lo\0"
_REDIRECTS = ((_NFPROTO_IPV4, bytes((socket.IPPROTO_ICMP,)), b"\5"), (_NFPROTO_IPV6, bytes((58,)), b"\x89"))


class Guard:
    """The table, there while this object has it `stand`."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    @property
    def stands(self) -> bool:
        """Whether this object has it there."""
        return self._socket is not None

    def stand(self) -> bool:
        """Have the table there; only once the base rules are in, or nothing of the qubes passes.

        Returns:
            Whether it was made just now.

        Raises:
            KernelError: it cannot be made; EOPNOTSUPP where the kernel is older than 5.12.
        """
        if self._socket is not None:
            return False
        try:
            owner = wire.opened(wire.NETLINK_NETFILTER)
            try:
                batch.commit(owner, _messages())
            except OSError:
                owner.close()
                raise
        except OSError as error:
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
    for name, (hook, priority, kind) in GUARD_HOOKS.items():
        place = batch.number(_NFTA_HOOK_HOOKNUM, _HOOKS[hook]) + batch.number(_NFTA_HOOK_PRIORITY, priority)
        names = batch.text(_NFTA_CHAIN_TABLE, TABLE) + batch.text(_NFTA_CHAIN_NAME, name)
        names += batch.nested(_NFTA_CHAIN_HOOK, place) + batch.text(_NFTA_CHAIN_TYPE, kind)
        messages.append((batch.NFT_MSG_NEWCHAIN, create, head + names))
    append = create | batch.NLM_F_APPEND
    return messages + [
        (batch.NFT_MSG_NEWRULE, append, batch.rule(_NFPROTO_INET, TABLE, chain, expressions))
        for chain, rules in _rules().items()
        for expressions in rules
    ]


def _rules() -> dict[str, tuple[bytes, ...]]:
    """The rules of each chain."""
    unicast = _meta(_PKTTYPE, _EQUAL, _HOST)
    from_vif, to_vif = _meta(_IIFGROUP, _EQUAL, _VIF), _meta(_OIFGROUP, _EQUAL, _VIF)
    # Before it is in its group, nothing passes it (behaviour B121).
    from_name, to_name = _meta(_IIFNAME, _EQUAL, _VIF_NAME), _meta(_OIFNAME, _EQUAL, _VIF_NAME)
    elsewhere, hold, clear = _meta(_OIFGROUP, _UNEQUAL, _VIF), _bits(ALL, HELD) + _accept(), _bits(ALL) + _accept()
    # What a qube sends to the outside is held once more until the chain egress has let it pass.
    leaving, known = from_vif + elsewhere + hold, _state(_ESTABLISHED | _RELATED)
    return {
        "prerouting": (
            # Broadcasts and multicasts are never forwarded as they are; what comes in of them the base rules judge.
            from_vif + unicast + _of_another_host() + _accept(),
            from_name + unicast + _of_another_host() + _accept(),
            _meta(_IIFGROUP, _UNEQUAL, _VIF) + unicast + _routed_to_a_vif(_BY_DESTINATION) + _of_another_host(),
        ),
        "input": (
            _meta(_PKTTYPE, _EQUAL, _OTHER) + _drop(),
            # In the name of a qube, from where that qube is not (QSB-056).
            _meta(_IIFGROUP, _UNEQUAL, _VIF) + _routed_to_a_vif(_BY_SOURCE) + _drop(),
            *(
                _meta(_IIFGROUP, _EQUAL, group) + _is_icmp(family, protocol, kind) + _drop()
                for family, protocol, kind in _REDIRECTS
                for group in (_UPLINK, _VIF)
            ),
        ),
        "before-input": (
            _meta(_IIFNAME, _EQUAL, _LOOPBACK) + _accept(),
            from_vif + _state(_INVALID | _ESTABLISHED | _RELATED | _NEW) + hold,
            from_name + _state(_INVALID | _ESTABLISHED | _RELATED | _NEW) + hold,
            _state(_NEW) + hold,
        ),
        "behind-input": (_is(HELD) + _drop(),),
        "before-forward": (from_vif + hold, to_vif + hold, from_name + hold, to_name + hold),
        "behind-forward": (
            _is(HELD) + _drop(),
            known + leaving,  # first, because most packets are of these
            known + clear,
            _has_none(ASKED | LEFT | UNNAMED) + _accept(),
            _has_none(LEFT) + leaving,
            _has_none(LEFT) + clear,
            _is(UNNAMED) + _drop(),
            _meta(_IIFGROUP, _EQUAL, _UPLINK) + _drop(),
            to_vif + _drop(),
            to_name + _drop(),
            leaving,
            clear,
        ),
        "behind-egress": (_is(HELD) + _drop(), to_name + elsewhere + _drop()),
    }


def _meta(key: int, relation: int, value: bytes) -> bytes:
    """Compare what is known of the packet."""
    return _load(key) + _compare(relation, value)


def _load(key: int) -> bytes:
    return batch.expression("meta", _numbers((_NFTA_META_DREG, batch.NFT_REG_1), (_NFTA_META_KEY, key)))


def _is(bits: int) -> bytes:
    """Whether the priority has a bit."""
    return _load(_PRIORITY) + _masked(bits) + _compare(_UNEQUAL, _NO_BITS)


def _has_none(bits: int) -> bytes:
    """Whether the priority has none of these bits."""
    return _load(_PRIORITY) + _masked(bits) + _compare(_EQUAL, _NO_BITS)


def _bits(cleared: int, added: int = 0) -> bytes:
    """Clear bits of the priority, and set others."""
    store = _numbers((_NFTA_META_KEY, _PRIORITY), (_NFTA_META_SREG, batch.NFT_REG_1))
    return _load(_PRIORITY) + _masked(~cleared & 0xFFFFFFFF, added) + batch.expression("meta", store)


def _state(bits: int) -> bytes:
    """Whether conntrack calls it one of these."""
    asked = _numbers((_NFTA_CT_DREG, batch.NFT_REG_1), (_NFTA_CT_KEY, _NFT_CT_STATE))
    return batch.expression("ct", asked) + _masked(bits) + _compare(_UNEQUAL, _NO_BITS)


def _is_icmp(family: bytes, protocol: bytes, kind: bytes) -> bytes:
    """Whether it is a message of this type."""
    place = ((_NFTA_PAYLOAD_BASE, _TRANSPORT), (_NFTA_PAYLOAD_OFFSET, 0), (_NFTA_PAYLOAD_LEN, len(kind)))
    first = batch.expression("payload", _numbers((_NFTA_PAYLOAD_DREG, batch.NFT_REG_1), *place))
    return _meta(_NFPROTO, _EQUAL, family) + _meta(_L4PROTO, _EQUAL, protocol) + first + _compare(_EQUAL, kind)


def _masked(mask: int, added: int = 0) -> bytes:
    """The first register and these bits, with others set."""
    words = ((_NFTA_BITWISE_SREG, batch.NFT_REG_1), (_NFTA_BITWISE_DREG, batch.NFT_REG_1), (_NFTA_BITWISE_LEN, 4))
    values = b"".join(
        batch.nested(kind, wire.attribute(batch.NFTA_DATA_VALUE, struct.pack("=I", value)))
        for kind, value in ((_NFTA_BITWISE_MASK, mask), (_NFTA_BITWISE_XOR, added))
    )
    return batch.expression("bitwise", _numbers(*words) + values)


def _routed_to_a_vif(by: int) -> bytes:
    """Compare the name of the interface that leads to an address; one of this qube's own has none."""
    asked = ((_NFTA_FIB_DREG, batch.NFT_REG_1), (_NFTA_FIB_RESULT, _FIB_OIFNAME), (_NFTA_FIB_FLAGS, by))
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
    return batch.expression("counter", b"") + _verdict(_NF_DROP)


def _accept() -> bytes:
    return _verdict(_NF_ACCEPT)


def _verdict(code: int) -> bytes:
    verdict = batch.nested(_NFTA_DATA_VERDICT, batch.number(_NFTA_VERDICT_CODE, code))
    immediate = batch.number(batch.NFTA_IMMEDIATE_DREG, 0) + batch.nested(batch.NFTA_IMMEDIATE_DATA, verdict)
    return batch.expression("immediate", immediate)
