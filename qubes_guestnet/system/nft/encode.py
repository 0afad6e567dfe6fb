# SPDX-License-Identifier: GPL-2.0-or-later
"""Encode the transactions of a vif and of the firewall as netlink messages, instead of starting nft for them.

nft 1.0.6 reads all sets and chains of all tables at each load, of which 250 vifs have thousands: the elements of the
250th vif took it 10 ms of processor time, and those of the first one 4; as messages they take 0.2 and 0.05. The texts
stay what the planners write, people read and nft would load; this is a second way to load those of a few words, and
`tests/contract/netfilter/test_nft_encode*.py` compares what nft lists after the one and after the other.

One transaction is one message to its socket, whose buffer has to hold it: 1000 rules are 450 KB, more than its usual
size. nft raises the buffer only as root of the first user namespace; here it is also raised as far as anyone may.

pyroute2 has classes for these messages (`nftsocket`), but what nft keeps with sets and elements, by which it lists
them, is a field of another type in 0.7.2 than in 0.9.7; and the frame of a transaction is here for the guard anyway.
Each line is known as a whole, or the transaction is nft's: nothing is guessed.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Callable
from functools import lru_cache

from ...core.nft.tables import (
    DNS_SET,
    FAMILIES,
    FIREWALL,
    FIREWALL_MAP,
    IP_FAMILIES,
    LIMITS,
    LIMITS_MAP,
    NAME_SETS,
    NAMED,
    QUBES,
)
from .. import plain_socket as socket
from ..netlink import wire
from . import batch, encode_firewall, encode_rules, expressions, kept
from .batch import NLM_F_APPEND, NLM_F_CREATE, Message, header, nested, number, text
from .kernel import NFNL_SUBSYS_NFTABLES
from .program import BUFFER, Refused

# linux/netfilter/nf_tables.h
_SET_TABLE, _SET_NAME, _SET_FLAGS, _SET_KEY_TYPE, _SET_KEY_LEN, _SET_DATA_TYPE, _SET_DATA_LEN = range(1, 8)
_SET_DESC, _SET_ID, _SET_TIMEOUT, _SET_USERDATA, _DESC_SIZE = 9, 10, 11, 13, 1
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_SET_ID = 1, 2, 3, 4
_ELEMENT_KEY, _ELEMENT_DATA, _ELEMENT_USERDATA = 1, 2, 6
_SET_MAP, _SET_TIMEOUTS, _SET_EVALUATED, _VERDICTS = 0x8, 0x10, 0x20, -0x100
_POLICIES = {"drop": 0, "accept": 1}
# What nft keeps with a set, by which it lists it: type ifname → verdict, and typeof ct id (libnftnl/udata.h).
_MAP_WORDS = bytes.fromhex("00040100000001040000000006040000" + "0000")
_IDS_WORDS = bytes.fromhex("000402000000031400040c000000010c0004170000000104ffffffff")
_SET_WORDS = bytes.fromhex("000402000000")
_QUBES_WORDS = bytes.fromhex("000402000000010400000000060400000000")
_PROTOCOLS_WORDS = bytes.fromhex("000401000000030e00040900000001060004100000" + "00")
_ANONYMOUS, _CONSTANT, _PROTOCOL, _PROTOCOL_BYTES = 0x1, 0x2, 12, 1
_IFNAME, _IFNAME_BYTES, _CT_ID_BYTES = 41, 16, 4
_ADDRESSES = {"ip": ("ipv4_addr", 7, 4), "ip6": ("ipv6_addr", 8, 16), "arp": ("", 0, 0)}
# Some 9000 rules; of more, these messages would take a good part of the memory that the agent may have.
_LONGEST = 4 * 1024 * 1024
_NUMBERS = {"ip": socket.AF_INET, "ip6": socket.AF_INET6, "arp": 3}
_TABLES = frozenset({QUBES, LIMITS, FIREWALL})

_WORD = r"[A-Za-z0-9._-]{1,255}"  # as long as the kernel takes a name
_PLACE = rf"(?P<family>{'|'.join(FAMILIES)}) (?P<table>{_WORD})"


class Transaction:
    """Messages that are one transaction.

    Args:
        lines: of the text, each with its message.
    """

    def __init__(self, lines: tuple[tuple[str, Message], ...]) -> None:
        self._lines = lines

    def commit(self) -> None:
        """Carry it out, all of it or nothing.

        Raises:
            Refused: the kernel took nothing of it.
        """
        try:
            with kept.Asking(NFNL_SUBSYS_NFTABLES) as asking:
                batch.commit(asking.raw, (message for _, message in self._lines))
        except OSError as error:
            place = error.place if isinstance(error, batch.MessageRefused) else None
            line = f": {self._lines[place][0]}" if place is not None else ""
            remedy = BUFFER if error.errno == errno.EMSGSIZE else ""
            raise Refused(f"nft: {os.strerror(error.errno or errno.EIO)}{line}", remedy) from None


def transaction(words: str) -> Transaction | None:
    """Return a transaction as messages; None for one that has anything else than what a vif needs.

    Args:
        words: in nft's language.
    """
    found: list[tuple[str, Message]] = []
    length = 0
    for place, line in enumerate(words.splitlines(), 1):
        encoded = _messages(line, place)
        length += sum(len(body) for _, _, body in encoded)
        if not encoded or length > _LONGEST:
            return None
        found += [(line, message) for message in encoded]
    if not found:
        return None
    # The errors come unasked for; with an answer to each the socket's buffer would have to hold hundreds.
    line, (kind, flags, body) = found[-1]
    found[-1] = line, (kind, flags | wire.NLM_F_ACK, body)
    return Transaction(tuple(found))


def _messages(line: str, identifier: int) -> tuple[Message, ...]:
    """Return the messages of a line; none for one that is not known."""
    for pattern, encode in _LINES.get(tuple(line.split(" ", 2)[:2]), ()):
        match = pattern.fullmatch(line)
        if match is not None:
            found = encode(match, identifier) if match["table"] in _TABLES else None
            return () if found is None else found if isinstance(found[0], tuple) else (found,)
    return ()


def _add_table(match: re.Match[str], _: int) -> Message:
    return (
        batch.NFT_MSG_NEWTABLE,
        NLM_F_CREATE,
        _head(match) + text(expressions.NFTA_TABLE_NAME, match["table"]) + number(expressions.NFTA_TABLE_FLAGS, 0),
    )


def _add_chain(match: re.Match[str], _: int) -> Message | None:
    body = _of(match, expressions.NFTA_CHAIN_TABLE, expressions.NFTA_CHAIN_NAME)
    hook = match["hook"]
    if hook is not None:
        policy = number(expressions.NFTA_CHAIN_POLICY, _POLICIES[match["policy"]])
        body += text(expressions.NFTA_CHAIN_TYPE, "filter") + policy
        body += expressions.hooked(hook, _priority(match["priority"]))
    return batch.NFT_MSG_NEWCHAIN, NLM_F_CREATE, body


def _priority(word: str) -> int:
    return NAMED[word] if word in NAMED else int(word)


def _flush_chain(match: re.Match[str], _: int) -> Message:
    return batch.NFT_MSG_DELRULE, 0, _of(match, batch.NFTA_RULE_TABLE, batch.NFTA_RULE_CHAIN)


def _delete_chain(match: re.Match[str], _: int) -> Message:
    return batch.NFT_MSG_DELCHAIN, 0, _of(match, expressions.NFTA_CHAIN_TABLE, expressions.NFTA_CHAIN_NAME)


def _add_map(match: re.Match[str], identifier: int) -> Message:
    body = _set(match) + number(_SET_FLAGS, _SET_MAP) + number(_SET_KEY_TYPE, _IFNAME)
    body += number(_SET_KEY_LEN, _IFNAME_BYTES) + number(_SET_DATA_TYPE, _VERDICTS) + number(_SET_DATA_LEN, 0)
    body += number(_SET_ID, identifier) + wire.attribute(_SET_USERDATA, _MAP_WORDS)
    return batch.NFT_MSG_NEWSET, NLM_F_CREATE, body


def _add_verdicts(match: re.Match[str], identifier: int) -> Message | None:
    """The map from the address of a qube to what judges it."""
    if match["type"] != _ADDRESSES[match["family"]][0]:
        return None
    kind, length = _ADDRESSES[match["family"]][1:]
    body = _set(match) + number(_SET_FLAGS, _SET_MAP) + number(_SET_KEY_TYPE, kind) + number(_SET_KEY_LEN, length)
    body += number(_SET_DATA_TYPE, _VERDICTS) + number(_SET_DATA_LEN, 0) + number(_SET_ID, identifier)
    return batch.NFT_MSG_NEWSET, NLM_F_CREATE, body + wire.attribute(_SET_USERDATA, _QUBES_WORDS)


def _add_ids(match: re.Match[str], identifier: int) -> Message:
    """A set of connections, with a size or without."""
    body = _set(match) + number(_SET_FLAGS, _SET_TIMEOUTS | _SET_EVALUATED) + number(_SET_KEY_TYPE, _CT_ID_BYTES)
    body += number(_SET_KEY_LEN, _CT_ID_BYTES) + number(_SET_ID, identifier)
    if match["size"] is not None:
        body += nested(_SET_DESC, number(_DESC_SIZE, int(match["size"])))
    timeout = wire.attribute(_SET_TIMEOUT, struct.pack("!Q", int(match["seconds"]) * 1000))
    return batch.NFT_MSG_NEWSET, NLM_F_CREATE, body + timeout + wire.attribute(_SET_USERDATA, _IDS_WORDS)


def _add_addresses(match: re.Match[str], identifier: int) -> Message | None:
    """A set of addresses."""
    if match["type"] != _ADDRESSES[match["family"]][0]:
        return None
    kind, length = _ADDRESSES[match["family"]][1:]
    body = _set(match) + number(_SET_FLAGS, 0) + number(_SET_KEY_TYPE, kind) + number(_SET_KEY_LEN, length)
    body += number(_SET_ID, identifier) + wire.attribute(_SET_USERDATA, _SET_WORDS)
    return batch.NFT_MSG_NEWSET, NLM_F_CREATE, body


def _delete_set(match: re.Match[str], _: int) -> Message:
    return batch.NFT_MSG_DELSET, 0, _set(match)


def _add_rule(match: re.Match[str], identifier: int) -> Message | tuple[Message, ...] | None:
    if match["table"] == FIREWALL and match["family"] in IP_FAMILIES:
        return _add_firewall_rule(match, identifier)
    found = encode_rules.rule(match["rest"])
    if found is None:
        return None
    return (
        batch.NFT_MSG_NEWRULE,
        NLM_F_CREATE | NLM_F_APPEND,
        batch.rule(_NUMBERS[match["family"]], match["table"], match["name"], found),
    )


def _add_firewall_rule(match: re.Match[str], identifier: int) -> tuple[Message, ...] | None:
    """A rule of a qube, or one that all of them share; where two protocols have one, their set comes first."""
    try:
        rule = encode_firewall.Rule(match["rest"], match["family"], identifier)
    except encode_firewall.Unknown:
        return None
    place = _rule_place(match["family"], match["table"], match["name"])
    message = batch.NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, place + rule.expressions
    return (*_protocols(match, rule.protocols, identifier), message) if rule.protocols else (message,)


@lru_cache(maxsize=2)  # the rules of a list come one after the other
def _rule_place(family: str, table: str, chain: str) -> bytes:
    return header(_NUMBERS[family]) + text(batch.NFTA_RULE_TABLE, table) + text(batch.NFTA_RULE_CHAIN, chain)


def _protocols(match: re.Match[str], protocols: tuple[int, ...], identifier: int) -> tuple[Message, Message]:
    """A set of protocols without a name."""
    names = _head(match) + text(_SET_TABLE, match["table"]) + text(_SET_NAME, encode_firewall.ANONYMOUS)
    body = names + number(_SET_FLAGS, _ANONYMOUS | _CONSTANT) + number(_SET_KEY_TYPE, _PROTOCOL)
    body += number(_SET_KEY_LEN, _PROTOCOL_BYTES) + number(_SET_ID, identifier)
    body += nested(_SET_DESC, number(_DESC_SIZE, len(protocols))) + wire.attribute(_SET_USERDATA, _PROTOCOLS_WORDS)
    listed = b"".join(nested(batch.NFTA_LIST_ELEM, _value(_ELEMENT_KEY, bytes((each,)))) for each in protocols)
    members = names + number(_LIST_SET_ID, identifier) + nested(_LIST_ELEMENTS, listed)
    return (batch.NFT_MSG_NEWSET, NLM_F_CREATE, body), (batch.NFT_MSG_NEWSETELEM, NLM_F_CREATE, members)


def _flush_set(match: re.Match[str], _: int) -> Message:
    return batch.NFT_MSG_DELSETELEM, 0, _of(match, _LIST_TABLE, _LIST_SET)


def _add_way(match: re.Match[str], _: int) -> Message | None:
    """An element of a verdict map: of a vif to its limits, of a qube to its rules."""
    parts = _MAPS.get((match["table"], match["name"], match["family"]))
    if parts is None:
        return None
    try:
        key = _key(match["key"], parts)
    except (OSError, ValueError):
        return None
    code = {"goto": expressions.GOTO, "jump": expressions.JUMP}[match["verdict"]]
    verdict = nested(batch.NFTA_DATA_VERDICT, expressions.verdict(code, match["target"]))
    element = _value(_ELEMENT_KEY, key) + nested(_ELEMENT_DATA, verdict)
    if match["comment"] is not None:
        words = match["comment"].encode("ascii") + b"\0"
        element += wire.attribute(_ELEMENT_USERDATA, bytes((0, len(words))) + words)
    return batch.NFT_MSG_NEWSETELEM, NLM_F_CREATE, _elements(match, nested(batch.NFTA_LIST_ELEM, element))


def _change_elements(match: re.Match[str], _: int) -> Message | None:
    """Elements of a set: addresses, or what a vif may send from."""
    parts, added = _parts(match["table"], match["name"], match["family"]), match[0].startswith("add")
    if not added and parts is None:
        parts = _MAPS.get((match["table"], match["name"], match["family"]))
    if parts is None:
        return None
    try:
        keys = [_key(member, parts) for member in match["members"].split(", ")]
    except (OSError, ValueError):
        return None  # nft says what it is
    listed = b"".join(nested(batch.NFTA_LIST_ELEM, _value(_ELEMENT_KEY, key)) for key in keys)
    if len(listed) > 0xFFF0:  # more than the length of an attribute holds
        return None
    return (
        batch.NFT_MSG_NEWSETELEM if added else batch.NFT_MSG_DELSETELEM,
        NLM_F_CREATE if added else 0,
        _elements(match, listed),
    )


def _parts(table: str, name: str, family: str) -> tuple[Callable[[str], bytes], ...] | None:
    """Return the parts of a set's element; None for an unknown set."""
    if table == FIREWALL and family in IP_FAMILIES and name.startswith(NAME_SETS) and name != NAME_SETS:
        return (_ipv4,) if family == IP_FAMILIES[0] else (_ipv6,)
    return _KEYS.get((table, name, family))


def _key(member: str, parts: tuple[Callable[[str], bytes], ...]) -> bytes:
    """The bytes of an element; those of a concatenation are filled up to four each."""
    words = member.split(" . ")
    values = [part(word) for part, word in zip(parts, words, strict=True)]
    return b"".join(value + bytes(-len(value) % 4) for value in values) if len(values) > 1 else values[0]


def _ifname(word: str) -> bytes:
    name = word.strip('"').encode("ascii")
    if len(word) != len(name) + 2 or not name or len(name) >= _IFNAME_BYTES or b'"' in name:
        raise ValueError(word)
    return name.ljust(_IFNAME_BYTES, b"\0")


def _ipv4(word: str) -> bytes:
    return socket.inet_pton(socket.AF_INET, word)


def _ipv6(word: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, word)


def _mac(word: str) -> bytes:
    value = bytes.fromhex(word.replace(":", ""))
    if len(value) != 6 or word.count(":") != 5:
        raise ValueError(word)
    return value


_KEYS: dict[tuple[str, str, str], tuple[Callable[[str], bytes], ...]] = {
    (QUBES, "allowed", "ip"): (_ifname, _ipv4),
    (QUBES, "allowed", "ip6"): (_ifname, _ipv6),
    (QUBES, "allowed", "arp"): (_ifname, _ipv4, _mac),
    (QUBES, "downstream", "ip"): (_ipv4,),
    (QUBES, "downstream", "ip6"): (_ipv6,),
    (FIREWALL, DNS_SET, "ip"): (_ipv4,),
    (FIREWALL, DNS_SET, "ip6"): (_ipv6,),
}
_MAPS: dict[tuple[str, str, str], tuple[Callable[[str], bytes], ...]] = {
    **{(LIMITS, LIMITS_MAP, family): (_ifname,) for family in IP_FAMILIES},
    (FIREWALL, FIREWALL_MAP, "ip"): (_ipv4,),
    (FIREWALL, FIREWALL_MAP, "ip6"): (_ipv6,),
}


def _of(match: re.Match[str], table: int, name: int) -> bytes:
    """The header of a body, the table, and the name that is in it; `table` and `name` are their attributes."""
    return _head(match) + text(table, match["table"]) + text(name, match["name"])


def _head(match: re.Match[str]) -> bytes:
    return header(_NUMBERS[match["family"]])


def _set(match: re.Match[str]) -> bytes:
    return _of(match, _SET_TABLE, _SET_NAME)


def _elements(match: re.Match[str], listed: bytes) -> bytes:
    names = text(_LIST_TABLE, match["table"]) + text(_LIST_SET, match["name"])
    return _head(match) + names + nested(_LIST_ELEMENTS, listed)


def _value(kind: int, value: bytes) -> bytes:
    return nested(kind, wire.attribute(batch.NFTA_DATA_VALUE, value))


def _line(words: str) -> re.Pattern[str]:
    """A line by its words; PLACE is family and table, NAME a chain or a set."""
    return re.compile(words.replace("PLACE", _PLACE).replace("NAME", rf"(?P<name>{_WORD})"))


_CT_IDS = r"typeof ct id; flags dynamic,timeout; timeout (?P<seconds>\d{1,6})s;(?: size (?P<size>\d{1,7});)?"
_HOOK = (
    rf"type filter hook (?P<hook>{'|'.join(expressions.HOOKS)}) priority (?P<priority>-?\d{{1,5}}|{'|'.join(NAMED)}); "
    rf"policy (?P<policy>{'|'.join(_POLICIES)});"
)
_Encode = Callable[[re.Match[str], int], "Message | tuple[Message, ...] | None"]
_ELEMENTS = (_line(r"(?:add|delete) element PLACE NAME \{ (?P<members>[^{}]+) \}"), _change_elements)
_WAY = (
    _line(
        r'add element PLACE NAME \{ (?P<key>"[a-z0-9.]{1,15}"|[0-9a-f.:]{2,45})'
        r'(?: comment "(?P<comment>[A-Za-z0-9 ,-]{1,200})")?'
        rf" : (?P<verdict>goto|jump) (?P<target>{_WORD}) \}}"
    ),
    _add_way,
)
# By the first two words of a line.
_LINES: dict[tuple[str, ...], tuple[tuple[re.Pattern[str], _Encode], ...]] = {
    ("add", "rule"): ((_line(r"add rule PLACE NAME (?P<rest>.+)"), _add_rule),),
    ("add", "element"): (_WAY, _ELEMENTS),
    ("delete", "element"): (_ELEMENTS,),
    ("add", "chain"): ((_line(rf"add chain PLACE NAME(?: \{{ {_HOOK} \}})?"), _add_chain),),
    ("flush", "chain"): ((_line("flush chain PLACE NAME"), _flush_chain),),
    ("delete", "chain"): ((_line("delete chain PLACE NAME"), _delete_chain),),
    ("add", "set"): (
        (_line(rf"add set PLACE NAME \{{ {_CT_IDS} \}}"), _add_ids),
        (_line(r"add set PLACE NAME \{ type (?P<type>ipv[46]_addr); \}"), _add_addresses),
    ),
    ("delete", "set"): ((_line("delete set PLACE NAME"), _delete_set),),
    ("flush", "set"): ((_line("flush set PLACE NAME"), _flush_set),),
    ("add", "map"): (
        (_line(r"add map PLACE NAME \{ type ifname : verdict; \}"), _add_map),
        (_line(r"add map PLACE NAME \{ type (?P<type>ipv[46]_addr) : verdict; \}"), _add_verdicts),
    ),
    ("add", "table"): ((_line("add table PLACE"), _add_table),),
}
