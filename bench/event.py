# SPDX-License-Identifier: GPL-2.0-or-later
"""A change in QubesDB to the kernel configured, by the resident agent.

What is changed is the qube's own address, 200 times. It starts with dom0's WRITE and ends when the kernel has announced
the new address and the removal of the old one. Beside it, in turn, the same change is made by
a compiled read of the key and two calls of `ip`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

from bench.figures import Result, spread
from bench.resident import AddressEvents, agent, store
from bench.stage import ADDRESS, IPV4_ENTRIES, OTHER_ADDRESS, Failed, Stage, enter, namespace, timed
from qubes_guestnet.lab.namespaces import CLONE_NEWNET, unshare

if TYPE_CHECKING:
    from qubes_guestnet.system.qubesdb.store import Store

# Or as long as plain programs take for the same change, if that is longer: on an idle machine it is as long.
BUDGET_MS = 5.0
EVENTS = 200
# Longer than the agent's quiet period (50 ms): each event finds it idle, as a lone event does in a qube.
PAUSE_SECONDS = 0.12
BASELINE_KEY = "/bench-address"


class _Baseline:
    """The change made by plain programs, in a namespace of its own, where it does not wake the agent."""

    def __init__(self, stage: Stage) -> None:
        self.environment = stage.baseline_environment()
        self.reader = stage.reader
        self._home = namespace()
        unshare(CLONE_NEWNET)
        self._own = namespace()
        self.kernel = AddressEvents()
        subprocess.run(["ip", "link", "add", "bench0", "type", "veth", "peer", "name", "bench1"], check=True)
        subprocess.run(["ip", "link", "set", "bench0", "up"], check=True)
        subprocess.run(["ip", "address", "add", "192.0.2.1/32", "dev", "bench0"], check=True)
        enter(self._home)

    def change(self, dom0: Store, new: str, old: str) -> float:
        """dom0's write; then read the key, add, delete: three programs, no shell. Milliseconds."""
        enter(self._own)
        try:
            self.kernel.quiet(PAUSE_SECONDS)
            start = time.perf_counter()
            dom0.write(BASELINE_KEY, new.encode())
            timed([self.reader, BASELINE_KEY], self.environment)
            timed(["ip", "address", "add", f"{new}/32", "dev", "bench0"], self.environment)
            timed(["ip", "address", "del", f"{old}/32", "dev", "bench0"], self.environment)
            return (self.kernel.changed(new, old) - start) * 1e3
        finally:
            enter(self._home)


def measure(python: str = sys.executable, events: int = EVENTS) -> Result:
    """Run inside `isolate()`."""
    stage = Stage(IPV4_ENTRIES, python)
    ours: list[float] = []
    theirs: list[float] = []
    try:
        stage.fresh()
        with agent(stage):
            dom0, kernel, baseline = store(stage), AddressEvents(), _Baseline(stage)
            stage.check_configured("the agent")
            addresses, benches = [ADDRESS, OTHER_ADDRESS], ["192.0.2.1", "192.0.2.2"]
            for _ in range(events):
                addresses.reverse()
                benches.reverse()
                kernel.quiet(PAUSE_SECONDS)
                start = time.perf_counter()
                dom0.write("/qubes-ip", addresses[0].encode())
                ours.append((kernel.changed(*addresses) - start) * 1e3)
                theirs.append(baseline.change(dom0, *benches))
            dom0.close()
            kernel.close()
        if not stage.oracle.default_routes():
            raise Failed("the qube lost its default route")
    finally:
        stage.close()
    agent_ms, ip_ms = spread(ours), spread(theirs)
    return Result(
        "event to configured, resident agent, against plain `ip`",
        agent_ms.median / ip_ms.median,
        f"{BUDGET_MS:g} ms, median",
        agent_ms.median <= BUDGET_MS,
        (
            f"agent: median {agent_ms.median:.2f} ms, p99 {agent_ms.p99:.2f} ms",
            f"one compiled read and two `ip`: median {ip_ms.median:.2f} ms, p99 {ip_ms.p99:.2f} ms",
            f"{events} events each, in turn, {PAUSE_SECONDS:g} s apart",
        ),
    )
