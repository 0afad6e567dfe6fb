# SPDX-License-Identifier: GPL-2.0-or-later
"""Make the kernel report first packets of client qubes' connections by nflog while this process lives.

A table of its own belongs to the socket by which it is made (flag `owner`, kernel 5.12), so that the kernel removes it
with the process, however that ends. Its chain runs ahead of the chains that judge, has a policy of accept, and only
logs: what it does not report passes too. Packets of established connections do not match, and there is a rate.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator

from ...core.nft.tables import LOG, LOG_HOOK
from ...core.provider.settings import GROUP_VIF
from ...errors import KernelError
from ..netlink import wire
from . import batch, expressions

# linux/netfilter/nfnetlink.h, nfnetlink_log.h
_NFNL_SUBSYS_ULOG, _NFULNL_MSG_PACKET, _NFULNL_MSG_CONFIG = 4, 0, 1
_NFULA_PAYLOAD = 9
_NFULA_CFG_CMD, _NFULA_CFG_MODE, _NFULA_CFG_QTHRESH = 1, 2, 5
_NFULNL_CFG_CMD_BIND, _NFULNL_COPY_PACKET = 1, 2
# linux/netfilter/nf_tables.h
_NFTA_LOG_GROUP, _NFTA_LOG_SNAPLEN = 1, 3
_NFTA_LIMIT_RATE, _NFTA_LIMIT_UNIT, _NFTA_LIMIT_BURST = 1, 2, 3
_CHAIN, _IFNAMSIZ = "forward", 16
RATE, BURST = 200, 400  # packets a second
_SNAP = 160  # bytes: the headers of IPv6 with extensions, and of what it carries
_GROUP = 8100
_BUFFER = 1 << 20
_REMEDIES = {
    errno.EPERM: "another `firewall log` is running, or run as root",  # nfnetlink_log has one errno for both
    errno.EEXIST: "another `firewall log` is running",
    errno.EOPNOTSUPP: "it needs kernel 5.12, with CONFIG_NETFILTER_NETLINK_LOG",
}


class Log:
    """The kernel's reports.

    Args:
        vif: name of the qube's interface; "" for all qubes.

    Attributes:
        lost: how often the kernel dropped messages, because this process did not read them in time (ENOBUFS).

    Raises:
        KernelError: it cannot be had: the kernel has no nflog or is older than 5.12, or this process lacks the right.
    """

    def __init__(self, vif: str) -> None:
        self.lost = 0
        self._owner: socket.socket | None = None
        self._socket = _bound()
        try:
            self._owner = _table(vif)
        except KernelError:
            self._socket.close()
            raise

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the descriptor for poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Remove the table and the group."""
        if self._owner is not None:
            self._owner.close()
            self._owner = None
        self._socket.close()

    def packets(self) -> Iterator[bytes]:
        """Yield the beginning of each packet that is there, untrusted; see `lost` for those that did not fit.

        Raises:
            KernelError: the socket cannot be read.
        """
        while True:
            try:
                data = self._socket.recv(wire.RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    self.lost += 1
                    continue
                raise KernelError("nflog", error.errno or errno.EIO) from None
            for offset, length, kind, _, _ in wire.messages(data):
                if kind == _NFNL_SUBSYS_ULOG << 8 | _NFULNL_MSG_PACKET:
                    yield from _payload(data, offset, min(offset + length, len(data)))


def _payload(data: bytes, offset: int, end: int) -> Iterator[bytes]:
    for kind, begin, stop in wire.attributes(data, offset + wire.Netfilter.HEADER_BYTES, end):
        if kind == _NFULA_PAYLOAD and stop <= end:
            yield data[begin:stop]


def _bound() -> socket.socket:
    """Return a socket that hears our group."""

    def bind(made: socket.socket) -> None:
        made.settimeout(wire.ANSWER_SECONDS)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        _configure(made, wire.attribute(_NFULA_CFG_CMD, bytes((_NFULNL_CFG_CMD_BIND,))))
        _configure(made, wire.attribute(_NFULA_CFG_MODE, struct.pack("!IBB", _SNAP, _NFULNL_COPY_PACKET, 0)))
        _configure(made, wire.attribute(_NFULA_CFG_QTHRESH, struct.pack("!I", 1)))  # none waits for another
        made.setblocking(False)

    return _opened(f"nflog group {_GROUP}", bind)


def _opened(doing: str, prepare: Callable[[socket.socket], None]) -> socket.socket:
    """Return a new socket that has been prepared. Raises KernelError, which says what it was for."""
    try:
        made = wire.opened(wire.NETLINK_NETFILTER)
        try:
            prepare(made)
        except OSError:
            made.close()
            raise
    except OSError as error:
        number = error.errno or errno.EIO
        raise KernelError(doing, number, _REMEDIES.get(number, "")) from None
    return made


def _configure(made: socket.socket, body: bytes) -> None:
    length, kind = wire.Netfilter.HEADER_BYTES + len(body), _NFNL_SUBSYS_ULOG << 8 | _NFULNL_MSG_CONFIG
    header = wire.HEADER.pack(length, kind, wire.NLM_F_REQUEST | wire.NLM_F_ACK, 1, 0)
    made.send(header + struct.pack("!BBH", socket.AF_UNSPEC, 0, _GROUP) + body)
    while True:
        data = made.recv(wire.RECEIVE_BYTES)
        for offset, size, answer, _, _ in wire.messages(data):
            if answer == wire.NLMSG_ERROR:
                wire.raise_errno(data, offset, size)
                return


def _table(vif: str) -> socket.socket:
    """Return the socket that owns the table."""
    return _opened(f"nft add table inet {LOG}", lambda owner: batch.commit(owner, _messages(vif)))


def _messages(vif: str) -> tuple[batch.Message, ...]:
    create = wire.NLM_F_ACK | batch.NLM_F_CREATE
    return (
        (batch.NFT_MSG_NEWTABLE, create, expressions.owned_table(LOG)),
        (batch.NFT_MSG_NEWCHAIN, create, expressions.chain(LOG, _CHAIN, LOG_HOOK)),
        (batch.NFT_MSG_NEWRULE, create, batch.rule(expressions.NFPROTO_INET, LOG, _CHAIN, _rule(vif))),
    )


def _rule(vif: str) -> bytes:
    """Return the rule: `ct state new iifname VIF limit rate … log group …`; packets of connections fail at once."""
    where = (
        expressions.meta(expressions.IIFNAME, expressions.EQUAL, vif.encode("ascii").ljust(_IFNAMSIZ, b"\0"))
        if vif
        else expressions.meta(expressions.IIFGROUP, expressions.EQUAL, struct.pack("=I", GROUP_VIF))
    )
    limit = wire.attribute(_NFTA_LIMIT_RATE, struct.pack("!Q", RATE))
    limit += wire.attribute(_NFTA_LIMIT_UNIT, struct.pack("!Q", 1)) + batch.number(_NFTA_LIMIT_BURST, BURST)
    log = wire.attribute(_NFTA_LOG_GROUP, struct.pack("!H", _GROUP)) + batch.number(_NFTA_LOG_SNAPLEN, _SNAP)
    new = expressions.state(expressions.NEW)
    return new + where + batch.expression("limit", limit) + batch.expression("log", log)
