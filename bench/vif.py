# SPDX-License-Identifier: GPL-2.0-or-later
"""`vif online` for the 1st, the 50th and the 250th vif, with IPv4 and IPv6, against a plain shell script.

Three things are measured: the request on the resident agent's socket to its answer; the whole command, as Xen's hotplug
calls it, beside an agent; and the whole command where no agent runs. The script (baseline/vif.sh) does the same work
with one program an object, over the same compiled xenstore and QubesDB readers.

There are six providers at the same time, with an agent and without one for each number of vifs, and everything is done
to them in turn. Each time the device is new; `ip`, `nft` and /proc confirm afterwards that the vif is in service.
The tables of connections are empty, as in a provider that has just started: this kernel's has a number of buckets after
the memory of the whole machine, and what walking it costs is shown apart.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

from bench.figures import Result, spread
from bench.hosting import Provider, compiled
from bench.stage import Took
from qubes_guestnet.lab.qube import Qube

NUMBERS = (1, 50, 250)
BUDGET_MS = 10.0
BUDGET_GROWTH = 1.3
ROUNDS = 16
CONNECTION_ROUNDS = 8
# Longer than the agent's quiet period (50 ms): each request finds it idle, as a lone one does in a qube.
PAUSE_SECONDS = 0.15
_BUCKETS = Path("/proc/sys/net/netfilter/nf_conntrack_buckets")

_Sample = dict[tuple[str, int], list[Took]]
# Each line is one phase of a round: what is done in the providers with an agent, and in those without.
_Done = tuple[str, Callable[[Provider], Took]]
_SHORT: tuple[_Done, _Done] = (("socket", lambda provider: provider.ask("online")), ("script", Provider.script))
_PHASES = (_SHORT, (("command", Provider.command), ("cold", Provider.command)), _SHORT)


def measure(rounds: int = ROUNDS) -> tuple[Result, ...]:
    """Run inside `isolate()`."""
    tools = compiled()
    far = Qube("far")
    resident = {number: Provider(far, tools, number, resident=True) for number in NUMBERS}
    cold = {number: Provider(far, tools, number, resident=False) for number in NUMBERS}
    took: _Sample = {}
    try:
        # Round 0 compiles and warms what a running system has warm.
        for turn in range(rounds + 1):
            order = NUMBERS[turn % 3 :] + NUMBERS[: turn % 3]
            for phase in _PHASES:
                _phase(phase, [(resident[number], cold[number]) for number in order], took)
            if not turn:
                took.clear()
        connected = _with_one_connection(resident[1])
        in_a_row = resident[NUMBERS[-1]].in_a_row
    finally:
        for provider in (*resident.values(), *cold.values()):
            provider.close()
        far.kill()
        shutil.rmtree(tools)
    return _results(took, connected, in_a_row)


def _phase(phase: tuple[_Done, _Done], pairs: list[tuple[Provider, Provider]], took: _Sample) -> None:
    every = [provider for pair in pairs for provider in pair]
    for provider in every:
        provider.plug()
    every[0].settle(PAUSE_SECONDS)
    for pair in pairs:
        for (what, run), provider in zip(phase, pair, strict=True):
            took.setdefault((what, provider.number), []).append(run(provider))
    for pair in pairs:
        for (what, _), provider in zip(phase, pair, strict=True):
            provider.confirm(what)
            provider.unplug()


def _with_one_connection(provider: Provider) -> list[float]:
    """What a request takes, in milliseconds, when the table has an entry and so is walked."""
    provider.qube.wire(
        "conntrack -I -p tcp -s 192.0.2.1 -d 192.0.2.2 --sport 1 --dport 2 --timeout 600 --state ESTABLISHED 2>&1"
    )
    took = []
    for _ in range(CONNECTION_ROUNDS):
        provider.plug()
        provider.settle(PAUSE_SECONDS)
        took.append(provider.ask("online").wall * 1e3)
        provider.unplug()
    return took


def _line(words: str, runs: list[Took]) -> str:
    figures = spread([run.wall * 1e3 for run in runs])
    cpu = statistics.median(run.cpu * 1e3 for run in runs)
    line = f"{words}: median {figures.median:.1f} ms, lower quartile {figures.low:.1f}, p90 {figures.p90:.1f}"
    return f"{line}, processor {cpu:.1f} ms" if cpu else line


def _median(took: _Sample, what: str, number: int) -> float:
    return statistics.median(run.wall * 1e3 for run in took[what, number])


def _results(took: _Sample, connected: list[float], in_a_row: list[float]) -> tuple[Result, ...]:
    first, last = NUMBERS[0], NUMBERS[-1]
    growth = _median(took, "socket", last) / _median(took, "socket", first)
    pairs = spread([b.wall / a.wall for a, b in zip(took["socket", first], took["socket", last], strict=True)])
    ends = [statistics.median(part) for part in (in_a_row[:50], in_a_row[-50:])]
    constant = Result(
        f"vif online through the agent, the {last}th vif against the first",
        growth,
        f"{BUDGET_GROWTH:g}",
        growth <= BUDGET_GROWTH,
        (
            *(_line(f"vif {number}", took["socket", number]) for number in NUMBERS),
            f"ratio within a round: median {pairs.median:.2f}, quartiles {pairs.low:.2f} to {pairs.high:.2f}",
            f"the script, vif {last} against the first: ratio "
            f"{_median(took, 'script', last) / _median(took, 'script', first):.2f}",
            f"{last} in a row, with the agent's passes in between: median of the first 50 {ends[0]:.1f} ms, "
            f"of the last 50 {ends[1]:.1f} ms",
            f"with one entry in the table of connections ({_BUCKETS.read_text().strip()} buckets, all walked): "
            f"median {statistics.median(connected):.1f} ms",
        ),
    )
    slowest = max(_median(took, "socket", number) for number in NUMBERS)
    return (
        constant,
        _against_script("vif online through the agent's socket", "socket", took,
                        f"{BUDGET_MS:g} ms, median of each", slowest <= BUDGET_MS, first=True),
        _against_script("vif online, the whole command, with an agent", "command", took),
        _against_script("vif online, the whole command, cold, without an agent", "cold", took),
    )  # fmt: skip


def _against_script(
    words: str, what: str, took: _Sample, budget: str = "", passed: bool = True, *, first: bool = False
) -> Result:
    last = NUMBERS[-1]
    ratio = _median(took, what, last) / _median(took, "script", last)
    return Result(
        f"{words}, against a shell script, vif {last}",
        ratio,
        budget,
        passed,
        (
            *(_line(f"vif {number}", took[what, number]) for number in NUMBERS),
            *(_line(f"script, vif {number}", took["script", number]) for number in (NUMBERS if first else ())),
            f"{len(took[what, last])} runs each, in turn, each with a new device",
        ),
    )
