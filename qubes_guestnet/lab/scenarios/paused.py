# SPDX-License-Identifier: GPL-2.0-or-later
"""A paused qube's provider is exchanged, ends or starts anew: S-001c to S-001f (#10173)."""

from __future__ import annotations

from collections.abc import Callable

from ..dom0 import Vm
from ..stage import REACH_DEADLINE, Stage


def s_001c(stage: Stage) -> None:
    """vm1 behind netvm2, paused; moved to netvm1; netvm2 shut down; unpaused: reaches through netvm1."""
    _moved(stage, "is shut down", stage.dom0.shutdown)


def s_001d(stage: Stage) -> None:
    """vm1 behind netvm2, paused; moved to netvm1; netvm2 killed and deleted; unpaused: reaches."""

    def delete(netvm2: Vm) -> None:
        stage.dom0.kill(netvm2)
        stage.dom0.delete(netvm2)

    _moved(stage, "is killed and deleted", delete)


def _moved(stage: Stage, how: str, end: Callable[[Vm], None]) -> None:
    stage.step("vm1 starts behind netvm2")
    netvm2 = stage.provider("netvm2")
    vm = stage.start("vm1", netvm2)
    stage.reaches(vm)
    stage.step("paused, and moved to netvm1")
    stage.dom0.pause(vm)
    stage.dom0.set_netvm(vm, stage.netvm1)
    stage.step(f"netvm2 {how}")
    end(netvm2)
    stage.step("unpaused, it reaches the world through netvm1")
    stage.dom0.unpause(vm)
    _converges(stage, vm)


def _converges(stage: Stage, vm: Vm) -> None:
    """dom0's question after an unpause, qubes.WaitForNetworkUplink, is answered in time, and the answer is true."""
    vm.running.guestnet("wait-uplink", "--timeout", f"{REACH_DEADLINE:g}")
    stage.works(vm)


def s_001e(stage: Stage) -> None:
    """vm1 paused; netvm1 restarted; unpaused: reaches."""
    stage.step("vm1 starts behind netvm1")
    vm = stage.start("vm1", stage.netvm1)
    stage.reaches(vm)
    stage.step("paused, and netvm1 restarts")
    stage.dom0.pause(vm)
    stage.dom0.restart(stage.netvm1)
    stage.step("unpaused, it reaches the world")
    stage.dom0.unpause(vm)
    _converges(stage, vm)


def s_001f(stage: Stage) -> None:
    """vm1 paused; netvm1 shut down, started only when vm1 runs again: reaches then."""
    stage.step("vm1 starts behind netvm1")
    vm = stage.start("vm1", stage.netvm1)
    stage.reaches(vm)
    stage.step("paused, and netvm1 shuts down")
    stage.dom0.pause(vm)
    stage.dom0.shutdown(stage.netvm1)
    stage.step("unpaused, it has no network, and does not wait for any")
    stage.dom0.unpause(vm)
    stage.reaches_nothing(vm)
    # Less than it takes to give up; the agent may still be about to notice that its interface went while it was paused.
    vm.running.guestnet("wait-uplink", "--timeout", "2")
    stage.step("netvm1 starts, and vm1 reaches the world")
    stage.dom0.start(stage.netvm1)
    _converges(stage, vm)
