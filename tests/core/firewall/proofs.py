# SPDX-License-Identifier: GPL-2.0-or-later
"""Lists and chains as formulas for z3, over every packet there is.

`entries` reads what dom0 wrote, as text, by the words of the specification; `chain` takes the lines that become rules
for nft. The two share no code but the variables of a packet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address
from typing import Any

import z3

from qubes_guestnet.core.firewall import ruleset
from qubes_guestnet.core.firewall.binding import Bound
from qubes_guestnet.core.firewall.lines import Line
from qubes_guestnet.core.nft.tables import FIREWALL_MAP
from tests.core.firewall import naive
from tests.core.firewall.naive import Drawn

BITS = {4: 32, 6: 128}
Formula = Any  # z3 has no types of its own


class Packet:
    """A packet in the chain `forward`: any one of a family."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.source = z3.BitVec("source", BITS[version])
        self.destination = z3.BitVec("destination", BITS[version])
        self.protocol = z3.BitVec("protocol", 8)
        self.port = z3.BitVec("port", 16)
        self.icmp_type = z3.BitVec("type", 8)
        self.answers, self.from_vif, self.in_group = z3.Bools("answers from_vif in_group_2")

    def goes_to(self, addresses: Iterable[object]) -> Formula:
        """Its destination is one of these."""
        return z3.Or([self.destination == number(each) for each in addresses])


def number(address: object) -> int:
    return int.from_bytes(ip_address(str(address)).packed, "big")


def is_valid(formula: Formula) -> bool:
    """Whether it holds for every packet."""
    solver = z3.Solver()
    solver.add(z3.Not(formula))
    answer = solver.check()
    assert answer != z3.unknown
    return bool(answer == z3.unsat)


# --- what dom0 wrote ---------------------------------------------------------------------------------------------


def entries(found: Drawn, packet: Packet, has: Callable[[str, bool], Formula]) -> Formula:
    """Whether a list accepts a packet.

    Args:
        found: the list.
        packet: any one.
        has: whether a name has the destination, in an entry that accepts or not.
    """
    accepted = z3.BoolVal(found.policy == "accept")
    for key in sorted(found.entries, key=int, reverse=True):
        words = dict(word.split("=") for word in found.entries[key].split(" "))
        accept = words["action"] == "accept"
        conditions = [_condition(option, value, packet) for option, value in words.items() if option != "dsthost"]
        if "dsthost" in words:
            conditions.append(has(words["dsthost"], accept))
        accepted = z3.If(z3.And(conditions), z3.BoolVal(accept), accepted)
    return accepted


def _condition(option: str, value: str, packet: Packet) -> Formula:
    numbers = {"tcp": 6, "udp": 17, "icmp": naive.ICMP[packet.version]}
    transport = z3.Or(packet.protocol == 6, packet.protocol == 17)
    if option in ("dst4", "dst6"):
        address, _, length = value.partition("/")
        free = BITS[packet.version] - int(length)
        wanted = z3.BitVecVal(number(address) >> free, BITS[packet.version])
        return z3.LShR(packet.destination, free) == wanted if int(length) else z3.BoolVal(True)
    if option == "proto":
        return packet.protocol == numbers[value]
    if option == "dstports":
        first, last = map(int, value.split("-"))
        return z3.And(transport, z3.UGE(packet.port, first), z3.ULE(packet.port, last))
    if option == "icmptype":
        return z3.And(packet.protocol == numbers["icmp"], packet.icmp_type == int(value))
    if option == "specialtarget":
        return z3.And(transport, packet.port == 53, packet.goes_to(sorted(naive.DNS[packet.version])))
    return z3.BoolVal(True)


def in_force(found: Drawn, packet: Packet) -> Callable[[str, bool], Formula]:
    """A name of which nothing is known has no address for an accept, and any for a drop."""

    def has(host: str, accept: bool) -> Formula:
        known = host in found.names and host not in naive.NEVER_KNOWN
        return packet.goes_to(sorted(found.names[host])) if known else z3.BoolVal(not accept)

    return has


def any_binding(found: Drawn, packet: Packet, partly: frozenset[str] = frozenset()) -> Callable[[str, bool], Formula]:
    """A name of which nothing is known, or not all, has the destination or not: the same in all entries."""

    def has(host: str, _accept: bool) -> Formula:
        known = host in found.names and host not in naive.NEVER_KNOWN
        unknown = z3.Bool(f"{host} has the destination")
        if not known:
            return unknown
        answered = packet.goes_to(sorted(found.names[host]))
        return z3.Or(answered, unknown) if host in partly else answered

    return has


# --- what becomes rules ------------------------------------------------------------------------------------------


def chain(bound: Bound, lines: Iterable[Line], packet: Packet) -> Formula:
    """Whether a qube's chain accepts a packet: the first line that matches decides, then the last rule."""
    accepted = z3.BoolVal(bound.accept)
    for line in reversed(tuple(lines)):
        accepted = z3.If(_matches(bound, line, packet), z3.BoolVal(line.accept), accepted)
    return accepted


def _matches(bound: Bound, line: Line, packet: Packet) -> Formula:
    conditions = []
    if line.network is not None:
        mask, own = int(line.network.netmask), int(line.network.network_address)
        conditions.append(packet.destination & mask == own)
    if line.host is not None:
        conditions.append(packet.goes_to(bound.of(line.host).addresses))
    if line.dns:
        conditions.append(packet.goes_to(sorted(naive.DNS[packet.version])))
    if line.protocols:
        numbers = {"tcp": 6, "udp": 17, "icmp": naive.ICMP[packet.version]}
        conditions.append(z3.Or([packet.protocol == numbers[each] for each in line.protocols]))
    if line.ports is not None:
        conditions += [z3.UGE(packet.port, line.ports.first), z3.ULE(packet.port, line.ports.last)]
    if line.icmp_type is not None:
        conditions.append(packet.icmp_type == line.icmp_type)
    return z3.And(conditions)


def forward(packet: Packet, lists: Mapping[str, Formula], rules: Mapping[str, tuple[str, ...]], policy: str) -> Formula:
    """Whether the chain `forward` accepts a packet.

    Args:
        packet: any one.
        lists: address of each qube in the map → whether its chain accepts the packet.
        rules: of the chains that users share: only those that are known here.
        policy: declaration of the hook.
    """
    accepted = z3.BoolVal(not policy.endswith("policy drop;"))
    for rule in reversed(rules["forward"]):
        accepted = _step(rule, packet, lists, rules, accepted)
    return accepted


def _step(
    rule: str, packet: Packet, lists: Mapping[str, Formula], rules: Mapping[str, tuple[str, ...]], rest: Formula
) -> Formula:
    """Whether it is accepted from a rule on; `rest`: whether it is accepted behind it."""
    word = "ip" if packet.version == 4 else "ip6"
    if rule == "counter":
        return rest
    if rule == "ct state established,related accept":
        return z3.Or(packet.answers, rest)
    if rule == 'iifgroup != 2 iifname != "vif*" accept':
        return z3.Or(z3.And(z3.Not(packet.in_group), z3.Not(packet.from_vif)), rest)
    if rule == f"{word} saddr vmap @{FIREWALL_MAP}":
        for address, accepted in lists.items():
            rest = z3.If(packet.source == number(address), accepted, rest)
        return rest
    assert rule == f"jump {ruleset.QUBES_FORWARD}", rule
    for each in reversed(rules[ruleset.QUBES_FORWARD]):
        rest = _step(each, packet, lists, rules, rest)
    return rest
