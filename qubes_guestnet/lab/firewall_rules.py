# SPDX-License-Identifier: GPL-2.0-or-later
"""Firewall rules as dom0 takes and writes them: the grammar, the entries in QubesDB, and what a list means.

Read in core-admin 4.4.0 (`firewall.py`, `vm/mix/net.py: reload_firewall_for_vm`) and core-admin-client
(`tools/qvm_firewall.py`). Pure: the time is an argument. The agent's parser is `core/firewall`: it reads what dom0
writes, this one what dom0 accepts, and neither uses the other.
"""

from __future__ import annotations

import ipaddress
import socket
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from ..errors import UsageError

BASE = "/qubes-firewall/"
POLICY = "drop"
RM, WRITE = "rm", "write"
_WITH_PORTS = ("tcp", "udp")
FAMILIES = {"dst4": 4, "dst6": 6}
_LENGTH = {"dst4": 32, "dst6": 128}
_ECHO_REQUEST = {4: 8, 6: 128}
_LAST_PORT, _LAST_TYPE = 65535, 255
_LAST_SECOND = 253402300799  # of the year 9999
_NAME = frozenset(string.ascii_lowercase + string.digits + "-._")
_COMMENT = frozenset(string.ascii_letters + string.digits + ":;,./-_[] ")
# Of a rule without keys, in this order; a protocol takes the other one of the last two away.
_POSITIONS = ("action", "dsthost", "proto", "dstports", "icmptype")
_SYNONYMS = {"dst4": "dsthost", "dst6": "dsthost", "dstname": "dsthost"}


class RuleError(UsageError):
    """dom0 refuses a rule: the message names the option, its value and what to give instead."""


class Rule(NamedTuple):
    """One rule; `parse` and `from_words` make valid ones.

    Attributes:
        action: accept or drop.
        destination: `dst4` or `dst6` with address and length, as typed, or `dsthost` with a name; None: every one.
        proto: tcp, udp or icmp (of IPv6 ICMPv6); None: every one.
        specialtarget: dns.
        dstports: first and last.
        icmptype: the number.
        expire: Unix time from which on the rule does not count.
        comment: for people; "" for none.
    """

    action: str
    destination: tuple[str, str] | None = None
    proto: str | None = None
    specialtarget: str | None = None
    dstports: tuple[int, int] | None = None
    icmptype: int | None = None
    expire: int | None = None
    comment: str = ""

    def expired(self, now: float) -> bool:
        """Return whether it does not count any more, at a Unix time."""
        return self.expire is not None and self.expire < now

    def is_for(self, version: int) -> bool:
        """Return whether it is in the list of a family: one with an address of the other family is not."""
        return self.destination is None or FAMILIES.get(self.destination[0], version) == version


Rules = tuple[Rule, ...]
# Of a new qube, and after `reset`.
ACCEPT_ALL: Rules = (Rule("accept"),)


# --- the grammar -----------------------------------------------------------------------------------------------------


def _one_of(*words: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in words:
            raise ValueError(f"give {' or '.join(words)}")
        return value

    return check


def _number(value: str, last: int, advice: str) -> int:
    if not (value.isascii() and value.isdigit()) or len(value) > len(str(_LAST_SECOND)) or int(value) > last:
        raise ValueError(advice)
    return int(value)


def _ports(value: str) -> tuple[int, int]:
    advice = f"give a port or a range such as 1200-1400, of 0 to {_LAST_PORT}"
    first, dash, last = value.partition("-")
    found = _number(first, _LAST_PORT, advice), _number(last if dash else first, _LAST_PORT, advice)
    if found[0] > found[1]:
        raise ValueError("give the lower port first")
    return found


def _icmptype(value: str) -> int:
    return _number(value if len(value) < 4 else "", _LAST_TYPE, f"give a number from 0 to {_LAST_TYPE}")


def _expire(value: str) -> int:
    return _number(value, _LAST_SECOND, "give a Unix time in seconds")


def _comment(value: str) -> str:
    if not _COMMENT.issuperset(value):
        raise ValueError("use ASCII letters, digits, blanks and :;,./-_[]")
    return value


def _is_address(family: socket.AddressFamily, text: str) -> bool:
    try:
        socket.inet_pton(family, text)
    except (OSError, ValueError):
        return False
    return True


def _destination(value: str) -> tuple[str, str]:
    address, slash, length = value.partition("/")
    for kind, family in (("dst6", socket.AF_INET6), ("dst4", socket.AF_INET)):
        if _is_address(family, address):
            if slash:
                _number(length, _LENGTH[kind], f"give a length from 0 to {_LENGTH[kind]}")
            return kind, value if slash else f"{address}/{_LENGTH[kind]}"
    if slash:
        raise ValueError("give a network such as 192.168.0.0/16 or fd00::/8; a name has no length")
    if not _NAME.issuperset(value):
        raise ValueError("give an address, a network, or a name in lower case of letters, digits, -, . and _")
    return "dsthost", value


_CHECKS: Mapping[str, Callable[[str], object]] = {
    "action": _one_of("accept", "drop"), "dsthost": _destination, "proto": _one_of("tcp", "udp", "icmp"),
    "specialtarget": _one_of("dns"), "dstports": _ports, "icmptype": _icmptype, "expire": _expire, "comment": _comment,
}  # fmt: skip
# What may stand in a rule, in the order of dom0's text.
OPTIONS = (*_CHECKS, "dst4", "dst6")


def _made(options: Sequence[tuple[str, str]]) -> Rule:
    """Return a rule of pairs of option and value, by dom0's checks."""
    found: dict[str, object] = {}
    for word, value in options:
        key = _SYNONYMS.get(word, word)
        if key not in _CHECKS:
            raise RuleError(f"{word}={value}: no such option", f"the options are {', '.join(OPTIONS)}")
        if key in found:
            raise RuleError(f"{word}={value}: {key} is given twice", "give it once")
        try:
            found[key] = _CHECKS[key](value)
        except ValueError as error:
            raise RuleError(f"{word}={value} is not valid", str(error)) from None
    values = dict(options)
    if "action" not in found:
        raise RuleError("action is missing", "give action=accept or action=drop")
    if "dstports" in found and found.get("proto") not in _WITH_PORTS:
        raise RuleError(f"dstports={values['dstports']}: only with a protocol that has ports", "add proto=tcp or udp")
    if "icmptype" in found and found.get("proto") != "icmp":
        raise RuleError(f"icmptype={values['icmptype']}: only with ICMP", "add proto=icmp")
    destination = found.pop("dsthost", None)
    return Rule(**found, destination=destination)  # type: ignore[arg-type]


def parse(text: str) -> Rule:
    """Return a rule from dom0's own form: `option=value` by single blanks, a comment last.

    Raises:
        RuleError: naming option, value and remedy.
    """
    before, _, comment = text.partition("comment=")
    options = []
    for word in before.strip().split(" "):
        key, sign, value = word.partition("=")
        if not sign:
            raise RuleError(f"{word!r} is no option", "give option=value, with one blank between options")
        options.append((key, value))
    return _made([*options, *([("comment", comment)] if comment else [])])


def from_words(words: Sequence[str], now: float) -> Rule:
    """Return a rule from the arguments of `qvm-firewall QUBE add`.

    Args:
        words: `option=value` in any order, or values alone: action, destination, protocol, ports or ICMP type.
        now: the Unix time that `expire=+SECONDS` counts from.

    Raises:
        RuleError: naming option, value and remedy.
    """
    left, options = list(_POSITIONS), []
    for word in words:
        parts = word.split("=")
        if len(parts) > 2:
            raise RuleError(f"{word}: more than one =", "give option=value")
        if len(parts) == 1 and not left:
            raise RuleError(
                f"{word}: one word too many", f"the order is {', '.join(_POSITIONS)}; else give option=value"
            )
        key, value = parts if len(parts) == 2 else (left[0], word)
        if key == "expire" and value.startswith("+"):
            value = str(int(now) + _relative(value))
        options.append((key, value))
        taken = {_SYNONYMS.get(key, key)}
        if key == "proto":
            taken |= {"icmptype"} if value in _WITH_PORTS else {"dstports"}
        left = [position for position in left if position not in taken]
    return _made(options)


def _relative(value: str) -> int:
    try:
        return _number(value[1:], _LAST_SECOND // 2, "give seconds, such as +300, or a Unix time")
    except ValueError as error:
        raise RuleError(f"expire={value} is not valid", str(error)) from None


# --- the text --------------------------------------------------------------------------------------------------------


def pairs(rule: Rule) -> dict[str, str]:
    """Return option → text of what is in an entry, in its order: all but expire and comment."""
    ports = "-".join(map(str, rule.dstports)) if rule.dstports is not None else None
    found = {
        "action": rule.action,
        **(dict([rule.destination]) if rule.destination is not None else {}),
        "proto": rule.proto,
        "specialtarget": rule.specialtarget,
        "dstports": ports,
        "icmptype": str(rule.icmptype) if rule.icmptype is not None else None,
    }
    return {key: value for key, value in found.items() if value is not None}


def text(rule: Rule) -> str:
    """Return a rule as dom0 writes it into QubesDB: without expire and comment."""
    return " ".join(f"{key}={value}" for key, value in pairs(rule).items())


def listed(rules: Rules, now: float) -> tuple[str, ...]:
    """Return the rules as dom0's admin.vm.firewall.Get lists them: with expire and comment, without expired ones."""
    return tuple(_in_dom0s_order(rule) for rule in rules if not rule.expired(now))


def _in_dom0s_order(rule: Rule) -> str:
    action, *others = [f"{key}={value}" for key, value in pairs(rule).items()]
    expire = [f"expire={rule.expire}"] if rule.expire is not None else []
    return " ".join([action, *expire, *others, *([f"comment={rule.comment}"] if rule.comment else [])])


# --- QubesDB ---------------------------------------------------------------------------------------------------------


def entries(rules: Rules, version: int, now: float) -> dict[str, str]:
    """Return the entries below the address of a qube, in dom0's order.

    Args:
        rules: the whole list. The numbers count all of it, so an expired rule and one of the other family leave a gap.
        version: 4 or 6.
        now: Unix time.
    """
    counted = {
        f"{number:04}": text(rule)
        for number, rule in enumerate(rules)
        if rule.is_for(version) and not rule.expired(now)
    }
    return {"policy": POLICY, **counted}


def cycle(addresses: Mapping[int, str | None], rules: Rules, now: float) -> list[tuple[str, str, str]]:
    """Return the operations by which dom0 writes a list for a provider, as (RM or WRITE, key, value).

    Each family: remove the folder (the base entry stays), write policy and rules, write the base entry: the commit.

    Args:
        addresses: of the qube, by family, IPv4 first; None where it has none: dom0 leaves that family out.
        rules: the whole list.
        now: Unix time.
    """
    done = []
    for version, address in addresses.items():
        if address is None:
            continue
        base = f"{BASE}{address}"
        done.append((RM, f"{base}/", ""))
        done += [(WRITE, f"{base}/{key}", value) for key, value in entries(rules, version, now).items()]
        done.append((WRITE, base, ""))
    return done


# --- what a list means -----------------------------------------------------------------------------------------------


def limits(rules: Rules, now: float) -> bool:
    """Return whether a list refuses anything: whether its first rule is other than to accept everything."""
    counted = [rule for rule in rules if not rule.expired(now)]
    return not counted or counted[0]._replace(expire=None, comment="") != ACCEPT_ALL[0]


def allows_ping(rules: Rules, host: str, names: Mapping[str, Collection[str]], now: float) -> bool:
    """Return whether a list lets an echo request pass: the first rule that matches decides, and the policy drops.

    Args:
        rules: the list.
        host: address of the destination.
        names: the addresses of each name.
        now: Unix time.
    """
    address = ipaddress.ip_address(host)
    for rule in rules:
        if rule.expired(now) or rule.specialtarget is not None or rule.proto not in (None, "icmp"):
            continue
        if rule.icmptype in (None, _ECHO_REQUEST[address.version]) and _leads_to(rule, address, names):
            return rule.action == "accept"
    return False


def _leads_to(
    rule: Rule, address: ipaddress.IPv4Address | ipaddress.IPv6Address, names: Mapping[str, Collection[str]]
) -> bool:
    if rule.destination is None:
        return True
    kind, value = rule.destination
    if kind == "dsthost":
        return str(address) in names.get(value, ())
    return address in ipaddress.ip_network(value, strict=False)
