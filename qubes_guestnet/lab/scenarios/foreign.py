# SPDX-License-Identifier: GPL-2.0-or-later
"""Things in a qube that are not the agent's: a VPN's tunnel, and what a user's hook adds to the uplink."""

from __future__ import annotations

from typing import Any

from ..dom0 import Vm
from ..namespaces import LabError
from ..stage import FOREIGN_ADDRESS, FOREIGN_MAC, Stage

_VPN = """
    ip link add tun0 type veth peer name tun0-far
    ip link set tun0 up; ip link set tun0-far up
    ip address add 10.8.0.2/24 dev tun0
    ip route add 198.51.100.0/24 dev tun0
    ip route add default dev tun0 metric 5000
    ip route add default dev tun0 table 51820
    ip neighbour add 10.8.0.1 lladdr 02:00:00:00:00:01 nud permanent dev tun0
"""
# Of host scope: else the kernel could take it as the source of packets into the world, which no answer finds.
_HOOK = f"""
    ip address add {FOREIGN_ADDRESS} dev eth0 scope host
    ip route add 203.0.113.0/24 dev eth0 proto static
    ip route add blackhole 192.0.2.0/24
    ip neighbour add 10.137.9.9 lladdr 02:00:00:00:00:02 nud permanent dev eth0
"""
_UNHOOK = f"""
    ip address del {FOREIGN_ADDRESS} dev eth0
    ip route del 203.0.113.0/24 dev eth0
    ip neighbour del 10.137.9.9 dev eth0
"""


def add_foreign(stage: Stage, vm: Vm) -> dict[str, Any]:
    """Add a VPN's settings and a user's; what `check_foreign` is to find again."""
    stage.foreign = True
    vm.running.wire(_VPN + _HOOK)
    return snapshot(vm)


def remove_hook(vm: Vm) -> dict[str, Any]:
    """Remove what a user's hook added to the uplink; what `check_foreign` is to find again."""
    vm.running.wire(_UNHOOK)
    return snapshot(vm)


def snapshot(vm: Vm) -> dict[str, Any]:
    """Return all there is that is not the agent's, told apart by what we added and not by marks of the agent's."""
    qube = vm.running
    routes = [
        *qube.ip("-4", "route", "show", "table", "main"),
        *qube.ip("-4", "route", "show", "table", "51820"),
    ]
    addresses = [
        (link["ifname"], address["local"], address["prefixlen"])
        for link in qube.ip("-4", "address")
        for address in link["addr_info"]
        if link["ifname"] != "eth0" or f"{address['local']}/{address['prefixlen']}" == FOREIGN_ADDRESS
    ]
    neighbours = [
        (n["dst"], n.get("lladdr"), n["dev"]) for n in qube.ip("neighbour") if FOREIGN_MAC in n.get("lladdr", "")
    ]
    foreign = [
        (route.get("type"), route["dst"], route.get("dev"), route.get("protocol"), route.get("metric"))
        for route in routes
        if route.get("dev") != "eth0" or route.get("protocol") == "static"
    ]
    return {"routes": sorted(map(str, foreign)), "addresses": sorted(addresses), "neighbours": sorted(neighbours)}


def check_foreign(vm: Vm, before: dict[str, Any]) -> None:
    """LabError naming what is not as it was."""
    now = snapshot(vm)
    for what, wanted in before.items():
        if now[what] != wanted:
            raise LabError(f"foreign {what} were touched: {now[what]}, before: {wanted}")
