# SPDX-License-Identifier: GPL-2.0-or-later
"""What the firewall of 50 qubes with 20 rules each adds to the memory (PSS) of a provider's idle agent.

The same agent is weighed twice, as provider_memory does it: with the vifs of the qubes and each list empty, and with
all their rules in force.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from bench import hosting
from bench.figures import Result
from bench.firewall import QUBES, RULES, entries
from bench.memory import mib
from bench.provider_memory import ENTRIES, FLAG, come_to_rest, far_end, online, plug
from bench.resident import OwnCopy, agent, pss_kib, store
from bench.stage import Stage
from tests.support.eventually import eventually

BUDGET_KIB = 3 * 1024
TURNS = 3  # so often all lists are replaced: what is left behind by each shows
_FIREWALL = Path("/run/qubes-service/qubes-firewall")


def measure(python: str = sys.executable) -> Result:
    """Run inside `isolate()`."""
    stage = Stage(ENTRIES, python)
    try:
        stage.fresh()
        for flag in (FLAG, _FIREWALL):
            flag.touch()
        Path(hosting.ENFORCES).parent.mkdir(exist_ok=True)
        Path(hosting.ENFORCES).touch()
        own = OwnCopy()
        own.use()
        with agent(stage) as process:
            plug(far_end(), range(1, QUBES + 1))
            online(range(1, QUBES + 1))
            weighed = []
            for rules, turn in ((0, 0), *((RULES, turn) for turn in range(1, TURNS + 1))):
                _commit(stage, lambda _, rules=rules, turn=turn: entries(rules, turn))  # type: ignore[misc]
                come_to_rest(process)
                weighed.append(pss_kib(process.pid))
    finally:
        for flag in (FLAG, _FIREWALL):
            flag.unlink(missing_ok=True)
        stage.close()
    added = max(weighed[1:]) - weighed[0]
    return Result(
        f"memory (PSS) that {QUBES} qubes with {RULES} rules each add to a provider's agent, in MiB",
        added / 1024,
        f"{BUDGET_KIB / 1024:g} MiB",
        added <= BUDGET_KIB,
        (f"without rules: {mib(weighed[0])}; after each of {TURNS} replacements: {', '.join(map(mib, weighed[1:]))}",),
    )


def _commit(stage: Stage, rules: Callable[[int], list[str]]) -> None:
    """Have a list of each qube in force, by its IPv4 address."""
    dom0 = store(stage)
    try:
        for number in range(1, QUBES + 1):
            address = hosting.addresses(number)[0]
            before = dom0.read(f"/qubes-firewall-handled/{address}")
            dom0.rm(f"/qubes-firewall/{address}/")
            dom0.write(f"/qubes-firewall/{address}/policy", b"drop")
            for place, entry in enumerate(rules(number)):
                dom0.write(f"/qubes-firewall/{address}/{place:04}", entry.encode())
            dom0.write(f"/qubes-firewall/{address}", b"")
            eventually(
                lambda: dom0.read(f"/qubes-firewall-handled/{address}") != before,  # noqa: B023
                60.0,
                what=f"the rules of {address}",
            )
    finally:
        dom0.close()
