# SPDX-License-Identifier: GPL-2.0-or-later
"""Delete the connections of an address, so that its next holder cannot send in them (behaviour B50).

The program `conntrack` walks the kernel's whole table once per address and direction, 12 ms each with 262144 buckets,
and finds no entry by its reply addresses. This module finds all of them in one walk, and skips an empty table; the
budget of `vif online` is 10 ms.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from ipaddress import ip_address

from ..core.values import IPAddress
from ..errors import KernelError
from . import procfs_sysctl
from .netlink.wire import NLM_F_ACK, NLM_F_DUMP, Netfilter, attributes

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from ..core.firewall.connections import Connection

# linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h
NFNL_SUBSYS_CTNETLINK = 1
IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE = 1, 2
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ID, CTA_ZONE = 1, 2, 12, 18
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_IP_V4_SRC, CTA_IP_V6_SRC = 1, 3
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_ICMP_TYPE, CTA_PROTO_ICMPV6_TYPE = 1, 2, 5, 8

_SOURCES = (CTA_IP_V4_SRC, CTA_IP_V6_SRC)
_PROTOCOL = 1 << 16  # apart from the numbers of addresses
_COUNT = ("netfilter", "nf_conntrack_count")
_TRIES = 4
_ATTRIBUTE_BYTES = 4


def purge(addresses: Iterable[IPAddress]) -> int:
    """Delete every entry that has one of these addresses in either direction, translated or not.

    Args:
        addresses: of both families.

    Returns:
        How many entries were deleted.

    Raises:
        KernelError: the kernel refuses.
    """
    return _purge(addresses, lambda _entry: True)


def purge_untranslated(addresses: Iterable[IPAddress]) -> int:
    """Delete the entries of these addresses in which no address was translated.

    Such connections began while there was no translation, and would never get one (behaviour B126); translated
    connections continue.

    Args:
        addresses: of the qubes, of both families.

    Returns:
        How many entries were deleted.

    Raises:
        KernelError: the kernel refuses.
    """
    return _purge(addresses, _is_untranslated)


def has_untranslated(addresses: Iterable[IPAddress]) -> bool:
    """Return whether there is an entry that `purge_untranslated` would delete. Raises KernelError as it does."""
    return _any(addresses, _is_untranslated)


def _any(addresses: Iterable[IPAddress], judged: Callable[[bytes], bool]) -> bool:
    return any(map(judged, _entries(addresses)))


def _purge(addresses: Iterable[IPAddress], judged: Callable[[bytes], bool]) -> int:
    wanted = _tracked(addresses)
    if not wanted:
        return 0
    with _Table("conntrack purge") as table:
        return sum(_delete(table, entry) for entry in _find(table, wanted) if judged(entry))


def begun(sources: Iterable[IPAddress]) -> tuple[tuple[Connection, bytes], ...]:
    """Return the connections that these addresses began, each with the entry as the kernel dumped it.

    Args:
        sources: of both families.

    Raises:
        KernelError: the kernel refuses.
    """
    sources = tuple(sources)
    wanted = frozenset(address.packed for address in sources)
    entries = _entries(sources)
    found = ((_connection(entry), entry) for entry in entries if not wanted.isdisjoint(_sources(entry)))
    return tuple((connection, entry) for connection, entry in found if connection is not None)


def end(entries: Iterable[bytes]) -> int:
    """Delete the entries of connections.

    Args:
        entries: as `begun` gave them.

    Returns:
        How many there still were.

    Raises:
        KernelError: the kernel refuses.
    """
    with _Table("conntrack -D") as table:
        return sum(_delete(table, entry) for entry in entries)


def speaks(addresses: Iterable[IPAddress]) -> bool:
    """Return whether one of these addresses began a connection that the kernel still tracks.

    Raises:
        KernelError: the kernel refuses.
    """
    addresses = tuple(addresses)
    wanted = {address.packed for address in addresses}
    return _any(addresses, lambda entry: not wanted.isdisjoint(_sources(entry)))


class _Table:
    """The kernel's connection table, open while a block runs.

    Args:
        doing: what the block does, for the KernelError that it raises in place of an OSError.
    """

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> Netfilter:
        try:
            self._table = Netfilter(NFNL_SUBSYS_CTNETLINK)
        except OSError as error:
            raise self._refused(error) from None
        return self._table

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._table.close()
        if isinstance(error, OSError):
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> KernelError:
        return KernelError(self._doing, error.errno or errno.EIO)


def _tracked(addresses: Iterable[IPAddress]) -> frozenset[bytes]:
    """Return the addresses as the kernel packs them; none where it tracks no connection at all."""
    wanted = frozenset(address.packed for address in addresses)
    # Without the module there is neither this file nor any connection.
    return wanted if wanted and procfs_sysctl.read(_COUNT) not in (None, "0") else frozenset()


def _entries(addresses: Iterable[IPAddress]) -> list[bytes]:
    """Dump the entries with one of these addresses."""
    wanted = _tracked(addresses)
    if not wanted:
        return []
    with _Table("conntrack dump") as table:
        return _find(table, wanted)


def _find(table: Netfilter, wanted: frozenset[bytes]) -> list[bytes]:
    """Dump the entries of both families with one of these addresses; repeat an interrupted dump."""
    for _ in range(_TRIES - 1):
        try:
            return _dump(table, wanted)
        except InterruptedError:
            continue
    return _dump(table, wanted)


def _dump(table: Netfilter, wanted: frozenset[bytes]) -> list[bytes]:
    # Searching the raw bytes first makes ten thousand foreign entries cheap.
    return [
        entry
        for entry in table.request(IPCTNL_MSG_CT_GET, NLM_F_DUMP)
        if any(address in entry for address in wanted) and not wanted.isdisjoint(_addresses(entry))
    ]


def _is_untranslated(entry: bytes) -> bool:
    """Return whether the reply direction is the exact reverse of the original one."""
    there, back = _addresses(entry)[:2], _addresses(entry)[2:]
    return there == back[::-1]


def _addresses(entry: bytes) -> list[bytes]:
    """The four addresses of an entry: source and destination of either direction."""
    return [address for _, _, address in _ends(entry)]


def _sources(entry: bytes) -> list[bytes]:
    """Return the source addresses of the original direction."""
    return [address for direction, end, address in _ends(entry) if direction == CTA_TUPLE_ORIG and end in _SOURCES]


def _ends(entry: bytes) -> list[tuple[int, int, bytes]]:
    """Return each address with its direction and its role, source or destination."""
    return [
        (kind, end, entry[begin:stop])
        for kind, tuple_begin, tuple_end in attributes(entry, Netfilter.HEADER_BYTES, len(entry))
        if kind in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY)
        for part, part_begin, part_end in attributes(entry, tuple_begin, tuple_end)
        if part == CTA_TUPLE_IP
        for end, begin, stop in attributes(entry, part_begin, part_end)
    ]


def _connection(entry: bytes) -> Connection | None:
    """Return an entry as rules see it; None for one without its addresses."""
    number, ends = 0, dict[tuple[int, int], bytes]()
    for kind, begin, end in attributes(entry, Netfilter.HEADER_BYTES, len(entry)):
        if kind == CTA_ID:
            number = int.from_bytes(entry[begin:end], "big")
        elif kind in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY):
            for part, part_begin, part_end in attributes(entry, begin, end):
                base = _PROTOCOL if part == CTA_TUPLE_PROTO else 0
                for what, first, last in attributes(entry, part_begin, part_end):
                    ends[kind, base + what] = entry[first:last]
    sources = [ends.get((tuple_, what)) for tuple_ in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY) for what in _SOURCES]
    source, server = (next(filter(None, pair), None) for pair in (sources[:2], sources[2:]))
    if source is None or server is None:
        return None
    protocol = ends.get((CTA_TUPLE_ORIG, _PROTOCOL + CTA_PROTO_NUM), b"\0")[0]
    port = ends.get((CTA_TUPLE_REPLY, _PROTOCOL + CTA_PROTO_SRC_PORT))
    kinds = (ends.get((CTA_TUPLE_ORIG, _PROTOCOL + what)) for what in (CTA_PROTO_ICMP_TYPE, CTA_PROTO_ICMPV6_TYPE))
    icmp_type = next(filter(None, kinds), None)
    from ..core.firewall.connections import Connection  # a provider's with a firewall

    return Connection(
        number,
        ip_address(source),
        ip_address(server),
        protocol,
        int.from_bytes(port, "big") if port is not None else None,
        icmp_type[0] if icmp_type is not None else None,
    )


def _delete(table: Netfilter, entry: bytes) -> int:
    """Delete one entry by its dumped data; return 1, or 0 if it is gone meanwhile."""
    named = b"".join(
        entry[begin - _ATTRIBUTE_BYTES : (end + 3) & ~3]
        for kind, begin, end in attributes(entry, Netfilter.HEADER_BYTES, len(entry))
        # CTA_ID: do not delete a new connection with the same addresses and ports.
        if kind in (CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE)
    )
    try:
        for _ in table.request(IPCTNL_MSG_CT_DELETE, NLM_F_ACK, named, entry[16]):
            continue
    except FileNotFoundError:
        return 0
    return 1
