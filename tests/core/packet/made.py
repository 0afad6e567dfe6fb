# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets and rules as nft prints them, from few words."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from qubes_guestnet.core.packet.loaded import Base, Loaded, Rule
from qubes_guestnet.core.packet.match import Asked, Device, Packet

VIF, OUT = Device("vif4.0", 2), Device("eth0", 1)
QUBE, WORLD, QUBE6, WORLD6 = "10.137.0.4", "192.0.2.1", "fd09::4", "2001:db8::1"


def packet(
    target: str = WORLD, protocol: int = 6, port: int | None = 443, icmp_type: int | None = None, **more: Any
) -> Packet:
    """The first packet of a connection of the qube."""
    destination = ip_address(target)
    source = ip_address(QUBE if destination.version == 4 else QUBE6)
    made = Packet(VIF, source, destination, protocol, port, icmp_type, Asked(source, destination, port))
    return made._replace(**more)


def match(left: Any, right: Any, operator: str = "==") -> dict[str, Any]:
    return {"match": {"op": operator, "left": left, "right": right}}


def meta(key: str) -> dict[str, Any]:
    return {"meta": {"key": key}}


def payload(protocol: str, field: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": field}}


def ct(key: str, direction: str = "") -> dict[str, Any]:
    return {"ct": {"key": key, **({"dir": direction} if direction else {})}}


def rules(*rules: list[Any]) -> tuple[Rule, ...]:
    """Rules by their statements; the text of each is its number."""
    return tuple(Rule(f"rule {number}", "", tuple(each)) for number, each in enumerate(rules))


def loaded(*own: list[Any], policy: str = "accept", kind: str = "filter", **others: Any) -> Loaded:
    """A table with a chain at hook forward, and regular chains and sets: `set_NAME` and `size_NAME`."""
    base = Base(("ip", "t", "c"), kind, "forward", 0, policy)
    chains = {("ip", "t", "c"): rules(*own)}
    chains |= {("ip", "t", name): rules(*each) for name, each in others.items() if "_" not in name}
    sets = {("ip", "t", name[4:]): tuple(each) for name, each in others.items() if name.startswith("set_")}
    sizes = {("ip", "t", name[5:]): each for name, each in others.items() if name.startswith("size_")}
    return Loaded((base,), chains, sets, sizes)
