# SPDX-License-Identifier: GPL-2.0-or-later
"""Statements of the rules of `core.nft.limits` as the kernel's expressions; `encode` says why."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from functools import lru_cache

from ..netlink import wire
from .batch import NFT_REG_1, expression, text
from .expressions import (
    ACCEPT,
    AT_MOST,
    DROP,
    EQUAL,
    ESTABLISHED,
    IIFNAME,
    JUMP,
    L4PROTO,
    NEW,
    NFTA_CT_DIRECTION,
    NFTA_CT_DREG,
    NFTA_CT_KEY,
    NO_BITS,
    OIFNAME,
    PROTOCOLS,
    TRANSPORT,
    UNEQUAL,
    bitwise,
    compare,
    ending,
    load,
    lookup,
    masked,
    numbers,
    payload,
    state,
)

# linux/netfilter/nf_tables.h, nf_conntrack_common.h
_CT_WAY, _CT_STATUS, _CT_EXPIRATION, _CT_PROTO_DST, _CT_ID = 1, 2, 5, 12, 23
_DYNSET_NAME, _DYNSET_OP, _DYNSET_SREG_KEY, _DYNSET_TIMEOUT, _UPDATE = 1, 3, 4, 6, 1
_BYTEORDER_SREG, _BYTEORDER_DREG, _BYTEORDER_OP, _BYTEORDER_LEN, _BYTEORDER_SIZE, _TO_NETWORK = 1, 2, 3, 4, 5, 1
_SYN, _SYN_ACK = 0x02, 0x12
_STATES = {"established": ESTABLISHED, "new": NEW}
_STATUS = {"assured": 4, "confirmed": 8}
_DIRECTIONS = {"original": 0, "reply": 1}
_UNITS = {"ms": 1, "s": 1000}
_WORD = r"[A-Za-z0-9._-]{1,255}"


@lru_cache(maxsize=64)  # of a vif, the rules of both families are the same
def rule(words: str) -> bytes | None:
    """Return the expressions of a rule; None where one of its statements is not known here."""
    found = b""
    while words:
        for pattern, encode in _STATEMENTS:
            match = pattern.match(words)
            if match is not None:
                found += encode(match)
                words = words[match.end() :]
                break
        else:
            return None
    return found


def _ct(key: int, direction: int | None = None) -> bytes:
    way = wire.attribute(NFTA_CT_DIRECTION, bytes((direction,))) if direction is not None else b""
    return expression("ct", numbers((NFTA_CT_KEY, key), (NFTA_CT_DREG, NFT_REG_1)) + way)


def _state(match: re.Match[str]) -> bytes:
    return state(sum(_STATES[word] for word in match[1].split(",")))


def _status(match: re.Match[str]) -> bytes:
    return _ct(_CT_STATUS) + masked(_STATUS[match[2]]) + compare(EQUAL if match[1] else UNEQUAL, NO_BITS)


def _direction(match: re.Match[str]) -> bytes:
    return _ct(_CT_WAY) + compare(EQUAL, bytes((_DIRECTIONS[match[1]],)))


def _port(match: re.Match[str]) -> bytes:
    asked = _ct(_CT_PROTO_DST, _DIRECTIONS["original"])
    return asked + compare(UNEQUAL if match[1] else EQUAL, struct.pack("!H", int(match[2])))


def _other_port(match: re.Match[str]) -> bytes:
    return payload(TRANSPORT, 2, 2) + compare(UNEQUAL, struct.pack("!H", int(match[1])))


def _protocol(match: re.Match[str]) -> bytes:
    return load(L4PROTO) + compare(EQUAL, bytes((PROTOCOLS[match[1]],)))


def _begins(_: re.Match[str]) -> bytes:
    protocol = load(L4PROTO) + compare(EQUAL, bytes((PROTOCOLS["tcp"],)))
    return protocol + payload(TRANSPORT, 13, 1) + bitwise(bytes((_SYN_ACK,)), bytes(1)) + compare(EQUAL, bytes((_SYN,)))


def _expires(match: re.Match[str]) -> bytes:
    ways = ((_BYTEORDER_SREG, NFT_REG_1), (_BYTEORDER_DREG, NFT_REG_1), (_BYTEORDER_OP, _TO_NETWORK))
    swapped = expression("byteorder", numbers(*ways, (_BYTEORDER_LEN, 4), (_BYTEORDER_SIZE, 4)))
    return _ct(_CT_EXPIRATION) + swapped + compare(AT_MOST, struct.pack("!I", int(match[1]) * _UNITS["s"]))


def _among(match: re.Match[str]) -> bytes:
    return _ct(_CT_ID) + lookup(match[2], inverted=bool(match[1]))


def _update(match: re.Match[str]) -> bytes:
    timeout = wire.attribute(_DYNSET_TIMEOUT, struct.pack("!Q", int(match[2]) * _UNITS[match[3]]))
    words = numbers((_DYNSET_SREG_KEY, NFT_REG_1), (_DYNSET_OP, _UPDATE))
    return _ct(_CT_ID) + expression("dynset", words + timeout + text(_DYNSET_NAME, match[1]))


def _way(match: re.Match[str]) -> bytes:
    return load(IIFNAME if match[1] == "i" else OIFNAME) + lookup(match[2], to_verdict=True)


def _fixed(value: bytes) -> Callable[[re.Match[str]], bytes]:
    return lambda _: value


COUNTER = expression("counter", wire.attribute(1, bytes(8)) + wire.attribute(2, bytes(8)))
_STATEMENTS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], bytes]], ...] = tuple(
    (re.compile(rf"{words}(?: |$)"), encode)
    for words, encode in (
        ("accept", _fixed(ending(ACCEPT))),
        ("drop", _fixed(ending(DROP))),
        ("counter", _fixed(COUNTER)),
        (rf"jump ({_WORD})", lambda match: ending(JUMP, match[1])),
        (rf"update @({_WORD}) \{{ ct id timeout (\d{{1,8}})(ms|s) \}}", _update),
        (r"meta l4proto (udp|tcp|icmp|icmpv6)", _protocol),
        (r"ct state ((?:established|new)(?:,(?:established|new))?)", _state),
        (r"ct status (! )?(assured|confirmed)", _status),
        (r"ct direction (original|reply)", _direction),
        (r"ct expiration <= (\d{1,6})s", _expires),
        (r"ct original proto-dst (!= )?(\d{1,5})", _port),
        (rf"ct id (!= )?@({_WORD})", _among),
        (r"th dport != (\d{1,5})", _other_port),
        (r"tcp flags & \(syn \| ack\) == syn", _begins),
        (rf"([io])ifname vmap @({_WORD})", _way),
    )
)
