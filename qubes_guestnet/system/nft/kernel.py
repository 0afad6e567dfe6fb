# SPDX-License-Identifier: GPL-2.0-or-later
"""Query nftables by netlink messages, without a program: existing objects, and whether they changed.

Testing for changes is far more frequent than listing, and takes one message.
"""

from __future__ import annotations

import errno
import struct
from collections import Counter
from collections.abc import Iterable, Mapping

from ...core.nft.tables import FIREWALL, IP_FAMILIES, LIMITS, QUBES, SETS
from ...errors import KernelError
from .. import plain_socket as socket
from ..netlink import wire
from . import kept

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    _Gathered = TypeVar("_Gathered")

# linux/netfilter/nfnetlink.h, nf_tables.h
NFNL_SUBSYS_NFTABLES, NFNLGRP_NFTABLES = 10, 7
NFT_MSG_GETTABLE, NFTA_TABLE_NAME, NFTA_TABLE_FLAGS, NFT_TABLE_F_DORMANT = 1, 1, 2, 0x1
NFT_MSG_GETCHAIN, NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME = 4, 1, 3
NFT_MSG_GETGEN, NFTA_GEN_ID = 16, 1
NFT_MSG_GETRULE, NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_HANDLE = 7, 1, 2, 3
_FAMILY_WORDS = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}  # linux/netfilter.h
_NUMBERS = {word: number for number, word in _FAMILY_WORDS.items()}
_FAMILY_PLACE = 16  # of struct nfgenmsg in a message
_TRIES = 4


class Events(wire.Listener):
    """A socket that becomes readable when any program changes a rule, a set or a table."""

    def __init__(self) -> None:
        super().__init__(wire.NETLINK_NETFILTER, (NFNLGRP_NFTABLES,), "nft events")


def generation() -> int:
    """Return the generation number, which changes with each transaction of any program; a listing takes 3 ms longer.

    Raises:
        KernelError: the kernel has no nftables, or this process lacks the permission.
    """
    try:
        with kept.Asking(NFNL_SUBSYS_NFTABLES) as asking:
            for answer in asking.request(NFT_MSG_GETGEN, 0):
                for kind, begin, _ in wire.attributes(answer, asking.HEADER_BYTES, len(answer)):
                    if kind == NFTA_GEN_ID:
                        return int(struct.unpack_from("!I", answer, begin)[0])
            raise OSError(errno.EPROTO, "no generation in the answer")
    except OSError as error:
        raise KernelError("nft generation", error.errno or errno.EIO) from None


def present() -> bool:
    """Return whether our tables of both families are in force; two messages to the kernel and no program.

    Raises:
        KernelError: the kernel has no nftables, or this process lacks the permission.
    """
    return _in_force(QUBES)


def filtering() -> bool:
    """Return whether qubes-firewall has its chain in force in both families, as `present`.

    Raises:
        KernelError: the kernel has no nftables, or this process lacks the permission.
    """
    return _in_force(FIREWALL, "forward")


def _in_force(table: str, chain: str = "") -> bool:
    """Return whether a table and its chain exist in both families, and the table is not dormant."""
    asked = _text(NFTA_CHAIN_TABLE, table) + _text(NFTA_CHAIN_NAME, chain)
    try:
        asking = wire.Netfilter(NFNL_SUBSYS_NFTABLES)
        try:
            for family in (socket.AF_INET, socket.AF_INET6):
                answers = asking.request(NFT_MSG_GETTABLE, 0, _text(NFTA_TABLE_NAME, table), family)
                if any(_table(answer)[2] for answer in answers):
                    return False
                if chain:
                    tuple(asking.request(NFT_MSG_GETCHAIN, 0, asked, family))
        finally:
            asking.close()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise KernelError("nft list", error.errno or errno.EIO, "run as root") from None
    return True


def table_names() -> tuple[str, ...]:
    """Return family and name of every table, of any program.

    Raises:
        KernelError: the kernel has no nftables, or this process lacks the permission.
    """
    return tuple(f"{family} {name}" for family, name, _ in map(_table, _dump(NFT_MSG_GETTABLE, list)))


def dormant() -> frozenset[tuple[str, str]]:
    """Return family and name of the dormant tables (`flags dormant`). Raises KernelError as `handles`."""
    return frozenset((family, name) for family, name, sleeps in map(_table, _dump(NFT_MSG_GETTABLE, list)) if sleeps)


def handles(chains: Iterable[tuple[str, str]]) -> frozenset[tuple[str, str, bytes]]:
    """Return the rules of our chains, by family, chain and handle, which is unique in the table.

    Equal results mean that no rule was removed, replaced or added. Policies and sets are not included. A dormant table
    has no rules.

    Args:
        chains: family and name of each.

    Raises:
        KernelError: the kernel has no nftables, or this process lacks the permission.
    """
    wanted, found, asleep = frozenset(chains), set(), dormant()
    for family in (family for family in SETS if (family, QUBES) not in asleep):
        for table, chain, handle in map(_place, _dump(NFT_MSG_GETRULE, list, _text(NFTA_RULE_TABLE, QUBES), family)):
            if table == QUBES and (family, chain) in wanted:
                found.add((family, chain, handle))
    return frozenset(found)


def limit_rules() -> Mapping[tuple[str, str], int]:
    """Return how many rules each chain of the limits has, by family and chain; a dormant table has none.

    Raises:
        KernelError: as `handles`.
    """
    found, body = dict[tuple[str, str], int](), _text(NFTA_RULE_TABLE, LIMITS)
    asleep = dormant()
    for family in (family for family in IP_FAMILIES if (family, LIMITS) not in asleep):
        # One rule at a time: 250 vifs have 12,000.
        counts = _dump(NFT_MSG_GETRULE, lambda answers: Counter(_place(each)[:2] for each in answers), body, family)
        found |= {(family, chain): number for (table, chain), number in counts.items() if table == LIMITS}
    return found


def _table(answer: bytes) -> tuple[str, str, bool]:
    """Return family and name of a table, and whether it is dormant."""
    name, flags = "", 0
    for kind, begin, end in wire.attributes(answer, wire.Netfilter.HEADER_BYTES, len(answer)):
        if kind == NFTA_TABLE_NAME:
            name = answer[begin : end - 1].decode("ascii", "replace")
        elif kind == NFTA_TABLE_FLAGS:
            (flags,) = struct.unpack_from("!I", answer, begin)
    return _FAMILY_WORDS.get(answer[_FAMILY_PLACE], "?"), name, bool(flags & NFT_TABLE_F_DORMANT)


def _place(answer: bytes) -> tuple[str, str, bytes]:
    """Table, chain and handle of a rule."""
    parts = {
        kind: answer[begin:end]
        for kind, begin, end in wire.attributes(answer, wire.Netfilter.HEADER_BYTES, len(answer))
        if kind in (NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_HANDLE)
    }
    table, chain = (parts[kind][:-1].decode("ascii", "replace") for kind in (NFTA_RULE_TABLE, NFTA_RULE_CHAIN))
    return table, chain, parts[NFTA_RULE_HANDLE]


def _dump(kind: int, gather: Callable[[Iterable[bytes]], _Gathered], body: bytes = b"", family: str = "") -> _Gathered:
    """Collect the messages of a dump; repeat a dump that a change interrupted."""
    number = _NUMBERS.get(family, socket.AF_UNSPEC)
    try:
        asking = wire.Netfilter(NFNL_SUBSYS_NFTABLES)
        try:
            for _ in range(_TRIES):
                try:
                    return gather(asking.request(kind, wire.NLM_F_DUMP, body, number))
                except InterruptedError:
                    continue
            raise OSError(errno.EAGAIN, "the rules keep changing")
        finally:
            asking.close()
    except OSError as error:
        raise KernelError("nft list", error.errno or errno.EIO, "run as root") from None


def _text(kind: int, value: str) -> bytes:
    return wire.attribute(kind, value.encode("ascii") + b"\0")
