# SPDX-License-Identifier: GPL-2.0-or-later
"""Names at every depth of a tree while the outside changes: S-010, S-302, S-320."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

from .. import probes, world
from ..dom0 import Vm
from ..namespaces import LabError
from ..provider import VIRTUAL_DNS
from ..qube import Qube, eventually
from ..stage import Stage, default_routes, nameservers
from ..world import Offer

_RESOLV_CONF = "/etc/resolv.conf"
_NAMES_DEADLINE = 2.0
_SECOND_SERVER, _THIRD_SERVER = "192.168.123.46", "192.168.123.47"


def s_010(stage: Stage) -> None:
    """The proxy between netvm1 and vm1 loses netvm1, and regains it, whose world has other addresses now."""
    stage.step("vm1 starts behind proxy, proxy behind netvm1")
    netvm1 = stage.netvm1
    proxy = stage.proxy("proxy")
    vm = stage.start("vm1", proxy)
    for each in (proxy, vm):
        stage.reaches(each)
        stage.answered(each)
    _redirected(netvm1, (world.HOST,))
    _redirected(proxy, VIRTUAL_DNS)
    stage.step("proxy loses its provider: neither of them reaches anything")
    stage.dom0.set_netvm(proxy, None)
    eventually("proxy has no default route", lambda: not default_routes(proxy.running))
    for each in (proxy, vm):
        if probes.ping(each.running, world.HOST, 0.2) is not None:
            raise LabError(f"{each.name} reaches {world.HOST} and must not")
    stage.step("netvm1's world gets other addresses, and other DNS servers")
    outside = netvm1.world
    assert outside is not None
    outside.change(_elsewhere(outside.offer, (_SECOND_SERVER, _THIRD_SERVER)))
    _redirected(netvm1, (_SECOND_SERVER, _THIRD_SERVER))
    stage.step("proxy regains netvm1: proxy and vm1 reach the world")
    stage.dom0.set_netvm(proxy, netvm1)
    stage.works(proxy, vm)
    _redirected(proxy, VIRTUAL_DNS)


def _elsewhere(offer: Offer, dns: tuple[str, ...]) -> Offer:
    """Another net outside, as in another WLAN."""
    return offer._replace(network="192.168.7.0/24", router="192.168.7.1", address="192.168.7.9", dns=dns)


def redirections(qube: Qube) -> dict[tuple[str, str], str]:
    """Return a provider's redirections, (virtual address, protocol) to server, as `nft -json` prints them."""
    listing = json.loads(qube.run("nft", "-json", "list", "chain", "ip", "qubes", "dnat-dns").stdout)
    found = {}
    for rule in (entry["rule"]["expr"] for entry in listing["nftables"] if "rule" in entry):
        matches = {part["match"]["left"]["payload"]["field"]: part["match"] for part in rule if "match" in part}
        server = next(part["dnat"]["addr"] for part in rule if "dnat" in part)
        found[matches["daddr"]["right"], matches["dport"]["left"]["payload"]["protocol"]] = server
    return found


def _redirected(provider: Vm, servers: tuple[str, ...]) -> None:
    """Within 2 s both virtual addresses lead to the servers, one after the other, by udp and by tcp."""
    expected = {
        (virtual, protocol): servers[number % len(servers)]
        for number, virtual in enumerate(VIRTUAL_DNS)
        for protocol in ("udp", "tcp")
    }
    _within(f"{provider.name} sends names to {servers}", lambda: redirections(provider.running) == expected,
            lambda: f"{redirections(provider.running)}")  # fmt: skip


def _within(what: str, probe: Callable[[], bool], found: Callable[[], str]) -> None:
    try:
        eventually(what, probe, _NAMES_DEADLINE)
    except LabError as error:
        raise LabError(f"{error.problem}: {found()}") from None


def s_302(stage: Stage) -> None:
    """The provider's real DNS servers change: names resolve again within 2 s at every depth, and no resolv.conf
    changes.
    """
    stage.step("a qube behind netvm1, one behind a proxy, one behind two")
    netvm1 = stage.netvm1
    near = stage.proxy("near")
    far = stage.proxy("far", near)
    vms = [stage.start(f"vm{depth}", netvm) for depth, netvm in enumerate((netvm1, near, far), start=1)]
    askers = [near, far, *vms]
    for vm in askers:
        stage.reaches(vm)
    files = {vm.name: vm.running.path(_RESOLV_CONF).read_bytes() for vm in askers}
    outside = netvm1.world
    assert outside is not None
    # A resolver that asks again from the same port must not be redirected to the former server for ever.
    clients = {vm.name: vm.running.socket(socket.AF_INET, socket.SOCK_DGRAM) for vm in askers}
    _resolve(clients)
    stage.step("netvm1 is in another WLAN")
    outside.change(_elsewhere(outside.offer, (_SECOND_SERVER, _THIRD_SERVER)))
    _resolve(clients)
    stage.step("one server is no more, and an editor writes resolv.conf in place")
    outside.qube.wire(f"ip address delete {_SECOND_SERVER}/32 dev lo")
    netvm1.running.write(_RESOLV_CONF, f"nameserver {_THIRD_SERVER}\n")
    _resolve(clients)
    for vm in askers:
        stage.reaches(vm)
    stage.step("no resolv.conf of the qubes behind it has changed")
    for vm in askers:
        found = vm.running.path(_RESOLV_CONF).read_bytes()
        if found != files[vm.name]:
            raise LabError(f"{vm.name}'s resolv.conf has changed: {found!r}")


def _resolve(clients: dict[str, socket.socket]) -> None:
    """Within 2 s both virtual addresses answer everybody, each from the very port it used before."""
    left = {(name, virtual) for name in clients for virtual in VIRTUAL_DNS}

    def all_answered() -> bool:
        left.difference_update(
            {(name, virtual) for name, virtual in left if probes.query(clients[name], virtual, world.NAME, 0.1)}
        )
        return not left

    _within("names resolve for all", all_answered, lambda: f"not for {sorted(left)}")


def s_320(stage: Stage) -> None:
    """A name with an IPv6 address only: resolved through the IPv4 virtual DNS, and reached over IPv6."""
    stage.step("a provider with IPv6, a proxy behind it, vm1 behind that")
    netvm6 = stage.provider("netvm6", ipv6=True)
    proxy = stage.proxy("proxy", netvm6)
    vm = stage.start("vm1", proxy)
    for each in (proxy, vm):
        stage.reaches(each)
        stage.step(f"{each.name} resolves {world.NAME6} by IPv4, and reaches it by IPv6")
        if nameservers(each.running) != list(VIRTUAL_DNS):
            raise LabError(f"{each.name} asks {nameservers(each.running)}")
        found = [probes.resolve(each.running, world.NAME6, version) for version in (4, 6)]
        if found != [[], [world.HOST6]]:
            raise LabError(f"{world.NAME6} is by IPv4 and by IPv6: {found}")
        if probes.ping(each.running, world.HOST6) is None:
            raise LabError(f"{each.name}: no answer from {world.HOST6}")
        if not probes.echo(each.running, world.HOST6, world.ECHO_PORTS[0]):
            raise LabError(f"{each.name}: no TCP connection to {world.HOST6}")
    stage.step("a qube behind netvm1, which has no IPv6, resolves the name and does not reach it")
    vm4 = stage.start("vm4", stage.netvm1)
    stage.reaches(vm4)
    if probes.resolve(vm4.running, world.NAME6, 6) != [world.HOST6]:
        raise LabError("the name is to be resolved without IPv6 too")
    if probes.ping(vm4.running, world.HOST6, 0.2) is not None:
        raise LabError("vm4 reaches the world over IPv6")
