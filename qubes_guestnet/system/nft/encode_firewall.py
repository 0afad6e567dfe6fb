# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of `core.firewall` as the kernel's expressions; `encode` says why.

A list can have thousands of rules, so a rule is taken apart by its words and not by patterns. As in `encode`, a rule is
known as a whole or is nft's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

from ...core.namedtuple import NamedTuple
from .. import plain_socket as socket
from ..netlink import wire
from . import batch
from .batch import expression, nested, number
from .encode_rules import COUNTER
from .expressions import (
    ACCEPT,
    AT_LEAST,
    AT_MOST,
    EQUAL,
    ESTABLISHED,
    IIFGROUP,
    IIFNAME,
    JUMP,
    L4PROTO,
    NETWORK,
    PROTOCOLS,
    RELATED,
    TRANSPORT,
    UNEQUAL,
    bitwise,
    compare,
    ending,
    load,
    lookup,
    payload,
    state,
)

# linux/netfilter/nf_tables.h
_REJECT_TYPE, _REJECT_CODE, _ICMP_UNREACHABLE = 1, 2, 0
_USERDATA, _COMMENT, _LONGEST_COMMENT = 7, 0, 128
ANONYMOUS = "__set%d"  # the kernel puts a number in


class _Family(NamedTuple):
    """The headers of one family.

    Args:
        number: of it.
        places: where source and destination begin.
        length: of an address, in bytes.
        icmp: the word of its errors' protocol.
        prohibited: the code of `admin-prohibited`.
    """

    number: int
    places: Mapping[str, int]
    length: int
    icmp: str
    prohibited: int


_FAMILIES = {
    "ip": _Family(socket.AF_INET, {"saddr": 12, "daddr": 16}, 4, "icmp", 13),
    "ip6": _Family(socket.AF_INET6, {"saddr": 8, "daddr": 24}, 16, "icmpv6", 1),
}

Words = Iterator[str]


class Unknown(ValueError):
    """A word that no rule of the firewall has."""


class Rule:
    """A rule, taken apart.

    Args:
        words: of the rule, behind its chain.
        family: of its table.
        identifier: of a set without a name, within the transaction.

    Attributes:
        expressions: of it, and its comment, as attributes of the message.
        protocols: numbers that the set without a name has; none: there is no such set.

    Raises:
        Unknown: it has a word that is not known here.
    """

    def __init__(self, words: str, family: str, identifier: int) -> None:
        self._family, self._word, self._identifier = _FAMILIES[family], family, identifier
        self._found: list[bytes] = []
        self._protocol = 0  # the only one that the packet can have by now
        self._comment = b""
        self.protocols: tuple[int, ...] = ()
        left = iter(words.split(" "))
        for word in left:
            statement = _STATEMENTS.get(word)
            if statement is None or self._comment:
                raise Unknown(word)
            try:
                statement(self, word, left)
            except (StopIteration, KeyError, ValueError, OverflowError, OSError, struct.error):
                raise Unknown(words) from None

    @property
    def expressions(self) -> bytes:
        """Its expressions, and its comment."""
        return nested(batch.NFTA_RULE_EXPRESSIONS, b"".join(self._found)) + self._comment

    # --- conditions ----------------------------------------------------------------------------------------------

    def address(self, word: str, left: Words) -> None:
        """Source or destination, as an address, a network, or by a set or map."""
        if word != self._word:
            raise Unknown(word)
        place, value, length = self._family.places[next(left)], next(left), self._family.length
        if value == "vmap":
            self._found += [_payload(NETWORK, place, length), lookup(_named(next(left)), to_verdict=True)]
        elif value.startswith("@"):
            self._found += [_payload(NETWORK, place, length), lookup(_named(value))]
        else:
            self._network(place, value)

    def _network(self, place: int, value: str) -> None:
        address, slash, bits = value.partition("/")
        packed = socket.inet_pton(self._family.number, address)
        left = int(bits) if slash else 8 * len(packed)
        whole, rest = divmod(left, 8)
        if not 0 < left <= 8 * len(packed) or (slash and str(left) != bits):
            raise Unknown(value)
        if not rest:  # as nft does it
            self._found += [_payload(NETWORK, place, whole), _compared(EQUAL, packed[:whole])]
            return
        mask = (((1 << left) - 1) << (8 * len(packed) - left)).to_bytes(len(packed), "big")
        kept = bytes(one & other for one, other in zip(packed, mask, strict=True))
        self._found += [
            _payload(NETWORK, place, len(packed)),
            bitwise(mask, bytes(len(packed))),
            _compared(EQUAL, kept),
        ]

    def meta(self, _word: str, left: Words) -> None:
        """The protocol, or one of two."""
        if next(left) != "l4proto":
            raise Unknown("meta")
        word = next(left)
        if word != "{":
            self._protocol = PROTOCOLS[word]
            self._found += [_LOADED, _PROTOCOL_IS[word]]
            return
        found = []
        for word in left:
            if word == "}":
                break
            found.append(PROTOCOLS[word.removesuffix(",")])
        else:
            raise Unknown("{")  # nothing closes it
        if self.protocols or not found:
            raise Unknown("{")
        self.protocols = tuple(found)
        self._found += [_LOADED, lookup(ANONYMOUS, self._identifier)]

    def port(self, _word: str, left: Words) -> None:
        """The destination port, or a range of them."""
        if next(left) != "dport":
            raise Unknown("th")
        first, dash, last = next(left).partition("-")
        self._found.append(_payload(TRANSPORT, 2, 2))
        if dash:
            self._found += [_compared(AT_LEAST, _port(first)), _compared(AT_MOST, _port(last))]
        else:
            self._found.append(_compared(EQUAL, _port(first)))

    def kind(self, protocol: str, left: Words) -> None:
        """The type of an ICMP message. nft adds the protocol where the rule does not say it."""
        if next(left) != "type" or protocol != self._family.icmp or self._protocol != PROTOCOLS[protocol]:
            raise Unknown(protocol)
        self._found += [_payload(TRANSPORT, 0, 1), _compared(EQUAL, bytes((int(next(left)),)))]

    def tracked(self, _word: str, left: Words) -> None:
        """Match conntrack's state of the packet."""
        if (next(left), next(left)) != ("state", "established,related"):
            raise Unknown("ct")
        self._found.append(state(ESTABLISHED | RELATED))

    def group(self, _word: str, left: Words) -> None:
        """Match the group of the incoming interface."""
        if next(left) != "!=":
            raise Unknown("iifgroup")
        self._found += [load(IIFGROUP), compare(UNEQUAL, struct.pack("=I", int(next(left))))]

    def interface(self, _word: str, left: Words) -> None:
        """The beginning of the name of the interface that it came by."""
        relation, name = next(left), next(left)
        beginning = name[1:-2]
        if relation != "!=" or name != f'"{beginning}*"' or not beginning.isalnum() or len(beginning) > 14:
            raise Unknown("iifname")
        self._found += [load(IIFNAME), compare(UNEQUAL, beginning.encode("ascii"))]

    # --- what becomes of the packet --------------------------------------------------------------------------------

    def counter(self, _word: str, _left: Words) -> None:
        """Count it."""
        self._found.append(COUNTER)

    def accept(self, _word: str, _left: Words) -> None:
        """Accept it."""
        self._found.append(_ACCEPTED)

    def jump(self, _word: str, left: Words) -> None:
        """Jump to another chain."""
        self._found.append(ending(JUMP, next(left)))

    def reject(self, _word: str, left: Words) -> None:
        """Reject the packet with an error."""
        if (next(left), next(left), next(left)) != ("with", self._family.icmp, "admin-prohibited"):
            raise Unknown("reject")
        code = wire.attribute(_REJECT_CODE, bytes((self._family.prohibited,)))
        words = number(_REJECT_TYPE, _ICMP_UNREACHABLE) + code
        self._found.append(expression("reject", words))

    def comment(self, _word: str, left: Words) -> None:
        """Keep a comment, one word in quotes, which ends the rule."""
        quoted = next(left)
        words = quoted[1:-1].encode("ascii") + b"\0"
        if len(words) > _LONGEST_COMMENT or quoted != f'"{quoted[1:-1]}"' or b'"' in words or words == b"\0":
            raise Unknown(quoted)
        self._comment = wire.attribute(_USERDATA, bytes((_COMMENT, len(words))) + words)


_LOADED = load(L4PROTO)
_PROTOCOL_IS = {word: compare(EQUAL, bytes((protocol,))) for word, protocol in PROTOCOLS.items()}
_ACCEPTED = ending(ACCEPT)
_STATEMENTS: dict[str, Callable[[Rule, str, Words], None]] = {
    **dict.fromkeys(_FAMILIES, Rule.address),
    **dict.fromkeys(("icmp", "icmpv6"), Rule.kind),
    "meta": Rule.meta,
    "th": Rule.port,
    "ct": Rule.tracked,
    "iifgroup": Rule.group,
    "iifname": Rule.interface,
    "counter": Rule.counter,
    "accept": Rule.accept,
    "jump": Rule.jump,
    "reject": Rule.reject,
    "comment": Rule.comment,
}


@lru_cache(maxsize=64)
def _before(relation: int, length: int) -> bytes:
    """What comes before the value in the expression that compares so many bytes."""
    return compare(relation, bytes(length))[: -(length + -length % 4)]


def _compared(relation: int, value: bytes) -> bytes:
    """As `compare`, which packs seven attributes; of a list only the value differs from rule to rule."""
    return _before(relation, len(value)) + value + bytes(-len(value) % 4)


_payload = lru_cache(maxsize=64)(payload)


def _named(word: str) -> str:
    if not word.startswith("@") or word == "@":
        raise Unknown(word)
    return word[1:]


def _port(word: str) -> bytes:
    port = int(word)
    if str(port) != word:
        raise Unknown(word)
    return port.to_bytes(2, "big")
