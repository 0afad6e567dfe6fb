# SPDX-License-Identifier: GPL-2.0-or-later
"""Resident memory (PSS) of the idle agent against a bare interpreter that waits beside it.

Each runs from a copy of the interpreter of its own, so that PSS is what it would be if no other process ran Python:
what one agent costs a qube, against what any Python process costs it. Where the two share the files of the interpreter
with each other, both are smaller and the ratio is greater; that one is shown as information.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import NamedTuple

from bench.figures import Result
from bench.resident import OwnCopy, agent, bare_interpreter, descriptors, modules, pss_kib, store
from bench.stage import ADDRESS, IPV4_ENTRIES, IPV6_ENTRIES, OTHER_ADDRESS, Stage
from tests.support.eventually import eventually

BUDGET = 2.0
CHANGES = 50


def _change_settings(stage: Stage, times: int, pause_s: float) -> None:
    """Let dom0 write another address `times` times, and wait until the last one is configured."""
    dom0 = store(stage)
    for number in range(times):
        address = (OTHER_ADDRESS, ADDRESS)[number % 2]
        dom0.write("/qubes-ip", address.encode())
        time.sleep(pause_s)  # pacing of the load, not a wait for an outcome
    dom0.write("/qubes-ip", ADDRESS.encode())
    dom0.close()
    eventually(lambda: stage.oracle.addresses("eth0", 4) == {f"{ADDRESS}/32"}, what="the last address")


class Sizes(NamedTuple):
    """PSS in KiB, of an agent and of a bare interpreter beside it; `sharing`: both map the same files."""

    agent: int
    bare: int
    agent_sharing: int
    bare_sharing: int


def weigh(stage: Stage, process: subprocess.Popen[bytes], own: OwnCopy, other: OwnCopy) -> Sizes:
    """Weigh an idle agent that runs from its own copy of the interpreter.

    Args:
        stage: where it runs.
        process: the agent.
        own: its copy; in use again afterwards.
        other: a copy for the bare interpreter.
    """
    other.use()
    with bare_interpreter(stage.python) as bare:
        alone = pss_kib(process.pid), pss_kib(bare.pid)
    own.use()
    with bare_interpreter(stage.python) as bare:
        return Sizes(*alone, pss_kib(process.pid), pss_kib(bare.pid))


def measure(python: str = sys.executable) -> Result:
    """Run inside `isolate()`."""
    stage = Stage({**IPV4_ENTRIES, **IPV6_ENTRIES}, python)
    try:
        stage.fresh()
        own, other = OwnCopy(), OwnCopy()
        own.use()
        with agent(stage) as process:
            stage.check_configured("the agent")
            start = pss_kib(process.pid)
            _change_settings(stage, CHANGES, 0.03)
            sizes = weigh(stage, process, own, other)
    finally:
        stage.close()
    return Result(
        "memory (PSS) of the idle agent, against a bare interpreter",
        sizes.agent / sizes.bare,
        f"{BUDGET:g}",
        sizes.agent <= BUDGET * sizes.bare,
        (
            f"agent: {mib(sizes.agent)} after {CHANGES} changes of settings, {mib(start)} before them",
            f"bare interpreter beside it: {mib(sizes.bare)}",
            f"sharing the interpreter's files: {mib(sizes.agent_sharing)} and {mib(sizes.bare_sharing)}, "
            f"ratio {sizes.agent_sharing / sizes.bare_sharing:.2f}",
        ),
    )


def idle_descriptors(pid: int) -> int:
    """The fewest in half a second: a pass that happens to be at work has some more for a moment."""
    samples = []
    for _ in range(50):
        samples.append(descriptors(pid))
        time.sleep(0.01)
    return min(samples)


def mib(kib: int) -> str:
    """For people."""
    return f"{kib / 1024:.1f} MiB"


def facts(python: str = sys.executable) -> str:
    """For tests/budget: what the real agent has loaded, its memory, and its descriptors before and after 1,000 changes.

    Run inside `isolate()`. Returns JSON.
    """
    stage = Stage({**IPV4_ENTRIES, **IPV6_ENTRIES}, python)
    try:
        stage.fresh()
        own, other = OwnCopy(), OwnCopy()
        own.use()
        with agent(stage, reporting=True) as process:
            stage.check_configured("the agent")
            loaded = modules(process)
            before = idle_descriptors(process.pid)
            _change_settings(stage, 1000, 0.002)
            after = idle_descriptors(process.pid)
            sizes = weigh(stage, process, own, other)
            found = {
                "modules": loaded,
                "descriptors": [before, after],
                "pss_kib": {"agent": sizes.agent, "bare": sizes.bare},
            }
    finally:
        stage.close()
    return json.dumps(found)
