# SPDX-License-Identifier: GPL-2.0-or-later
"""IPv6 comes and goes in a running tree, and IPv4 does not notice: S-312."""

from __future__ import annotations

import contextlib
import json
import os
from functools import partial

from .. import counters, frames, world
from ..dom0 import INTERFACE, Vm
from ..flood import Flood
from ..namespaces import LabError
from ..qube import eventually
from ..stage import Stage, addresses
from ..vm import IPV6
from ..world import Offer

_PORT = 9


def s_312(stage: Stage) -> None:
    """IPv6 on and off for sys-net while pings flow: addresses, forwarding, rules follow, and no ping is lost.

    The pings are those of qubes that keep their interface: what is attached anew is away for that long. A qube behind
    sys-net has pings all the time, one behind the proxy whenever the proxy is not attached anew.
    """
    stage.step("sys-net without IPv6, though its world has it; proxy and near behind it, vm1 and far behind proxy")
    sys_net = stage.dom0.create_provider("sys-net", ipv6=False, offer=Offer(ipv6=True))
    proxy = stage.proxy("proxy", sys_net)
    near, far, vm1 = stage.start("near", sys_net), stage.start("far", proxy), stage.start("vm1", proxy)
    for vm in (near, far, vm1):
        stage.reaches(vm)
    _off(sys_net, proxy, vm1)
    all_the_time = Flood(near.running, world.HOST)
    stage.step("IPv6 is switched on; proxy and vm1 are attached anew")
    with_rules = Flood(far.running, world.HOST)
    stage.dom0.set_feature(sys_net, IPV6, "1")
    _told_by_hand(stage, sys_net, proxy)
    _forwards(sys_net, proxy)
    _none_lost(stage, "far", with_rules)
    stage.dom0.reattach(proxy)
    stage.configured(proxy)
    with_vm1 = Flood(far.running, world.HOST)
    stage.dom0.reattach(vm1)
    stage.configured(vm1)
    _on(sys_net, proxy, vm1)
    for vm in (proxy, vm1):
        if not vm.reaches6:
            raise LabError(f"{vm.name} should have IPv6 now")
        stage.reaches(vm)
    _comes_out(sys_net, (proxy, vm1), True)
    stage.step("IPv6 is switched off; vm1 is attached anew")
    stage.dom0.set_feature(sys_net, IPV6, "")
    _told_by_hand(stage, sys_net, proxy)
    stage.dom0.reattach(vm1)
    _off(sys_net, proxy, vm1)
    stage.reaches(vm1)
    _none_lost(stage, "far", with_vm1)
    _comes_out(sys_net, (proxy, vm1), False)
    _none_lost(stage, "near", all_the_time)


def _told_by_hand(stage: Stage, *providers: Vm) -> None:
    """dom0 does not tell a running provider about the feature, so its user does, without an interruption for any
    qube.
    """
    for vm in providers:
        stage.dom0.correct_by_hand(vm)


def _comes_out(sys_net: Vm, vms: tuple[Vm, ...], expected: bool) -> None:
    """Whether what qubes send by IPv6 comes out; where it is off they use the addresses they had."""
    assert sys_net.world is not None
    with contextlib.closing(frames.Tap(sys_net.world.qube)) as outside:
        for vm in vms:
            with6, after = os.urandom(16), os.urandom(16)
            packets = (
                frames.udp(vm.address6, world.HOST6, _PORT, with6), frames.udp(vm.address, world.HOST, _PORT, after)
            )  # fmt: skip
            frames.send(vm.running, INTERFACE, *(frames.framed(packet, vm.mac) for packet in packets))
            eventually(f"IPv4 of {vm.name}, sent behind it, comes out", partial(outside.with_octets, after))
            if bool(outside.with_octets(with6)) != expected:
                raise LabError(f"IPv6 of {vm.name} comes out: {not expected}, expected {expected}")


def _none_lost(stage: Stage, name: str, flood: Flood) -> None:
    flow = flood.stop()
    stage.note(f"{name}: {flow.answered} of {flow.sent} pings answered, longest gap {1000 * flow.gap:.0f} ms")
    if flow.answered != flow.sent or not flow.sent:
        raise LabError(f"{name}: {flow.sent - flow.answered} of {flow.sent} pings were lost")


def _forwards(*providers: Vm) -> None:
    for vm in providers:
        eventually(f"{vm.name} forwards IPv6", lambda vm=vm: _forwarding(vm) == ("1", "accept"))  # type: ignore[misc]


def _forwarding(vm: Vm) -> tuple[str, str]:
    """IPv6: what the kernel says of forwarding, and the policy of the rules."""
    listing = json.loads(vm.running.run("nft", "--json", "list", "chain", "ip6", "qubes", "forward").stdout)
    policy = next(entry["chain"]["policy"] for entry in listing["nftables"] if "chain" in entry)
    # That file shows the network namespace of the reading process.
    return vm.running.run("cat", "/proc/sys/net/ipv6/conf/all/forwarding").stdout.strip(), policy


def _on(sys_net: Vm, proxy: Vm, vm1: Vm) -> None:
    """Check that IPv6 is complete at both providers."""
    _forwards(sys_net, proxy)
    for provider, vm in ((sys_net, proxy), (proxy, vm1)):
        eventually(f"{provider.name} serves {vm.name} IPv6", lambda p=provider, v=vm: _served(p, v) == "all")  # type: ignore[misc]


def _off(sys_net: Vm, proxy: Vm, vm1: Vm) -> None:
    """Nothing of IPv6 is left, at both providers."""
    for provider, vm in ((sys_net, proxy), (proxy, vm1)):
        eventually(f"{provider.name} forwards no IPv6", lambda p=provider: _forwarding(p) == ("0", "drop"))  # type: ignore[misc]
        eventually(f"{provider.name} serves {vm.name} no IPv6", lambda p=provider, v=vm: _served(p, v) == "none")  # type: ignore[misc]


def _served(provider: Vm, vm: Vm) -> str:
    """Return what of a qube's IPv6 its provider has: route, neighbour, gateway's address; all, none, or which."""
    qube, vif = provider.running, vm.vif or INTERFACE
    (link,) = qube.ip("address", "show", "dev", vif)
    neighbours = qube.ip("-6", "neighbour", "show", "dev", vif)
    has = {
        "route": any(route["dst"] == vm.address6 for route in qube.ip("-6", "route", "show", "dev", vif)),
        "neighbour": any(entry["dst"] == vm.address6 and "PERMANENT" in entry["state"] for entry in neighbours),
        "gateway": f"{provider.address6}/128" in addresses(link),
    }
    named = [name for name, there in has.items() if there]
    # Where IPv6 is off nothing is let through at all, whatever else is allowed.
    allowed = (vif, vm.address6) in counters.elements(qube, "ip6", "allowed")
    return "all" if len(named) == len(has) and allowed else ", ".join(named) or "none"
