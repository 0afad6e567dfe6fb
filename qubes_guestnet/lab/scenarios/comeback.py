# SPDX-License-Identifier: GPL-2.0-or-later
"""A provider is late, or ends and comes back: S-100, S-112, S-113, S-114."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

from .. import probes, world
from ..dom0 import Vm
from ..namespaces import LabError
from ..qube import Qube, eventually
from ..stage import Stage

_LATE = 1.0
_STARTS = 60  # an idle machine does so many within the limit


def s_100(stage: Stage) -> None:
    """The vif is there before anybody serves it; within 1 s of that one's start the qube reaches the world."""
    netvm1 = stage.netvm1
    stage.step("vm1's vif is there, and `vif online` has not been called")
    vm1 = _plugged(stage, "vm1")
    stage.step("Xen's hotplug starts late, and vm1 reaches the world")
    networking = netvm1.provides
    assert networking is not None
    assert vm1.plugged is not None
    _soon(stage, vm1, partial(networking.online, vm1.plugged))
    stage.step("Xen's hotplug says it once more, and nothing happens")
    networking.online(vm1.plugged)
    stage.reaches(vm1)
    stage.step("vm2's vif is there, and neither hotplug nor the agent of netvm1")
    assert netvm1.running.agent is not None
    netvm1.running.agent.stop()
    vm2 = _plugged(stage, "vm2")
    stage.step("netvm1's agent starts late and finds it: vm2 reaches the world")
    _soon(stage, vm2, netvm1.running.start_agent)
    stage.reaches(vm1)


def _plugged(stage: Stage, name: str) -> Vm:
    """Return a running qube whose vif is at netvm1, and not set up."""
    vm = stage.start(name, None)
    vm.netvm = stage.netvm1
    stage.dom0.refresh_connected(stage.netvm1)
    stage.dom0.write_entries(vm)
    stage.dom0.plug(vm)
    stage.dom0.reload_firewall(vm)
    assert vm.vif is not None
    link = stage.netvm1.running.ip("link", "show", "dev", vm.vif)[0]
    if "UP" in link["flags"] or link["group"] != "default":
        raise LabError(f"{vm.vif} is not untouched: {link['flags']}, group {link['group']}")
    return vm


def _soon(stage: Stage, vm: Vm, begin: Callable[[], object]) -> None:
    """From `begin` on: it gets its interface when Xen hears that it is connected, and reaches the world in time."""
    limit = _busy_limit(stage.netvm1.running)
    start = time.monotonic()
    begin()
    stage.dom0.connect(vm)
    # Until the kernel has noticed that the cable is in, a few ms, it drops what the vif is to send. An answer to ARP
    # among it is asked for again only after a second, which would be measured as ours.
    vif = ("link", "show", "dev", vm.vif or "")
    eventually(f"{vm.vif} has a carrier", lambda: stage.netvm1.running.ip(*vif)[0]["operstate"] == "UP")
    vm.running.wire(f"ip neighbour flush dev {vm.interface} nud incomplete")
    stage.reaches(vm)
    took = time.monotonic() - start
    stage.note(f"{vm.name} reaches the world {took:.2f} s after the start")
    # The machine may have become busy meanwhile, or calm again.
    if took > limit and took > (limit := max(limit, _busy_limit(stage.netvm1.running))):
        raise LabError(f"{vm.name} reaches the world after {took:.2f} s, which is more than {limit:.2f} s")
    stage.configured(vm)


def _busy_limit(qube: Qube) -> float:
    """Return what the limit is on a machine that is busy with other things: so many starts of an interpreter."""
    start = time.monotonic()
    for _ in range(3):
        qube.run(sys.executable, "-c", "pass")
    return max(_LATE, _STARTS * (time.monotonic() - start) / 3)


def s_112(stage: Stage) -> None:
    """The proxy is shut down, and started again: vm1 reaches by itself."""
    _comes_back(stage, "is shut down", stage.dom0.shutdown)


def s_113(stage: Stage) -> None:
    """The proxy is killed, and started again: vm1 reaches by itself."""
    _comes_back(stage, "is killed", stage.dom0.kill)


def s_114(stage: Stage) -> None:
    """The proxy crashes, and its provider hears of it only when it runs again: vm1 reaches by itself."""
    _comes_back(stage, "crashes", stage.dom0.crash)


def _comes_back(stage: Stage, how: str, end: Callable[[Vm], None]) -> None:
    stage.step("vm1 starts behind proxy")
    proxy = stage.proxy("proxy")
    vm = stage.start("vm1", proxy)
    stage.reaches(vm)
    stage.step(f"proxy {how}")
    end(proxy)
    stage.reaches_nothing(vm)
    stage.step("proxy starts again")
    stage.dom0.start(proxy)
    stage.dom0.offline_late()
    stage.step("vm1 reaches the world")
    stage.works(vm)
    stage.configured(proxy)
    stage.reaches(proxy)
    if not probes.echo(vm.running, world.HOST, world.ECHO_PORTS[0]):
        raise LabError("no TCP connection leads to the world")
