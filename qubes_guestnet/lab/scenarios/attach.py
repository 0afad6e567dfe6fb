# SPDX-License-Identifier: GPL-2.0-or-later
"""Interfaces come and go: S-000, S-001a, S-001b, S-110, S-111."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..capture import Capture
from ..namespaces import LabError
from ..qube import Service
from ..stage import Stage

_ROUNDS = 50
# A pass needs a few ms of the processor: at half a ms in every 300 it takes a second or two.
_RUNS, _STOPS = 0.0005, 0.3


def s_000(stage: Stage) -> None:
    """vm1 starts: it reaches the world, its IPv4 table is one device route, and there is no DHCP packet."""
    capture = Capture(stage.netvm1.running)
    stage.step("vm1 starts behind netvm1")
    vm = stage.start("vm1", stage.netvm1)
    stage.configured(vm)
    if not stage.gateway:
        table = vm.running.ip("-4", "route", "show", "table", "main")
        if len(table) != 1:
            raise LabError(f"vm1's IPv4 table has {len(table)} routes: {table}")
    stage.step("vm1 reaches the world")
    stage.reaches(vm)
    stage.step("no DHCP was on the wire")
    frames = capture.stop()
    stage.note(f"{frames.all} frames, of them {frames.arp} ARP, {frames.dhcp} DHCP")
    if not frames.all or frames.dhcp or frames.lost:
        raise LabError(f"frames on the wire: {frames}")


def s_001a(stage: Stage) -> None:
    """vm1 without provider, paused; gets netvm1; unpaused: reaches within 10 s."""
    stage.step("vm1 starts without a provider")
    vm = stage.start("vm1", None)
    stage.reaches_nothing(vm)
    stage.step("paused, and given netvm1")
    stage.dom0.pause(vm)
    stage.dom0.set_netvm(vm, stage.netvm1)
    stage.step("unpaused, it reaches the world")
    stage.dom0.unpause(vm)
    stage.works(vm)


def s_001b(stage: Stage) -> None:
    """vm1 paused; provider removed; unpaused: no address and no route, though the entries are still there."""
    stage.step("vm1 starts behind netvm1")
    vm = stage.start("vm1", stage.netvm1)
    stage.reaches(vm)
    before = dict(vm.database)
    stage.step("paused, and its provider taken away")
    stage.dom0.pause(vm)
    stage.dom0.set_netvm(vm, None)
    stage.step("unpaused, it reaches nothing")
    stage.dom0.unpause(vm)
    stage.reaches_nothing(vm)
    kept = stage.dom0.read_all(vm)
    if kept != before:
        raise LabError(f"the entries should all be there still: {kept}")
    stage.note(f"{len(kept)} QubesDB entries are still there")


def s_110(stage: Stage) -> None:
    """vm1 runs without provider; gets one: reaches within 10 s."""
    stage.step("vm1 runs without a provider")
    vm = stage.start("vm1", None)
    stage.reaches_nothing(vm)
    stage.step("given netvm1, it reaches the world")
    stage.dom0.set_netvm(vm, stage.netvm1)
    stage.works(vm)


def s_111(stage: Stage) -> None:
    """Detached, attached again at once, 50 times, with configuration slowed to 1 s: the last state wins."""
    stage.step("vm1 starts behind netvm1")
    vm = stage.start("vm1", stage.netvm1)
    stage.reaches(vm)
    agent = vm.running.agent
    assert agent is not None
    chance = random.Random(111)
    stage.step(f"detached and attached {_ROUNDS} times, the agent slowed down")
    with slowed(agent):
        for _ in range(_ROUNDS):
            stage.dom0.detach(vm)
            stage.dom0.attach(vm)
            time.sleep(chance.uniform(0, 0.05))
        stage.step("still slow, it reaches the world")
        stage.configured(vm, deadline=40.0)
        stage.reaches(vm)
    stage.step("detached for good, nothing is left")
    stage.dom0.detach(vm)
    stage.reaches_nothing(vm)


@contextmanager
def slowed(service: Service) -> Iterator[None]:
    """Let a service run half a millisecond in every three hundred."""
    pid = service.pid
    child = os.fork()
    if child == 0:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        while True:
            try:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(_STOPS)
                os.kill(pid, signal.SIGCONT)
                time.sleep(_RUNS)
            except ProcessLookupError:
                os._exit(0)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.kill(pid, signal.SIGCONT)
