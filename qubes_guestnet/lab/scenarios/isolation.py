# SPDX-License-Identifier: GPL-2.0-or-later
"""Qubes are kept from one another, and from what is not theirs: S-040, S-050."""

from __future__ import annotations

import contextlib
import os
import select
import time
from functools import partial

from .. import counters, frames, world
from ..dom0 import INTERFACE, Vm
from ..namespaces import LabError
from ..probes import Echo
from ..provider import VIRTUAL_DNS
from ..qube import eventually
from ..stage import Stage, interface_of

# What is dropped is dropped at once; an answer, if there is a way, needs less than a ms.
_SILENCE = 0.2
_FAMILIES = {4: "ip", 6: "ip6"}
_STOLEN, _STOLEN6 = "10.137.1.128/24", "fd09:24ef:4179::a89:ff80/64"
_PORT = 9


def s_040(stage: Stage) -> None:
    """vm1 and vm2 behind the same proxy, then vm2 behind netvm1, then both there: they never reach one another."""
    stage.step("vm1 and vm2 start behind the same proxy")
    proxy = stage.proxy("proxy")
    vm1, vm2 = stage.start("vm1", proxy), stage.start("vm2", proxy)
    _apart(stage, vm1, vm2)
    stage.step("vm2 moves to netvm1")
    stage.dom0.set_netvm(vm2, stage.netvm1)
    _apart(stage, vm1, vm2)
    stage.step("vm1 moves to netvm1, too")
    stage.dom0.set_netvm(vm1, stage.netvm1)
    _apart(stage, vm1, vm2)


def _apart(stage: Stage, vm1: Vm, vm2: Vm) -> None:
    """Both reach the world, and neither the other, by any address of it."""
    for vm in (vm1, vm2):
        stage.reaches(vm)
    asked = [(vm1, own) for own in _addresses(vm2)] + [(vm2, own) for own in _addresses(vm1)]
    # What came by another way than an answer shows in the qube that was not to get it.
    with contextlib.ExitStack() as stack:
        taps = {vm.name: stack.enter_context(contextlib.closing(frames.Tap(vm.running))) for vm in (vm1, vm2)}
        reached = silent_but_for(stage, asked)
        if reached:
            raise LabError(f"{reached} answered")
        for asker, other in ((vm1, vm2), (vm2, vm1)):
            for address in _addresses(asker):
                arrived = [f for f in taps[other.name].frames(INTERFACE) if not f.outgoing and _from(f, address)]
                if arrived:
                    raise LabError(f"{other.name} got {len(arrived)} frames of {address}, which is {asker.name}'s")


def _addresses(vm: Vm) -> list[str]:
    return [vm.address, *([vm.networked6] if vm.networked6 else [])]


def _from(frame: frames.Frame, address: str) -> bool:
    return frames.source(frame.octets) == address


def silent_but_for(stage: Stage, asked: list[tuple[Vm, str]]) -> list[str]:
    """Ping all at once; return the answering qubes, after a long enough silence."""
    found: list[str] = []
    with contextlib.ExitStack() as stack:
        waiting = {
            stack.enter_context(contextlib.closing(Echo(vm.running, address))): f"{address} asked by {vm.name}"
            for vm, address in asked
        }
        sent = [echoes.send() for echoes in waiting]
        stage.note(f"{sum(sent)} of {len(sent)} echoes went out")
        end = time.monotonic() + _SILENCE
        while (left := end - time.monotonic()) > 0:
            found += [waiting[ready] for ready in select.select(list(waiting), [], [], left)[0] if ready.answered()]
    return found


def s_050(stage: Stage) -> None:
    """vm1 takes an address that is not its own: nothing of it gets to custom-input, to a qube, or out."""
    netvm1 = stage.netvm1.running
    stage.step("vm1, vm2 and vm3, which is to have no IPv6, start behind netvm1")
    vm1, vm2 = stage.start("vm1", stage.netvm1), stage.start("vm2", stage.netvm1)
    vm3 = stage.dom0.create("vm3", stage.netvm1, ipv6="")
    stage.boot(vm3)
    stage.works(vm1, vm2, vm3)
    _sets(stage, (vm1, vm2, vm3))
    for family in _FAMILIES.values():
        counters.count(netvm1, family, "custom-input", "iifgroup", "2")  # routers are looked for on its uplink
    stage.step("with its own address vm1 gets to custom-input, and out")
    with contextlib.closing(Watch(stage, (vm2, vm3))) as watch:
        own = frames.udp(vm1.address, world.HOST, _PORT, watch.mark)
        frames.send(vm1.running, INTERFACE, frames.framed(own, vm1.mac))
        eventually("it leaves for the world", lambda: watch.strays() == ["the world"])
    gateways = [stage.netvm1.visible_address, *([stage.netvm1.gateway6] if stage.netvm1.gateway6 else [])]
    if len(silent_but_for(stage, [(vm1, gateway) for gateway in gateways])) != len(gateways):
        raise LabError(f"not all of {gateways} answered vm1")
    before = {family: counters.counted(netvm1, family, "custom-input")[0] for family in _FAMILIES.values()}
    if not before["ip"] or bool(before["ip6"]) != stage.ipv6:
        raise LabError(f"custom-input counted {before}")
    stage.step("vm1 flushes its addresses, and takes others")
    _steal(vm1)
    _spoofs(stage, vm1, vm2, vm3)
    after = {family: counters.counted(netvm1, family, "custom-input")[0] for family in _FAMILIES.values()}
    if after != before:
        raise LabError(f"custom-input counted {after}, before {before}")


def _sets(stage: Stage, vms: tuple[Vm, ...]) -> None:
    """The sets and groups mean what they always meant (behaviour B51)."""
    netvm1 = stage.netvm1.running
    for version, family in _FAMILIES.items():
        # Without IPv6 in the provider nothing of it is asked what is in the sets.
        if version == 6 and not stage.ipv6:
            continue
        own = {vm.vif: vm.address if version == 4 else vm.networked6 for vm in vms}
        allowed = {(vif, address) for vif, address in own.items() if vif and address}
        if counters.elements(netvm1, family, "allowed") != allowed:
            raise LabError(f"{family} allowed: {counters.elements(netvm1, family, 'allowed')}, expected {allowed}")
        downstream = {(address,) for _, address in allowed}
        if counters.elements(netvm1, family, "downstream") != downstream:
            raise LabError(f"{family} downstream: {counters.elements(netvm1, family, 'downstream')}")
    groups = {link["ifname"]: link["group"] for link in netvm1.ip("link") if link["ifname"].startswith("vif")}
    if groups != {vm.vif: "2" for vm in vms}:
        raise LabError(f"groups of vifs are {groups}")
    for vm in vms:
        link = interface_of(vm.running, vm.mac)
        if link is None or link["group"] != "1":
            raise LabError(f"{vm.name}'s uplink is not in group 1: {link}")


def _steal(vm: Vm) -> None:
    """Steal an address as an attacker in the qube would: no program restores the qube's own."""
    assert vm.running.agent is not None
    vm.running.agent.kill()
    vm.running.run(
        "sh", "-ec", f"""
        ip address flush dev {INTERFACE}
        ip address add {_STOLEN} dev {INTERFACE}
        ip route replace default dev {INTERFACE}
        """,
    )  # fmt: skip
    if vm.netvm is not None and vm.netvm.gateway6:
        vm.running.run(
            "sh", "-ec", f"""
            ip -6 address add {_STOLEN6} dev {INTERFACE} nodad
            ip -6 route replace default via {vm.netvm.gateway6} dev {INTERFACE} onlink
            """,
        )  # fmt: skip


def _spoofs(stage: Stage, vm1: Vm, vm2: Vm, vm3: Vm) -> None:
    netvm1 = stage.netvm1
    gateway, gateway6 = netvm1.visible_address, netvm1.gateway6 or "fe80::fcff:ffff:feff:ffff"
    asked = [(vm1, address) for address in (gateway, world.PROVIDER, world.HOST, vm2.address)]
    asked += [(vm1, address) for address in (netvm1.gateway6, vm2.networked6, world.HOST6) if address]
    sources = ["10.137.1.128", vm2.address, vm3.address, gateway, world.HOST, world.PROVIDER, "127.0.0.1", "0.0.0.0",
               "255.255.255.255", "224.0.0.1", VIRTUAL_DNS[0]]  # fmt: skip
    sources6 = ["fd09:24ef:4179::a89:ff80", vm2.address6, gateway6, world.HOST6, "::", "fe80::1"]
    targets = [gateway, world.PROVIDER, world.HOST, vm2.address, vm3.address, "255.255.255.255", "224.0.0.1"]
    targets6 = [gateway6, world.PROVIDER6, world.HOST6, vm2.address6, vm3.address6, "ff02::1", "ff02::2"]
    with contextlib.closing(Watch(stage, (vm2, vm3))) as watch:
        dropped = {family: _dropped(netvm1, family) for family in _FAMILIES.values()}
        answered = silent_but_for(stage, asked)
        if answered:
            raise LabError(f"a stolen address was answered: {answered}")
        stage.step("raw frames with every other address, and IPv6 from a qube that has none")
        sent = {"ip": 0, "ip6": 0}
        cases = [
            (vm1, "ip", sources, targets), (vm1, "ip6", sources6, targets6),
            (vm3, "ip6", [*sources6, vm1.address6, vm3.address6], targets6),
        ]  # fmt: skip
        for vm, family, froms, tos in cases:
            packets = [frames.udp(source, target, _PORT, watch.mark) for source in froms for target in tos]
            frames.send(vm.running, INTERFACE, *(frames.framed(packet, vm.mac) for packet in packets))
            # On a vif without IPv6 the kernel throws it away before any rule.
            sent[family] += len(packets) if family == "ip" or vm.networked6 else 0
            stage.note(f"{vm.name}: {len(packets)} {family} frames with a source that is not its own")
        for family, number in sent.items():
            eventually(f"{family}: the rules drop {number}", partial(_have_dropped, netvm1, family, dropped, number))
        watch.last(vm1, vm3)
        strays = watch.strays()
        if strays:
            raise LabError(f"what vm1 sent with addresses that are not its own came to {strays}")


def _have_dropped(netvm: Vm, family: str, before: dict[str, int], number: int) -> bool:
    return _dropped(netvm, family) - before[family] >= number


def _dropped(netvm: Vm, family: str) -> int:
    """Return packets of vifs that were dropped at the entrance because of their addresses."""
    return counters.counted(netvm.running, family, "antispoof")[0]


class Watch:
    """Where frames with a mark come to: the world and the uplink of netvm1, and qubes.

    Args:
        stage: whose netvm1 it is.
        vms: the qubes.
    """

    def __init__(self, stage: Stage, vms: tuple[Vm, ...]) -> None:
        outside = stage.netvm1.world
        assert outside is not None
        self.mark = os.urandom(16)
        self._taps = {"the world": frames.Tap(outside.qube)} | {vm.name: frames.Tap(vm.running) for vm in vms}

    def strays(self) -> list[str]:
        """Return the qubes that received one."""
        return [name for name, tap in self._taps.items() if any(not f.outgoing for f in tap.with_octets(self.mark))]

    def last(self, *vms: Vm) -> None:
        """What is behind all others: with their own addresses, which come through."""
        for vm in vms:
            mark = os.urandom(16)
            own = frames.udp(vm.address, world.HOST, _PORT, mark)
            frames.send(vm.running, INTERFACE, frames.framed(own, vm.mac))
            eventually(f"what {vm.name} sends comes out", partial(self._taps["the world"].with_octets, mark))

    def close(self) -> None:
        """No more of it."""
        for tap in self._taps.values():
            tap.close()
