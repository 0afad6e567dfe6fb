# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m bench [NAME…]`: run benchmarks, one after the other, each in namespaces of its own.

Exit status 1 when a budget is broken or a benchmark could not do its work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

from bench import apply, boot, event, generations, memory
from bench.figures import Result
from bench.stage import Failed
from qubes_guestnet.lab.namespaces import isolate

NAMES = ("apply", "event", "memory", "pyroute2")
AS_ROOT = ("boot",)


def runs(name: str) -> Iterator[Callable[[], Result]]:
    """What a name stands for; each is to be run in its own `isolate()`."""
    if name == "apply":
        yield apply.measure
        yield lambda: apply.measure(ipv6=False)
    elif name == "event":
        yield event.measure
    elif name == "memory":
        yield memory.measure
    else:
        for what in generations.MEASURES:
            for python in generations.pythons():
                yield lambda python=python, what=what: generations.measure(python, what)  # type: ignore[misc]


def _report(run: Callable[[], Result]) -> int:
    try:
        result = run()
    except (Failed, AssertionError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(result, flush=True)
    return 0 if result.passed else 1


def _facts() -> int:
    print(memory.facts())
    return 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="bench", description="the budgets of docs/design.md, measured")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}, the default; boot, as root")
    parser.add_argument("--facts", action="store_true", help="JSON about the resident agent, for the tests")
    arguments = parser.parse_args()
    if arguments.facts:
        return isolate(_facts)
    unknown = [name for name in arguments.names if name not in (*NAMES, *AS_ROOT)]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join((*NAMES, *AS_ROOT))}")
    todo = [run for name in arguments.names or NAMES if name in NAMES for run in runs(name)]
    statuses = [isolate(lambda run=run: _report(run)) for run in todo]  # type: ignore[misc]
    if "boot" in arguments.names:
        statuses.append(_report(boot.measure))
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main())
