# SPDX-License-Identifier: GPL-2.0-or-later
"""The frame of every netlink message, and a request socket for netfilter. Neither needs pyroute2."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

from ...errors import KernelError
from .. import plain_socket as socket

# linux/netlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NETLINK_DROP_MEMBERSHIP, NETLINK_GET_STRICT_CHK = 270, 1, 2, 12
NETLINK_NETFILTER = 12
NLA_TYPE_MASK = 0x3FFF

RECEIVE_BYTES = 1 << 16  # the kernel sends dumps in pieces of at most 32 KiB
_MOST_EVENTS = 10_000  # of one round; with more to come poll wakes us again at once, and other work has its turn
ANSWER_SECONDS = 5.0  # the kernel answers within the send() itself; this only bounds the unthinkable
HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, sender
_HEAD = struct.Struct("=IH")  # of it, length and type
ATTRIBUTE = struct.Struct("=HH")  # length, type


def opened(protocol: int) -> socket.socket:
    """Return a bound netlink socket of this protocol. OSError when there is none."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        made.bind((0, 0))
    except OSError:
        made.close()
        raise
    return made


class Listener:
    """A socket that becomes readable when something changes. What changed is not looked at.

    Args:
        protocol: of netlink.
        groups: multicast groups to hear.
        words: for errors.

    Raises:
        KernelError: it cannot be opened.
    """

    def __init__(self, protocol: int, groups: tuple[int, ...], words: str) -> None:
        self._protocol, self._groups, self._words = protocol, groups, words
        self.kinds = set[int]()  # types of the messages since this was last cleared; a hint for people
        self._socket = self._opened()

    def _opened(self) -> socket.socket:
        try:
            made = opened(self._protocol)
            try:
                made.setblocking(False)
                for group in self._groups:
                    made.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
            except OSError:
                made.close()
                raise
        except OSError as error:
            raise KernelError(self._words, error.errno or errno.EIO) from None
        return made

    def fileno(self) -> int:
        """Return the descriptor for poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def reopen(self) -> None:
        """Replace a socket that failed. KernelError when there is no other one; the old one is kept then."""
        made = self._opened()
        self._socket.close()
        self._socket = made

    def drain(self) -> bool:
        """Eat what is there. True if there was anything; an overrun (ENOBUFS) is one more reason to look.

        Raises:
            KernelError: the socket cannot be read.
        """
        return drain(self._socket, self._words, self.kinds)


def messages(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield the messages of one packet: offset, length, type, flags and sequence number of each."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
        yield offset, length, kind, flags, sequence
        offset += (max(length, HEADER.size) + 3) & ~3


def raise_errno(data: bytes, offset: int, length: int) -> None:
    """NLMSG_ERROR and NLMSG_DONE both carry the negative errno first; 0 is success."""
    number = struct.unpack_from("=i", data, offset + HEADER.size)[0] if length >= HEADER.size + 4 else 0
    if number:
        raise OSError(-number, "netlink")


def drain(listening: socket.socket, words: str, kinds: set[int] | None = None) -> bool:
    """Eat what a socket without waiting has. True if there was anything, or more than it could hold (ENOBUFS).

    Args:
        listening: to events.
        words: for the error.
        kinds: takes the type of the first message of each packet.

    Raises:
        KernelError: it cannot be read, with these words.
    """
    seen = False
    for _ in range(_MOST_EVENTS):
        try:
            head = listening.recv(_HEAD.size)
            if not head:
                return seen
            if kinds is not None and len(head) == _HEAD.size:
                kinds.add(_HEAD.unpack(head)[1])
        except BlockingIOError:
            return seen
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise KernelError(words, error.errno or errno.EIO) from None
        seen = True
    return seen


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, with what fills it up to four bytes."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the attributes between two places: type without its flags, and where its value begins and ends."""
    while offset + ATTRIBUTE.size <= end:
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            length = 4  # nonsense, of which 0 would be read for ever
        yield kind & NLA_TYPE_MASK, offset + 4, offset + length
        offset += (length + 3) & ~3


class Netfilter:
    """Requests to one subsystem of netfilter; the bodies of the answers come back raw.

    Args:
        subsystem: NFNL_SUBSYS_… of linux/netfilter/nfnetlink.h.
    """

    HEADER_BYTES = HEADER.size + 4  # with struct nfgenmsg, where the attributes begin

    def __init__(self, subsystem: int) -> None:
        self._subsystem = subsystem
        self._sequence = 0
        self._socket = opened(NETLINK_NETFILTER)
        self._socket.settimeout(ANSWER_SECONDS)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    @property
    def raw(self) -> socket.socket:
        """The socket itself, for messages that are no request."""
        return self._socket

    def request(self, kind: int, flags: int, body: bytes = b"", family: int = socket.AF_UNSPEC) -> Iterator[bytes]:
        """Send one request and give the messages of its answer, each with its headers.

        Args:
            kind: message type within the subsystem.
            flags: NLM_F_DUMP: up to the end of the dump; NLM_F_ACK: up to the acknowledgement; else one message.
            body: attributes.
            family: address family of struct nfgenmsg.

        Raises:
            OSError: with the errno of the kernel; InterruptedError for a dump that may be incomplete.
        """
        self._sequence += 1
        length, number = self.HEADER_BYTES + len(body), self._subsystem << 8 | kind
        header = HEADER.pack(length, number, flags | NLM_F_REQUEST, self._sequence, 0)
        self._socket.send(header + struct.pack("=BBH", family, 0, 0) + body)
        interrupted = False
        while True:
            data = self._socket.recv(RECEIVE_BYTES)
            for offset, size, answer, answer_flags, sequence in messages(data):
                if sequence != self._sequence:
                    continue  # the tail of a request that was given up
                interrupted |= bool(answer_flags & NLM_F_DUMP_INTR)
                if answer in (NLMSG_ERROR, NLMSG_DONE):
                    raise_errno(data, offset, size)
                    if interrupted:
                        raise InterruptedError(errno.EINTR, "dump interrupted")
                    return
                yield data[offset : offset + size]
                if flags & (NLM_F_DUMP | NLM_F_ACK) == 0:
                    return
