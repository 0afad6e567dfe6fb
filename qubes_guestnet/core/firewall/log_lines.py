# SPDX-License-Identifier: GPL-2.0-or-later
"""The lines of `firewall log`: the reported packets that a list refuses, and the entry that refuses them.

The kernel reports first packets of connections, of one qube or all, up to a rate (`system/nft/log`). This module judges
them by the list in force at that moment.
"""

from __future__ import annotations

import ipaddress
import struct

from ..namedtuple import NamedTuple
from ..values import IPV4, IPAddress
from . import evaluator
from .binding import Bound
from .evaluator import BLOCKED, DEPENDS, POLICY, Packet, Verdict
from .rules import ICMP, TCP, UDP, number_of

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from collections.abc import Collection

_IPV4_LEAST, _IPV6_HEADER = 20, 40
# Extension headers with a length in units of 8 bytes (RFC 8200): hop-by-hop, routing, destination options.
_EXTENSIONS = frozenset({0, 43, 60})
_FRAGMENT = 44
_MOST_EXTENSIONS = 8


class Seen(NamedTuple):
    """A packet that the kernel reported.

    Args:
        source: its sender.
        packet: the packet for the evaluator.
    """

    source: IPAddress
    packet: Packet


class Refusal(NamedTuple):
    """A packet that the list refuses.

    Args:
        seen: the packet.
        verdict: verdict of the list; None if no list is in force, so that the packet is dropped.
        words: the reason in words.
    """

    seen: Seen
    verdict: Verdict | None
    words: str


def parse(untrusted_packet: bytes) -> Seen:
    """Parse the beginning of an IP packet.

    Args:
        untrusted_packet: the packet from its IP header on; its qube may send anything.

    Raises:
        ValueError: the packet is too short, or malformed.
    """
    version = untrusted_packet[0] >> 4 if untrusted_packet else 0
    if version == IPV4:
        return _parse4(untrusted_packet)
    if version == 6:
        return _parse6(untrusted_packet)
    raise ValueError("neither IPv4 nor IPv6")


def _parse4(data: bytes) -> Seen:
    length = (data[0] & 15) * 4
    if length < _IPV4_LEAST or len(data) < length:
        raise ValueError("the header is not whole")
    (fragment,) = struct.unpack_from("!H", data, 6)
    source, destination = ipaddress.IPv4Address(data[12:16]), ipaddress.IPv4Address(data[16:20])
    # A later fragment has no transport header; the kernel reassembles fragments before the rules see them.
    return Seen(source, _transport(destination, data[9], b"" if fragment & 0x1FFF else data[length:]))


def _parse6(data: bytes) -> Seen:
    if len(data) < _IPV6_HEADER:
        raise ValueError("the header is not whole")
    source, destination = ipaddress.IPv6Address(data[8:24]), ipaddress.IPv6Address(data[24:40])
    protocol, place = data[6], _IPV6_HEADER
    for _ in range(_MOST_EXTENSIONS):
        if protocol == _FRAGMENT and len(data) >= place + 8:
            protocol, place = data[place], place + 8
        elif protocol in _EXTENSIONS and len(data) >= place + 2:
            protocol, place = data[place], place + 8 * (data[place + 1] + 1)
        else:
            break
    return Seen(source, _transport(destination, protocol, data[place:]))


def _transport(destination: IPAddress, protocol: int, data: bytes) -> Packet:
    version = destination.version
    if protocol in (number_of(TCP, version), number_of(UDP, version)) and len(data) >= 4:
        return Packet(destination, protocol, struct.unpack_from("!H", data, 2)[0])
    if protocol == number_of(ICMP, version) and data:
        return Packet(destination, protocol, None, data[0])
    return Packet(destination, protocol)


def refusal(seen: Seen, bound: Bound | None, dns: Collection[IPAddress]) -> Refusal | None:
    """Return why a packet is refused; None if its list accepts it.

    Args:
        seen: the packet.
        bound: the list of its sender, None for none in force.
        dns: the name servers.
    """
    if bound is None:
        return Refusal(seen, None, "dropped: dom0 has committed no list since the vif appeared")
    verdict = evaluator.judge(bound, seen.packet, dns)
    if verdict.passes:
        return None
    if verdict.entry == BLOCKED:
        words = "like everything: its list has an error, or an unknown name blocks it"
    elif verdict.entry == POLICY:
        words = "by the policy: no entry matches"
    elif verdict.answer == DEPENDS:
        words = f"until all addresses of the name in entry {verdict.entry:04} are known"
    else:
        words = f"by entry {verdict.entry:04}"
    return Refusal(seen, verdict, f"refused {words}")


def text(refused: Refusal) -> str:
    """Return the printed line, such as "10.137.0.5 → 192.0.2.1 tcp port 443 refused by the policy …"."""
    packet = refused.seen.packet
    words = {number_of(each, packet.destination.version): each for each in (TCP, UDP, ICMP)}
    protocol = words.get(packet.protocol, f"protocol {packet.protocol}")
    if packet.port is not None:
        protocol += f" port {packet.port}"
    if packet.icmp_type is not None:
        protocol += f" type {packet.icmp_type}"
    return f"{refused.seen.source} → {packet.destination} {protocol} {refused.words}"


def data(refused: Refusal, when: float) -> dict[str, object]:
    """Return the data of the line for `--json`.

    Args:
        refused: the packet.
        when: Unix time.
    """
    packet, verdict = refused.seen.packet, refused.verdict
    return {
        "time": when,
        "from": str(refused.seen.source),
        "to": str(packet.destination),
        "protocol": packet.protocol,
        "port": packet.port,
        "icmp_type": packet.icmp_type,
        "entry": verdict.entry if verdict is not None and verdict.entry >= 0 else None,
        "words": refused.words,
    }
