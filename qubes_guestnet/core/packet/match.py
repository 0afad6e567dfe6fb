# SPDX-License-Identifier: GPL-2.0-or-later
"""Decide whether a packet matches a condition of a rule, as far as the condition is understood.

`Unclear` is raised for an unknown kind of expression, or for an unknown value of the packet, such as its source port.
`Absent` is raised for a value that the packet does not have: a UDP packet matches no condition about a TCP port.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping

from ..namedtuple import NamedTuple
from ..values import IPV4, IPAddress
from .loaded import Loaded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROTOCOLS = {
    "icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "dccp": 33, "gre": 47, "esp": 50, "ah": 51, "ipv6-icmp": 58,
    "icmpv6": 58, "sctp": 132, "udplite": 136,
}  # fmt: skip
TCP, UDP = PROTOCOLS["tcp"], PROTOCOLS["udp"]
# linux/icmp.h and linux/icmpv6.h, in the words of nft.
_ICMP = {
    IPV4: {
        "echo-reply": 0, "destination-unreachable": 3, "source-quench": 4, "redirect": 5, "echo-request": 8,
        "router-advertisement": 9, "router-solicitation": 10, "time-exceeded": 11, "parameter-problem": 12,
        "timestamp-request": 13, "timestamp-reply": 14, "info-request": 15, "info-reply": 16,
        "address-mask-request": 17, "address-mask-reply": 18,
    },
    6: {
        "destination-unreachable": 1, "packet-too-big": 2, "time-exceeded": 3, "parameter-problem": 4,
        "echo-request": 128, "echo-reply": 129, "mld-listener-query": 130, "mld-listener-report": 131,
        "mld-listener-done": 132, "mld-listener-reduction": 132, "nd-router-solicit": 133, "nd-router-advert": 134,
        "nd-neighbor-solicit": 135, "nd-neighbor-advert": 136, "nd-redirect": 137, "router-renumbering": 138,
        "ind-neighbor-solicit": 141, "ind-neighbor-advert": 142, "mld2-listener-report": 143,
    },
}  # fmt: skip
_MOST_BITS = (1 << 32) - 1


class Unclear(Exception):
    """It is unknown whether the condition matches."""


class Absent(Exception):
    """The packet lacks the value in question, so the condition does not match."""


class Device(NamedTuple):
    """A network interface.

    Args:
        name: of it.
        group: 1 for an uplink of this qube, 2 for a vif.
    """

    name: str
    group: int


class Asked(NamedTuple):
    """A packet as it was sent: what conntrack calls the original direction."""

    source: IPAddress
    destination: IPAddress
    port: int | None


class Packet(NamedTuple):
    """The first packet of a connection, at one place of its way.

    Args:
        iif: where it came in.
        source: its sender; behind the address translation this provider.
        destination: after DNAT.
        protocol: IP protocol number.
        port: destination port of TCP and UDP, after DNAT.
        icmp_type: of ICMP.
        asked: as it was sent.
        oif: where it goes out; None before that is known.
        pkttype: in the words of nft.
        priority: of the packet.
        mark: of the packet; None: not known.
        added: sets that a rule has put its connection into.
        leaves_as: the address of this provider that takes the place of the sender's; None: not known.
    """

    iif: Device
    source: IPAddress
    destination: IPAddress
    protocol: int
    port: int | None
    icmp_type: int | None
    asked: Asked
    oif: Device | None = None
    pkttype: str = "host"
    priority: int = 0
    mark: int | None = 0
    added: frozenset[str] = frozenset()
    leaves_as: IPAddress | None = None


class _Value(NamedTuple):
    """A value of a packet.

    Args:
        what: the value.
        kind: of words that nft prints in the place of numbers; "" for none.
    """

    what: object
    kind: str = ""


_CONNECTION = object()  # its ct id, which no listing has


def _device(device: Device | None) -> Device:
    if device is None:
        raise Absent
    return device


def _mark(packet: Packet) -> _Value:
    if packet.mark is None:
        raise Unclear
    return _Value(packet.mark)


_META: Mapping[str, Callable[[Packet], _Value]] = {
    "iif": lambda packet: _Value(packet.iif.name),
    "iifname": lambda packet: _Value(packet.iif.name),
    "iifgroup": lambda packet: _Value(packet.iif.group, "group"),
    "oif": lambda packet: _Value(_device(packet.oif).name),
    "oifname": lambda packet: _Value(_device(packet.oif).name),
    "oifgroup": lambda packet: _Value(_device(packet.oif).group, "group"),
    "l4proto": lambda packet: _Value(packet.protocol, "protocol"),
    "nfproto": lambda packet: _Value(f"ipv{packet.source.version}"),
    "protocol": lambda packet: _Value("ip" if packet.source.version == IPV4 else "ip6"),
    "pkttype": lambda packet: _Value(packet.pkttype),
    "priority": lambda packet: _Value(packet.priority, "priority"),
    "mark": _mark,
}


def met(condition: Mapping[str, Any], packet: Packet, family: str, table: str, loaded: Loaded) -> bool:
    """Return whether a packet meets a condition. Raises Unclear.

    Args:
        condition: what nft prints for `match`.
        packet: at this place.
        family: of the rule's table.
        table: its name.
        loaded: all rules, for their sets.
    """
    operator, right = condition.get("op"), condition.get("right")
    try:
        left = value(condition.get("left"), packet, family)
    except Absent:
        return False
    if isinstance(left.what, frozenset):
        return _has_bits(left.what, operator, right)
    if operator in ("<", ">", "<=", ">="):
        if not isinstance(left.what, int):
            raise Unclear
        number = _number(right, left.kind)
        if left.what == number:
            return operator in ("<=", ">=")
        return (left.what < number) == (operator in ("<", "<="))
    if operator not in ("==", "!=", "in"):
        raise Unclear
    among = _is_among(left, right, packet, (family, table), loaded)
    return not among if operator == "!=" else among


def _has_bits(there: frozenset[str], operator: object, right: object) -> bool:
    """Compare flags, as the status of a connection."""
    words = frozenset(right if isinstance(right, list) else (right,))
    if operator not in ("in", "!") or not all(isinstance(word, str) for word in words):
        raise Unclear
    return bool(there & words) == (operator == "in")


def value(expression: object, packet: Packet, family: str) -> _Value:
    """Return what a packet has in the place of an expression.

    Raises:
        Absent: nothing.
        Unclear: the expression is not understood.
    """
    if not isinstance(expression, dict) or len(expression) != 1:
        raise Unclear
    ((kind, inner),) = expression.items()
    if kind == "meta" and isinstance(inner, dict) and inner.get("key") in _META:
        return _META[inner["key"]](packet)
    if kind == "payload" and isinstance(inner, dict):
        return _payload(str(inner.get("protocol")), str(inner.get("field")), packet)
    if kind == "ct" and isinstance(inner, dict):
        return _connection(str(inner.get("key")), str(inner.get("dir", "")), packet)
    if kind == "concat" and isinstance(inner, list):
        return _Value(tuple(value(each, packet, family) for each in inner))
    if kind in ("&", "|", "^") and isinstance(inner, list) and inner:
        return _calculated(kind, inner, packet, family)
    raise Unclear


def _calculated(operator: str, parts: list[Any], packet: Packet, family: str) -> _Value:
    first = value(parts[0], packet, family)
    if first.kind == "flags":  # TCP's; what begins a connection has SYN alone
        raise Unclear
    found = first.what
    for part in parts[1:]:
        number = _number(part, first.kind)
        if not isinstance(found, int):
            raise Unclear
        found = {"&": found & number, "|": found | number, "^": found ^ number}[operator]
    return first._replace(what=found)


def _payload(protocol: str, field: str, packet: Packet) -> _Value:
    if protocol in ("ip", "ip6"):
        if (protocol == "ip") != (packet.source.version == IPV4):
            raise Absent
        found: dict[str, _Value] = {
            "saddr": _Value(packet.source), "daddr": _Value(packet.destination),
            "protocol": _Value(packet.protocol, "protocol"), "nexthdr": _Value(packet.protocol, "protocol"),
        }  # fmt: skip
    elif protocol in ("icmp", "icmpv6"):
        version = IPV4 if protocol == "icmp" else 6
        if packet.protocol != PROTOCOLS[protocol] or packet.source.version != version or packet.icmp_type is None:
            raise Absent
        found = {"type": _Value(packet.icmp_type, protocol)}
    elif protocol == "th" or protocol in PROTOCOLS:
        if packet.port is None or (protocol != "th" and packet.protocol != PROTOCOLS[protocol]):
            raise Absent
        found = {"dport": _Value(packet.port, "port")}
        if protocol == "tcp":
            found["flags"] = _Value(frozenset({"syn"}), "flags")
    else:
        raise Unclear
    if field not in found:
        raise Unclear
    return found[field]


def _connection(key: str, direction: str, packet: Packet) -> _Value:
    source, destination, port = packet.asked
    family = "ip" if packet.source.version == IPV4 else "ip6"
    if key in ("ip saddr", "ip daddr", "ip6 saddr", "ip6 daddr") and not key.startswith(f"{family} "):
        raise Absent
    key = key.removeprefix(f"{family} ")
    there = {
        "": {
            "state": _Value("new"), "id": _Value(_CONNECTION), "direction": _Value("original"),
            "status": _Value(frozenset({"dnat"} if destination != packet.destination else ())),
        },
        "original": {
            "saddr": _Value(source), "daddr": _Value(destination),
            "protocol": _Value(packet.protocol, "protocol"), "proto-dst": _Value(port, "port"),
        },
        # Source NAT, which would show in the other one, comes only after every filter.
        "reply": {"saddr": _Value(packet.destination), "proto-src": _Value(packet.port, "port")},
    }  # fmt: skip
    found = there.get(direction, {}).get(key)
    if found is None:
        raise Unclear
    if found.what is None:
        raise Absent
    return found


# --- what it is compared with ----------------------------------------------------------------------------------------


def _is_among(left: _Value, right: object, packet: Packet, table: tuple[str, str], loaded: Loaded) -> bool:
    """Return whether a value is what stands there, or one of it. Raises Unclear."""
    if isinstance(right, str) and right.startswith("@"):
        if left.what is _CONNECTION:
            return right in packet.added
        name = (*table, right[1:])
        if name not in loaded.sets:
            raise Unclear
        return any(_is(left, _bare(each)) for each in loaded.sets[name])
    if isinstance(right, dict) and isinstance(right.get("set"), list):
        return any(_is(left, _bare(each)) for each in right["set"])
    if isinstance(right, list):
        return any(_is(left, each) for each in right)
    return _is(left, right)


def looked_up(key: _Value, elements: object) -> object:
    """Return what a map has for a value; None for nothing. Raises Unclear."""
    if not isinstance(elements, list | tuple):
        raise Unclear
    for each in elements:
        if not isinstance(each, list) or len(each) != 2:
            raise Unclear
        if _is(key, _bare(each[0])):
            found: object = each[1]
            return found
    return None


def _bare(element: object) -> object:
    """Return an element of a set without its comment or timeout."""
    if isinstance(element, dict) and isinstance(element.get("elem"), dict):
        return element["elem"].get("val")
    return element


def _is(left: _Value, right: object) -> bool:
    """Return whether a value is this one, or in this network or range. Raises Unclear."""
    if isinstance(left.what, tuple):
        parts = right.get("concat") if isinstance(right, dict) else None
        if not isinstance(parts, list) or len(parts) != len(left.what):
            raise Unclear
        return all(_is(one, other) for one, other in zip(left.what, parts, strict=True))
    if isinstance(left.what, str):
        return _is_name(left.what, right)
    if isinstance(left.what, int):
        return _is_number(left.what, right, left.kind)
    if isinstance(left.what, ipaddress.IPv4Address | ipaddress.IPv6Address):
        return _is_address(left.what, right)
    raise Unclear


def _is_name(name: str, right: object) -> bool:
    if not isinstance(right, str):
        raise Unclear
    return name.startswith(right[:-1]) if right.endswith("*") else name == right


def _is_number(number: int, right: object, kind: str) -> bool:
    ends = right.get("range") if isinstance(right, dict) else None
    if isinstance(ends, list) and len(ends) == 2:
        return _number(ends[0], kind) <= number <= _number(ends[1], kind)
    return number == _number(right, kind)


def _is_address(address: IPAddress, right: object) -> bool:
    try:
        if isinstance(right, str):
            return address == ipaddress.ip_address(right)
        if isinstance(right, dict) and isinstance(right.get("prefix"), dict):
            inner = right["prefix"]
            return address in ipaddress.ip_network((inner["addr"], inner["len"]), strict=False)
        if isinstance(right, dict) and isinstance(right.get("range"), list):
            first, last = map(ipaddress.ip_address, right["range"])
            return int(first) <= int(address) <= int(last)
    except (ValueError, KeyError):
        pass
    raise Unclear


def _number(right: object, kind: str) -> int:
    """Return a number that nft may print as a word. Raises Unclear."""
    if isinstance(right, int) and not isinstance(right, bool):
        return right
    if not isinstance(right, str):
        raise Unclear
    known: Mapping[str, int] = {
        "protocol": PROTOCOLS, "icmp": _ICMP[IPV4], "icmpv6": _ICMP[6], "group": {"default": 0},
        "priority": {"none": 0, "root": _MOST_BITS},
    }.get(kind, {})  # fmt: skip
    if right in known:
        return known[right]
    try:
        if kind == "priority":  # as tc prints a handle
            major, _, minor = right.partition(":")
            return int(major or "0", 16) << 16 | int(minor or "0", 16)
        return int(right, 0)
    except ValueError:
        raise Unclear from None


def changed(key: object, new: object, packet: Packet, family: str) -> Packet:
    """Return a packet after the statement that changes it; what is not understood of it changes nothing that matters.

    Args:
        key: what is changed.
        new: the new value.
        packet: before.
        family: of the rule's table.
    """
    what = key.get("meta", {}).get("key") if isinstance(key, dict) and isinstance(key.get("meta"), dict) else None
    if what == "pkttype" and isinstance(new, str):
        return packet._replace(pkttype=new)
    if what not in ("priority", "mark"):
        return packet
    try:
        number = value(new, packet, family).what if isinstance(new, dict) else _number(new, str(what))
    except (Unclear, Absent):
        number = None
    if what == "mark":
        return packet._replace(mark=number if isinstance(number, int) else None)
    return packet._replace(priority=number) if isinstance(number, int) else packet
