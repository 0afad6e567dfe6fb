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
import struct

from ...core.nft.guard import ALL, ASKED, HELD, LEFT, UNNAMED
from ...core.nft.tables import GUARD as TABLE
from ...core.nft.tables import GUARD_HOOKS
from ...errors import KernelError
from .. import plain_socket as socket
from ..netlink import wire
from . import batch
from .expressions import (
    ACCEPT,
    DROP,
    EQUAL,
    ESTABLISHED,
    IIFGROUP,
    IIFNAME,
    INVALID,
    L4PROTO,
    NEW,
    NFPROTO,
    NFPROTO_INET,
    NO_BITS,
    OIFGROUP,
    OIFNAME,
    PKTTYPE,
    PRIORITY,
    RELATED,
    TRANSPORT,
    UNEQUAL,
    chain,
    compare,
    ending,
    load,
    masked,
    meta,
    numbers,
    owned_table,
    payload,
    state,
)  # fmt: skip

# linux/netfilter/nf_tables.h, linux/netfilter.h, linux/if_packet.h
_NFPROTO_IPV4, _NFPROTO_IPV6 = b"\2", b"\12"
_NFTA_META_KEY, _NFTA_META_SREG = 2, 3
_NFTA_FIB_DREG, _NFTA_FIB_RESULT, _NFTA_FIB_FLAGS, _FIB_OIFNAME = 1, 2, 3, 2
_BY_SOURCE, _BY_DESTINATION = 0x1, 0x2
_HOST, _OTHER = b"\0", b"\3"
_UPLINK, _VIF, _VIF_NAME, _LOOPBACK = struct.pack("=I", 1), struct.pack("=I", 2), b"vif", b"lo\0"
_REDIRECTS = ((_NFPROTO_IPV4, bytes((socket.IPPROTO_ICMP,)), b"\5"), (_NFPROTO_IPV6, bytes((58,)), b"\x89"))
_ACCEPTED = ending(ACCEPT)


class Guard:
    """The table, there while this object has it `stand`."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    @property
    def stands(self) -> bool:
        """Return whether this object has loaded the table."""
        return self._socket is not None

    def stand(self) -> bool:
        """Load the table; call this only after the base rules are loaded, or all packets of the qubes are dropped.

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
        """Delete the table; return whether it existed."""
        if self._socket is None:
            return False
        self._socket.close()
        self._socket = None
        return True


def _messages() -> list[batch.Message]:
    create = wire.NLM_F_ACK | batch.NLM_F_CREATE
    messages = [(batch.NFT_MSG_NEWTABLE, create, owned_table(TABLE))]
    messages += [(batch.NFT_MSG_NEWCHAIN, create, chain(TABLE, name, hook)) for name, hook in GUARD_HOOKS.items()]
    append = create | batch.NLM_F_APPEND
    return messages + [
        (batch.NFT_MSG_NEWRULE, append, batch.rule(NFPROTO_INET, TABLE, name, expressions))
        for name, rules in _rules().items()
        for expressions in rules
    ]


def _rules() -> dict[str, tuple[bytes, ...]]:
    """The rules of each chain."""
    unicast = meta(PKTTYPE, EQUAL, _HOST)
    from_vif, to_vif = meta(IIFGROUP, EQUAL, _VIF), meta(OIFGROUP, EQUAL, _VIF)
    # Before it is in its group, nothing passes it (behaviour B121).
    from_name, to_name = meta(IIFNAME, EQUAL, _VIF_NAME), meta(OIFNAME, EQUAL, _VIF_NAME)
    elsewhere, hold, clear = meta(OIFGROUP, UNEQUAL, _VIF), _bits(ALL, HELD) + _ACCEPTED, _bits(ALL) + _ACCEPTED
    # What a qube sends to the outside is held once more until the chain egress has let it pass.
    leaving, known = from_vif + elsewhere + hold, state(ESTABLISHED | RELATED)
    return {
        "prerouting": (
            # Broadcasts and multicasts are never forwarded as they are; what comes in of them the base rules judge.
            from_vif + unicast + _of_another_host() + _ACCEPTED,
            from_name + unicast + _of_another_host() + _ACCEPTED,
            meta(IIFGROUP, UNEQUAL, _VIF) + unicast + _routed_to_a_vif(_BY_DESTINATION) + _of_another_host(),
        ),
        "input": (
            meta(PKTTYPE, EQUAL, _OTHER) + _drop(),
            # In the name of a qube, from where that qube is not (QSB-056).
            meta(IIFGROUP, UNEQUAL, _VIF) + _routed_to_a_vif(_BY_SOURCE) + _drop(),
            *(
                meta(IIFGROUP, EQUAL, group) + _is_icmp(family, protocol, kind) + _drop()
                for family, protocol, kind in _REDIRECTS
                for group in (_UPLINK, _VIF)
            ),
        ),
        "before-input": (
            meta(IIFNAME, EQUAL, _LOOPBACK) + _ACCEPTED,
            from_vif + state(INVALID | ESTABLISHED | RELATED | NEW) + hold,
            from_name + state(INVALID | ESTABLISHED | RELATED | NEW) + hold,
            state(NEW) + hold,
        ),
        "behind-input": (_is(HELD) + _drop(),),
        "before-forward": (from_vif + hold, to_vif + hold, from_name + hold, to_name + hold),
        "behind-forward": (
            _is(HELD) + _drop(),
            known + leaving,  # first, because most packets are of these
            known + clear,
            _has_none(ASKED | LEFT | UNNAMED) + _ACCEPTED,
            _has_none(LEFT) + leaving,
            _has_none(LEFT) + clear,
            _is(UNNAMED) + _drop(),
            meta(IIFGROUP, EQUAL, _UPLINK) + _drop(),
            to_vif + _drop(),
            to_name + _drop(),
            leaving,
            clear,
        ),
        "behind-egress": (_is(HELD) + _drop(), to_name + elsewhere + _drop()),
    }


def _is(bits: int) -> bytes:
    """Return the match on a bit of the priority."""
    return load(PRIORITY) + masked(bits) + compare(UNEQUAL, NO_BITS)


def _has_none(bits: int) -> bytes:
    """Return the match on none of these bits in the priority."""
    return load(PRIORITY) + masked(bits) + compare(EQUAL, NO_BITS)


def _bits(cleared: int, added: int = 0) -> bytes:
    """Clear bits of the priority, and set others."""
    store = numbers((_NFTA_META_KEY, PRIORITY), (_NFTA_META_SREG, batch.NFT_REG_1))
    return load(PRIORITY) + masked(~cleared & 0xFFFFFFFF, added) + batch.expression("meta", store)


def _is_icmp(family: bytes, protocol: bytes, kind: bytes) -> bytes:
    """Return the match on an ICMP message of this type."""
    first = payload(TRANSPORT, 0, len(kind))
    return meta(NFPROTO, EQUAL, family) + meta(L4PROTO, EQUAL, protocol) + first + compare(EQUAL, kind)


def _routed_to_a_vif(by: int) -> bytes:
    """Compare the name of the interface that leads to an address; one of this qube's own has none."""
    asked = ((_NFTA_FIB_DREG, batch.NFT_REG_1), (_NFTA_FIB_RESULT, _FIB_OIFNAME), (_NFTA_FIB_FLAGS, by))
    return batch.expression("fib", numbers(*asked)) + compare(EQUAL, _VIF_NAME)


def _of_another_host() -> bytes:
    store = numbers((_NFTA_META_KEY, PKTTYPE), (_NFTA_META_SREG, batch.NFT_REG_1))
    return batch.load(_OTHER) + batch.expression("meta", store)


def _drop() -> bytes:
    return batch.expression("counter", b"") + ending(DROP)
