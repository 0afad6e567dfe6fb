# SPDX-License-Identifier: GPL-2.0-or-later
"""Resident memory (PSS) of the idle agent against a bare interpreter that waits beside it.

The two share the files of the interpreter with each other and with nobody else, as on a machine where they are the
only ones that run it.
"""

from __future__ import annotations

import json
import sys
import time

from bench.figures import Result
from bench.resident import agent, bare_interpreter, descriptors, modules, private_interpreter, pss_kib, store
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


def measure(python: str = sys.executable) -> Result:
    """Run inside `isolate()`."""
    stage = Stage({**IPV4_ENTRIES, **IPV6_ENTRIES}, python)
    try:
        stage.fresh()
        private_interpreter()
        with agent(stage) as process, bare_interpreter(python) as bare:
            stage.check_configured("the agent")
            start_kib = pss_kib(process.pid)
            _change_settings(stage, CHANGES, 0.03)
            ours, theirs = pss_kib(process.pid), pss_kib(bare.pid)
    finally:
        stage.close()
    return Result(
        "memory (PSS) of the idle agent, against a bare interpreter",
        ours / theirs,
        BUDGET,
        (
            f"agent: {ours / 1024:.1f} MiB after {CHANGES} changes of settings, {start_kib / 1024:.1f} MiB before them",
            f"bare interpreter beside it: {theirs / 1024:.1f} MiB",
        ),
    )


def facts(python: str = sys.executable) -> str:
    """For tests/budget: what the real agent has loaded, its memory, and its descriptors before and after 1,000 changes.

    Run inside `isolate()`. Returns JSON.
    """
    stage = Stage({**IPV4_ENTRIES, **IPV6_ENTRIES}, python)
    try:
        stage.fresh()
        private_interpreter()
        with agent(stage, reporting=True) as process, bare_interpreter(python) as bare:
            stage.check_configured("the agent")
            loaded = modules(process)
            _change_settings(stage, 20, 0.06)
            before = descriptors(process.pid)
            _change_settings(stage, 1000, 0.002)
            eventually(lambda: descriptors(process.pid) <= before, 3, what="as many descriptors as before")
            found = {
                "modules": loaded,
                "descriptors": [before, descriptors(process.pid)],
                "pss_kib": {"agent": pss_kib(process.pid), "bare": pss_kib(bare.pid)},
            }
    finally:
        stage.close()
    return json.dumps(found)
