# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m bench [NAME…]`: run benchmarks, one after the other, each in namespaces of its own.

Exit status 1 when a budget is broken or a benchmark could not do its work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

from bench import (
    apply,
    boot,
    bus,
    event,
    firewall,
    firewall_memory,
    firewall_packets,
    forwarding,
    generations,
    memory,
    offload,
    packet,
    provider_memory,
    vif,
)
from bench.figures import Result
from bench.stage import Failed
from qubes_guestnet.lab.namespaces import LabError, isolate

NAMES = ("apply", "event", "memory", "provider-memory", "vif", "forwarding", "packet", "firewall", "bus", "pyroute2")
AS_ROOT = {"boot": boot.measure, "offload": offload.measure}
FACTS = {"uplink": memory.facts, "provider": provider_memory.facts}

SIGNALLED = 128  # isolate() returns this and the number of a signal
Run = Callable[[], Result | tuple[Result, ...]]


def runs(name: str) -> Iterator[Run]:
    """What a name stands for; each is to be run in its own `isolate()`."""
    if name == "apply":
        yield apply.measure
        yield lambda: apply.measure(ipv6=False)
        yield apply.least
    elif name == "event":
        yield event.measure
    elif name == "memory":
        yield memory.measure
    elif name == "provider-memory":
        yield provider_memory.measure
    elif name == "vif":
        yield vif.measure
    elif name == "forwarding":
        yield forwarding.measure
    elif name == "packet":
        yield packet.measure
    elif name == "firewall":
        yield firewall.measure
        yield firewall_packets.measure
        yield firewall_memory.measure
    elif name == "bus":
        yield bus.measure
    else:
        for what in generations.MEASURES:
            for python in generations.pythons():
                yield lambda python=python, what=what: generations.measure(python, what)  # type: ignore[misc]


def _report(run: Run) -> int:
    try:
        found = run()
    except (Failed, LabError, AssertionError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    results = (found,) if isinstance(found, Result) else found
    for result in results:
        print(result, flush=True)
    return 0 if all(result.passed or result.disturbed for result in results) else 1


def _facts(gather: Callable[[], str]) -> int:
    print(gather())
    return 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="bench", description="the budgets of docs/design.md, measured")
    usual = f"{', '.join(NAMES)}, the default; {' and '.join(AS_ROOT)}, as root"
    parser.add_argument("names", nargs="*", metavar="NAME", help=usual)
    parser.add_argument(
        "--facts", nargs="?", choices=FACTS, const="uplink", help="JSON about a resident agent, for the tests"
    )
    arguments = parser.parse_args()
    if arguments.facts:
        return isolate(lambda: _facts(FACTS[arguments.facts]))
    unknown = [name for name in arguments.names if name not in (*NAMES, *AS_ROOT)]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join((*NAMES, *AS_ROOT))}")
    todo = [run for name in arguments.names or NAMES if name in NAMES for run in runs(name)]
    statuses = []
    for run in todo:
        statuses.append(isolate(lambda run=run: _report(run)))  # type: ignore[misc]
        if statuses[-1] > SIGNALLED:  # the signal was meant for the command, and not for one benchmark of it
            return statuses[-1]
    statuses += [_report(AS_ROOT[name]) for name in arguments.names if name in AS_ROOT]
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main())
