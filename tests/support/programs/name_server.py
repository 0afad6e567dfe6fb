# SPDX-License-Identifier: GPL-2.0-or-later
"""A name server that is hostile: the first label of the name that it is asked for says what it does.

Messages are packed by hand, without a DNS library: the judged program reads them by one.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

A, CNAME, SOA, TXT, AAAA = 1, 5, 6, 16, 28
IN, CHAOS = 1, 3
REPLY, TRUNCATED, AVAILABLE = 0x8000, 0x0200, 0x0080
SERVFAIL, NXDOMAIN, REFUSED, FORMERR = 2, 3, 5, 1
ZONE = "hostile.test"
DRIP_SECONDS = 0.3
FLOOD = 5_000  # more than twice what one try reads


class Query(NamedTuple):
    """A question as it came."""

    wire: bytes
    name: str
    kind: int

    @property
    def label(self) -> str:
        """The first label: what to do."""
        return self.name.partition(".")[0]

    @property
    def question(self) -> bytes:
        """Its section."""
        return packed(self.name) + struct.pack("!2H", self.kind, IN)


def packed(name: str) -> bytes:
    """A name, uncompressed."""
    labels = [label.encode() for label in name.split(".") if label]
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def record(owner: bytes, kind: int, data: bytes, ttl: int = 300, class_: int = IN, size: int | None = None) -> bytes:
    """A resource record; `owner` is packed, and `size` the length that it says."""
    return owner + struct.pack("!2HIH", kind, class_, ttl, len(data) if size is None else size) + data


def address(owner: bytes, text: str, ttl: int = 300) -> bytes:
    """A record with an address."""
    found = ipaddress.ip_address(text)
    return record(owner, A if found.version == 4 else AAAA, found.packed, ttl)


def soa(zone: str, minimum: int, ttl: int = 300) -> bytes:
    """A SOA record, by which a missing name has its time to live."""
    data = packed(f"ns.{zone}") + packed(f"admin.{zone}") + struct.pack("!5I", 1, 7200, 900, 86400, minimum)
    return record(packed(zone), SOA, data, ttl)


OWNER = b"\xc0\x0c"  # a pointer to the question's name


def reply(
    query: Query, *answers: bytes, flags: int = 0, count: int | None = None, authority: tuple[bytes, ...] = ()
) -> bytes:
    """A message that answers a query; `count` is how many answers it claims to have."""
    header = struct.pack(
        "!2s5H",
        query.wire[:2],
        REPLY | AVAILABLE | flags,
        1,
        len(answers) if count is None else count,
        len(authority),
        0,
    )
    return header + query.question + b"".join(answers) + b"".join(authority)


def parse(wire: bytes) -> Query:
    """The question of a query, of which the program under test is known to make good ones."""
    at, labels = 12, []
    while wire[at]:
        labels.append(wire[at + 1 : at + 1 + wire[at]].decode())
        at += 1 + wire[at]
    (kind,) = struct.unpack_from("!H", wire, at + 1)
    return Query(wire, ".".join(labels), kind)


def other_id(wire: bytes) -> bytes:
    """The same with another identifier."""
    return bytes((wire[0] ^ 1,)) + wire[1:]


def chain(query: Query, length: int) -> bytes:
    """A chain of so many aliases, and an address at its end."""
    names = [OWNER, *(packed(f"c{number}.{ZONE}") for number in range(length))]
    links = [record(owner, CNAME, target) for owner, target in itertools.pairwise(names)]
    return reply(query, *links, address(names[-1], "192.0.2.7"))


def many(query: Query, count: int) -> bytes:
    """So many addresses, the last first."""
    base = ipaddress.ip_address("198.18.0.0")
    return reply(query, *(address(OWNER, str(base + number)) for number in reversed(range(count))))


def pointers(query: Query) -> bytes:
    """A record full of pointers, each to the one before it, and a thousand records whose names are at its end."""
    begin = len(reply(query)) + 12  # of the data of the first record
    count = (0x4000 - begin) // 2  # a pointer has 14 bits
    links = [0xC00C, *(0xC000 | (begin + 2 * number) for number in range(count - 1))]
    data = b"".join(struct.pack("!H", link) for link in links)
    last = struct.pack("!H", 0xC000 | (begin + len(data) - 2))
    return reply(query, record(OWNER, TXT, data), *(record(last, A, b"\xc0\0\x02\x01") for _ in range(1000)))


def looped(query: Query, target: str) -> bytes:
    """Two aliases that lead to each other, or one that leads to itself."""
    return reply(query, record(OWNER, CNAME, packed(target)), record(packed(target), CNAME, packed(query.name)))


# What is one message, sent as it is, over UDP or TCP.
REPLIES: dict[str, Callable[[Query], bytes]] = {
    "good": lambda query: reply(query, address(OWNER, "192.0.2.1" if query.kind == A else "2001:db8::1")),
    "both": lambda query: reply(query, address(OWNER, "192.0.2.1"), address(OWNER, "2001:db8::1")),
    "private": lambda query: reply(query, address(OWNER, "10.137.0.9"), address(OWNER, "127.0.0.1")),
    "repeated": lambda query: reply(query, *[address(OWNER, "192.0.2.1")] * 100),
    "alias": lambda query: chain(query, 3),
    "longalias": lambda query: chain(query, 16),
    "toolong": lambda query: chain(query, 17),
    "dangling": lambda query: reply(query, record(OWNER, CNAME, packed(f"endless{time.monotonic_ns()}.{ZONE}"))),
    "loop": lambda query: looped(query, f"other.{ZONE}"),
    "selfloop": lambda query: looped(query, query.name),
    "foreign": lambda query: reply(query, address(packed("bank.example"), "192.0.2.66")),
    "mixed": lambda query: reply(query, address(packed("bank.example"), "192.0.2.66"), address(OWNER, "192.0.2.1")),
    "chaos": lambda query: reply(query, record(OWNER, A, b"\xc0\0\x02\x42", class_=CHAOS)),
    "longaddress": lambda query: reply(query, record(OWNER, A, b"\xc0\0\x02\x42\0")),
    "beyond": lambda query: reply(query, record(OWNER, A, b"\xc0\0\x02\x42", size=60_000)),
    "claims": lambda query: reply(query, address(OWNER, "192.0.2.1"), count=65_535),
    "selfpointer": lambda query: reply(query, record(struct.pack("!H", 0xC000 | len(reply(query))), A, b"\0" * 4)),
    "forward": lambda query: reply(query, record(b"\xff\xff", A, b"\0" * 4)),
    "badlabel": lambda query: reply(query, record(b"\x80\x01", A, b"\0" * 4)),
    "noise": lambda query: reply(query) [:6] + b"\0\x01\0\0\0\0" + query.question + random.Random(7).randbytes(900),
    "noisy": lambda query: reply(query, count=3) + random.Random(7).randbytes(900),
    "wrongid": lambda query: other_id(reply(query, address(OWNER, "192.0.2.66"))),
    "wrongname": lambda query: reply(query._replace(name="bank.example"), address(OWNER, "192.0.2.66")),
    "wrongtype": lambda query: reply(query._replace(kind=TXT), address(OWNER, "192.0.2.66")),
    "noreply": lambda query: query.wire,
    "opcode": lambda query: reply(query, address(OWNER, "192.0.2.66"), flags=0x2800),
    "twoquestions": lambda query: reply(query)[:4] + b"\0\x02" + reply(query, address(OWNER, "192.0.2.66"))[6:],
    "half": lambda query: reply(query)[:7],
    "noquestion": lambda query: reply(query)[:4] + b"\0\0" + reply(query)[6:12],
    "servfail": lambda query: reply(query, flags=SERVFAIL),
    "refused": lambda query: reply(query, flags=REFUSED),
    "formerr": lambda query: reply(query, flags=FORMERR)[:4] + bytes(8),
    "missing": lambda query: reply(query, flags=NXDOMAIN, authority=(soa(ZONE, 120),)),
    "missing0": lambda query: reply(query, flags=NXDOMAIN, authority=(soa("example", 120),)),
    "nodata": lambda query: reply(query, authority=(soa(ZONE, 90, 80),)),
    "noisysoa": lambda query: reply(query, authority=(b"\xff\xff",)),
    "longttl": lambda query: reply(query, address(OWNER, "192.0.2.1", ttl=0x7FFFFFFF)),
    "badttl": lambda query: reply(query, address(OWNER, "192.0.2.1", ttl=0x80000005)),
    "shortalias": lambda query: reply(
        query, record(OWNER, CNAME, packed(f"x.{ZONE}"), ttl=5), address(packed(f"x.{ZONE}"), "192.0.2.1", ttl=900)
    ),
}  # fmt: skip
# What is too long for a datagram.
LONG: dict[str, Callable[[Query], bytes]] = {
    "records": lambda query: many(query, 4000),
    "hundred": lambda query: many(query, 100),
    "sixtyfour": lambda query: many(query, 64),
    "pointers": pointers,
    "endless": lambda query: chain(query, 200),
    "wrongtcp": lambda query: other_id(many(query, 100)),
    "zeros": lambda query: bytes(65_535),
}

# What a good reader makes of each: addresses and time to live, or what it is instead.
ONE, OTHER = ["192.0.2.1"], ["192.0.2.7"]
NOT_THIS = "no reply to this"

SAYS: dict[str, Any] = {
    "good": (ONE, 300),
    "both": (ONE, 300),
    "private": (["10.137.0.9", "127.0.0.1"], 300),
    "repeated": (ONE, 300),
    "alias": (OTHER, 300),
    "longalias": (OTHER, 300),
    "shortalias": (ONE, 5),
    "mixed": (ONE, 300),
    "longttl": (ONE, 86_400),
    "badttl": (ONE, 0),
    "toolong": "loop",
    "endless": "loop",
    "loop": "loop",
    "selfloop": "loop",
    "dangling": ("nodata", 0),
    "foreign": ("nodata", 0),
    "chaos": ("nodata", 0),
    "longaddress": ("nodata", 0),
    "noisysoa": ("nodata", 0),
    "nodata": ("nodata", 80),
    "missing": ("nxdomain", 120),
    "missing0": ("nxdomain", 0),
    **dict.fromkeys(("beyond", "claims", "selfpointer", "forward", "badlabel", "noise", "noisy"), "garbage"),
    **dict.fromkeys(("servfail", "refused", "formerr"), "server"),
    **dict.fromkeys(
        ("wrongid", "wrongname", "wrongtype", "noreply", "opcode", "half", "noquestion", "twoquestions"), NOT_THIS
    ),
    "records": ("part", 64),
    "hundred": ("part", 64),
    "sixtyfour": ("whole", 64),
    "pointers": "garbage",
    "wrongtcp": NOT_THIS,
    "zeros": NOT_THIS,
}


class Server:
    """The server, at an address of this network namespace, in threads of this process.

    Args:
        at: the address.
        port: of UDP and TCP.
        says: what it does for every name; "": what the name's first label says.
        make: makes sockets, of another network namespace perhaps.

    Attributes:
        asked: the names that came, in order.
    """

    def __init__(
        self, at: str, port: int = 53, says: str = "", make: Callable[[int, int], socket.socket] = socket.socket
    ) -> None:
        family = socket.AF_INET6 if ":" in at else socket.AF_INET
        self.asked: list[str] = []
        self._says = says
        self._udp, self._tcp = make(family, socket.SOCK_DGRAM), make(family, socket.SOCK_STREAM)
        for each in (self._udp, self._tcp):
            each.bind((at, port))
        self._tcp.listen()
        for work in (self._serve_udp, self._serve_tcp):
            threading.Thread(target=work, daemon=True).start()

    def _serve_udp(self) -> None:
        while True:
            wire, client = self._udp.recvfrom(4096)
            query = parse(wire)
            self.asked.append(query.name)
            threading.Thread(target=self._answer, args=(query, client), daemon=True).start()

    def _answer(self, query: Query, client: Any) -> None:
        def send(data: bytes) -> None:
            self._udp.sendto(data, client)

        good = REPLIES["good"](query)
        label = self._says or query.label
        if label in REPLIES:
            send(REPLIES[label](query))
        elif label == "late":
            for number in range(100):
                send(other_id(good)[: 40 + number % 5])
            send(good)
        elif label == "flood":
            for _ in range(FLOOD):
                send(other_id(good))
        elif label == "empty":
            send(b"")
            send(os.urandom(40))
        elif label == "second":
            if self.asked.count(query.name) > 1:
                send(good)
        elif label != "silent":
            send(reply(query, flags=TRUNCATED))

    def _serve_tcp(self) -> None:
        while True:
            client, _ = self._tcp.accept()
            threading.Thread(target=self._converse, args=(client,), daemon=True).start()

    def _converse(self, client: socket.socket) -> None:
        with client:
            wire = client.recv(4096)
            query = parse(wire[2:])
            self.asked.append(f"{query.name} (TCP)")
            try:
                self._send_all(client, query)
            except OSError:
                return  # the client has had enough

    def _send_all(self, client: socket.socket, query: Query) -> None:
        if query.label in LONG:
            data = LONG[query.label](query)
            client.sendall(struct.pack("!H", len(data)) + data)
        elif query.label == "drip":
            for byte in struct.pack("!H", 400) + bytes(400):
                client.sendall(bytes((byte,)))
                time.sleep(DRIP_SECONDS)
        elif query.label == "partly":
            client.sendall(struct.pack("!H", 400) + bytes(3))
        elif query.label == "hold":
            client.recv(1)
