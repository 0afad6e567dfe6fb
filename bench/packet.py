# SPDX-License-Identifier: GPL-2.0-or-later
"""Processor time for each packet through one real provider: with its rules, and without those for single qubes' limits.

Small UDP packets of a connection that is established, as in `forwarding`, but judged by the time that the sender's
process works and not by what arrives: the kernel forwards a packet within the call that sent it, from namespace to
namespace. What else the machine does then makes every figure worse and leaves the ratio. It holds only where the kernel
counts softirqs as work of the process they interrupt; that is shown by three providers, which must cost more than one.

Four trees at the same time take turns: the real role; the same without the tables of the limits; plain commands with
the least filter that does such a job (baseline/provider.nft); and plain commands without one.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from bench.figures import Result, spread
from bench.forwarding import Tree, ends, small_packets
from bench.stage import BASELINE, Failed
from qubes_guestnet.lab import world
from qubes_guestnet.lab.qube import Qube

BUDGET = 1.1
ROUNDS = 25
PACKETS = 20000
_LIMIT_S = 60.0
_ARRIVED = 0.95  # of all packets: else the machine was too busy to forward them
_SECONDS_TO_ASSURED = 2.2  # only then conntrack takes a UDP connection for one that lasts
_MICROSECONDS = 1e6


def measure(rounds: int = ROUNDS) -> tuple[Result, ...]:
    """Run inside `isolate()`."""
    folder = tempfile.mkdtemp(dir="/run")
    program = f"{folder}/flow"
    subprocess.run(["cc", "-O2", "-o", program, str(BASELINE / "flow.c")], check=True)
    trees = {
        "ours": Tree("ours"),
        "without": Tree("without"),
        "filtering": Tree("filtering", plain=True, filtering=True),
        "plain": Tree("plain", plain=True),
    }
    trees["without"].lift_limits()
    lines = {name: (tree, 1) for name, tree in trees.items()} | {"three": (trees["plain"], 3)}
    flows = {name: _Flow(program, tree, hops) for name, (tree, hops) in lines.items()}
    took: dict[str, list[float]] = {name: [] for name in flows}
    try:
        # Round 0 fills neighbour tables and caches.
        for number in range(rounds + 1):
            names = list(flows)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                cost = flows[name].cost()
                took[name] += [cost] if number else []
    finally:
        shutil.rmtree(folder)
    if spread(took["three"]).median < 1.2 * spread(took["plain"]).median:
        raise Failed("this kernel does not count softirqs as work of a process (CONFIG_IRQ_TIME_ACCOUNTING)")
    return (
        _result("without the limits", "without", took),
        _result("plain commands with a filter", "filtering", took),
    )


class _Flow:
    """An established connection from a qube of a tree to its world; nothing reads what arrives."""

    def __init__(self, program: str, tree: Tree, hops: int) -> None:
        self._program, self._far = program, tree.world
        self._socket, _ = ends(tree, hops, small_packets(), lasting_s=_SECONDS_TO_ASSURED)

    def cost(self) -> float:
        """Microseconds of the processor for each packet that arrives."""
        before = _packets_at(self._far)
        done = subprocess.run(
            [self._program, "count", str(small_packets().size), str(PACKETS)],
            stdin=self._socket.fileno(), check=True, timeout=_LIMIT_S, capture_output=True, text=True,
        )  # fmt: skip
        arrived = _packets_at(self._far) - before
        if arrived < _ARRIVED * PACKETS:
            raise Failed(f"{arrived} of {PACKETS} packets arrived")
        return float(done.stdout) * _MICROSECONDS / arrived


def _packets_at(far: Qube) -> int:
    """How many have come in at the world's end of the cable."""
    lines = Path(f"/proc/{far.pid}/net/dev").read_text().splitlines()
    (counters,) = (line.split(":")[1].split() for line in lines if line.strip().startswith(f"{world.INTERFACE}:"))
    return int(counters[1])


def _result(words: str, against: str, took: dict[str, list[float]]) -> Result:
    ratio = spread([ours / other for ours, other in zip(took["ours"], took[against], strict=True)])
    figures = {name: spread(found) for name, found in took.items()}
    return Result(
        f"processor time for each small UDP packet through 1 provider, against {words}",
        ratio.median,
        f"at most {BUDGET:g}",
        ratio.median <= BUDGET,
        (
            *(
                f"{name}: median {each.median:.2f} µs, quartiles {each.low:.2f} to {each.high:.2f}"
                for name, each in figures.items()
            ),
            f"the ratio is the median of those within a round, quartiles {ratio.low:.2f} to {ratio.high:.2f}; "
            f"{len(took['ours'])} rounds of {PACKETS} packets; both ends' own work is in each figure",
        ),
    )
