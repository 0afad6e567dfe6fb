# SPDX-License-Identifier: GPL-2.0-or-later
"""Parse a name server's reply to a question, at a bounded cost. dnspython reads the names.

Only the header, the question and the first records of the answer are read; of the authority section only what a missing
name's time to live needs. `dns.message.from_wire` would parse every record of every type, before anything can stop it.
"""

from __future__ import annotations

import ipaddress
import struct

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype

from ..core.firewall import name_messages
from ..core.firewall.name_messages import Answer, Question
from ..core.namedtuple import NamedTuple
from ..core.values import IPV4, IPAddress

MOST_RECORDS = 1024  # of the answer; a message over TCP has room for 4000
MOST_AUTHORITY = 16
MOST_ALIASES = 16  # in a chain of CNAME records
_MOST_POINTERS, _MOST_STEPS = 16, 160  # of a name: 127 labels are the most (RFC 1035, 2.3.4)
_HEADER = struct.Struct("!6H")
_QUESTION = struct.Struct("!2H")
_RECORD = struct.Struct("!2HIH")
_OPCODE = 0x7800  # 0 is a query; dnspython's own look at it raises ValueError for a number without a name
_TYPES = {4: dns.rdatatype.A, 6: dns.rdatatype.AAAA}
_SIZES = {4: 4, 6: 16}
# A server that is not able or not willing may leave the question out.
_SHORT = (dns.rcode.FORMERR, dns.rcode.SERVFAIL, dns.rcode.NOTIMP, dns.rcode.REFUSED)


class Query(NamedTuple):
    """A question in the form of the protocol.

    Args:
        question: what is asked.
        name: of it.
        wire: the message to send; its first two bytes are the identifier, a random number.
    """

    question: Question
    name: dns.name.Name
    wire: bytes


class Truncated(Exception):
    """The reply is longer than a datagram: ask again over TCP."""


class Stranger(Exception):
    """The message is no reply to this query, and may come from anywhere: wait on."""


class Useless(Exception):
    """The server has no answer, for a reason of `name_messages`: ask the next one.

    Args:
        reason: one of `name_messages.REASONS`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Record(NamedTuple):
    name: dns.name.Name
    kind: int
    ttl: int
    start: int  # of its data
    size: int


def query(question: Question) -> Query:
    """Return the query for a question. The name is complete: search domains are not applied."""
    name = dns.name.from_text(f"{question.name}.")
    made = dns.message.make_query(name, _TYPES[question.family], use_edns=False)
    return Query(question, name, made.to_wire())


def read(query: Query, untrusted_wire: bytes, datagram: bool) -> Answer:
    """Return what a reply says.

    Args:
        query: that it should be the reply to.
        untrusted_wire: the message.
        datagram: it came by UDP, so it may be truncated.

    Raises:
        Stranger, Truncated, Useless: see there.
    """
    try:
        return _read(query, untrusted_wire, datagram)
    except (dns.exception.DNSException, struct.error, IndexError):
        raise Useless(name_messages.GARBAGE) from None


def _read(query: Query, wire: bytes, datagram: bool) -> Answer:
    if len(wire) < _HEADER.size or wire[:2] != query.wire[:2]:
        raise Stranger
    _, flags, questions, answers, authorities, _ = _HEADER.unpack_from(wire)
    if not flags & dns.flags.QR or flags & _OPCODE:
        raise Stranger
    rcode = flags & 0xF
    if questions == 0 and rcode in _SHORT:
        raise Useless(name_messages.SERVER)
    at = _after_question(query, wire, questions)
    if flags & dns.flags.TC and datagram:
        raise Truncated
    if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        raise Useless(name_messages.SERVER)
    records, at = _records(wire, at, min(answers, MOST_RECORDS))
    final, ttl = _follow(query.name, wire, records)
    kind, size = _TYPES[query.question.family], _SIZES[query.question.family]
    found = [record for record in records if record.kind == kind and record.size == size and record.name == final]
    if rcode == dns.rcode.NXDOMAIN or not found:
        if answers > MOST_RECORDS:
            raise Useless(name_messages.GARBAGE)
        ttl = min(ttl, _negative_ttl(final, wire, at, authorities))
        missing = name_messages.NXDOMAIN if rcode == dns.rcode.NXDOMAIN else name_messages.NODATA
        return Answer(query.question, missing, ttl)
    addresses = sorted({_address(wire, record) for record in found}, key=int)
    ttl = min(ttl, *(record.ttl for record in found))
    part = len(addresses) > name_messages.MOST_ADDRESSES or answers > MOST_RECORDS
    return Answer(
        query.question,
        name_messages.PART if part else name_messages.ADDRESSES,
        ttl,
        addresses[: name_messages.MOST_ADDRESSES],
    )


def _after_question(query: Query, wire: bytes, questions: int) -> int:
    """Return where the answer begins. An off-path attacker knows the question, so this is no proof by itself."""
    try:
        name, at = _name(wire, _HEADER.size)
        kind, class_ = _QUESTION.unpack_from(wire, at)
    except (dns.exception.DNSException, struct.error, IndexError):
        raise Stranger from None
    wanted = (query.name, _TYPES[query.question.family], dns.rdataclass.IN)
    if questions != 1 or (name, kind, class_) != wanted:
        raise Stranger
    return at + _QUESTION.size


def _records(wire: bytes, at: int, count: int) -> tuple[list[_Record], int]:
    """Return so many records of the class IN, and where they end."""
    found = []
    for _ in range(count):
        name, at = _name(wire, at)
        kind, class_, ttl, size = _RECORD.unpack_from(wire, at)
        at += _RECORD.size
        if at + size > len(wire):
            raise dns.exception.FormError
        if class_ == dns.rdataclass.IN:
            found.append(_Record(name, kind, _bounded_ttl(ttl), at, size))
        at += size
    return found, at


def _follow(name: dns.name.Name, wire: bytes, records: list[_Record]) -> tuple[dns.name.Name, int]:
    """Return the name at the end of the chain of aliases, and the least time to live in it."""
    aliases: dict[dns.name.Name, _Record] = {}
    for record in records:
        if record.kind == dns.rdatatype.CNAME:
            aliases.setdefault(record.name, record)
    ttl = name_messages.LONGEST_TTL
    for _ in range(MOST_ALIASES + 1):
        alias = aliases.get(name)
        if alias is None:
            return name, ttl
        ttl = min(ttl, alias.ttl)
        name, _ = _name(wire, alias.start)
    raise Useless(name_messages.LOOP)


def _negative_ttl(name: dns.name.Name, wire: bytes, at: int, authorities: int) -> int:
    """Return for how long a name is missing (RFC 2308, 5), by the SOA record of a zone that it is in; 0 without one."""
    try:
        records, _ = _records(wire, at, min(authorities, MOST_AUTHORITY))
    except (dns.exception.DNSException, struct.error, IndexError):
        return 0
    for record in records:
        if record.kind == dns.rdatatype.SOA and record.size >= 22 and name.is_subdomain(record.name):
            (minimum,) = struct.unpack_from("!I", wire, record.start + record.size - 4)
            return min(record.ttl, _bounded_ttl(minimum))
    return 0


def _bounded_ttl(ttl: int) -> int:
    """Return a time to live of up to a day; one with the highest bit set is 0 (RFC 2181, 8)."""
    return 0 if ttl >= 1 << 31 else min(ttl, name_messages.LONGEST_TTL)


def _address(wire: bytes, record: _Record) -> IPAddress:
    data = wire[record.start : record.start + record.size]
    return ipaddress.IPv4Address(data) if record.size == _SIZES[IPV4] else ipaddress.IPv6Address(data)


def _name(wire: bytes, at: int) -> tuple[dns.name.Name, int]:
    """Return the name at an offset, and where it ends.

    Its pointers are counted first: dnspython before 2.8 follows as many as there are in 16 KiB, 8000 for each record.
    """
    pointers, here = 0, at
    for _ in range(_MOST_STEPS):
        length = wire[here]
        if length >= 0xC0:
            pointers += 1
            here = (length & 0x3F) << 8 | wire[here + 1]
        else:
            here += length + 1
        if length == 0 or pointers > _MOST_POINTERS:
            break
    if length or pointers > _MOST_POINTERS:
        raise dns.exception.FormError
    name, used = dns.name.from_wire(wire, at)
    return name, at + used
