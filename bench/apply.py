# SPDX-License-Identifier: GPL-2.0-or-later
"""Cold `apply`, process start to exit, against a plain shell script that does the same work.

The script (baseline/uplink.sh) reads each key with a compiled reader and makes each object with `ip`. Both run in a
fresh namespace each time, in turn; after every run `ip -json` confirms that the qube is configured.

And the least that the command can do, `--version` and `--help`, against an interpreter that does nothing.

Both IPv4 alone (what a qube has by default; less of `ip` to beat) and IPv4 with IPv6 have to keep the budget.
"""

from __future__ import annotations

import sys

from bench.figures import Result, Spread, spread
from bench.stage import BASELINE, IPV4_ENTRIES, IPV6_ENTRIES, Stage, Took, child_environment, command, timed

BUDGET = 1.6
LEAST_BUDGET = 1.3
ROUNDS = 40


def measure(python: str = sys.executable, rounds: int = ROUNDS, *, ipv6: bool = True) -> Result:
    """Run inside `isolate()`."""
    stage = Stage({**IPV4_ENTRIES, **(IPV6_ENTRIES if ipv6 else {})}, python)
    contenders = {
        "apply": (command(python, "apply"), child_environment()),
        "script": ([str(BASELINE / "uplink.sh")], stage.baseline_environment()),
        "bare": ([python, "-I", "-c", ""], child_environment()),
    }
    took: dict[str, list[Took]] = {name: [] for name in contenders}
    try:
        # Round 0 compiles and warms what a running system has warm.
        for number in range(rounds + 1):
            names = list(contenders)
            for name in names[number % 3 :] + names[: number % 3]:
                stage.fresh()
                lasted = timed(*contenders[name])
                if name != "bare":
                    stage.check_configured(name)
                if number:
                    took[name].append(lasted)
    finally:
        stage.close()
    return _result(took, rounds, ipv6)


def _result(took: dict[str, list[Took]], rounds: int, ipv6: bool) -> Result:
    figures = {name: spread([run.wall * 1e3 for run in runs]) for name, runs in took.items()}
    cpu = {name: spread([run.cpu * 1e3 for run in runs]).median for name, runs in took.items()}
    pairs = spread([ours.wall / theirs.wall for ours, theirs in zip(took["apply"], took["script"], strict=True)])
    ratio = figures["apply"].median / figures["script"].median
    families = "IPv4 and IPv6" if ipv6 else "IPv4"
    return Result(
        f"apply, cold, {families}, against a shell script",
        ratio,
        f"{BUDGET:g}",
        ratio <= BUDGET,
        (
            *(f"{name}: {f.median:.1f} ms (quartiles {f.low:.1f} to {f.high:.1f})" for name, f in figures.items()),
            f"ratio of neighbouring runs: median {pairs.median:.2f}, quartiles {pairs.low:.2f} to {pairs.high:.2f}",
            f"a bare interpreter alone: ratio {figures['bare'].median / figures['script'].median:.2f}",
            f"processor time: apply {cpu['apply']:.1f} ms, script {cpu['script']:.1f} ms, "
            f"ratio {cpu['apply'] / cpu['script']:.2f}",
            f"{rounds} runs each, in turn, each in a fresh namespace",
        ),
    )


def least(python: str = sys.executable, rounds: int = ROUNDS) -> tuple[Result, ...]:
    """`--version` and `--help`."""
    contenders = {"bare": [python, "-I", "-S", "-c", ""]}
    contenders |= {words: command(python, words) for words in ("--version", "--help")}
    took: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, words in contenders.items():
            took[name].append(timed(words, child_environment()).cpu * 1e3)
    figures = {name: spread(found) for name, found in took.items()}
    return tuple(_least(name, figures) for name in ("--version", "--help"))


def _least(name: str, figures: dict[str, Spread]) -> Result:
    ratio = figures[name].median / figures["bare"].median
    lines = tuple(f"{each}: processor time {figures[each].median:.1f} ms" for each in (name, "bare"))
    return Result(f"{name} against a bare interpreter", ratio, f"{LEAST_BUDGET:g}", ratio <= LEAST_BUDGET, lines)
