# SPDX-License-Identifier: GPL-2.0-or-later
"""The firewall of single qubes: from a commit to rules in force, from a start to all of them, and names that move.

What a packet costs is in firewall_packets, and the memory in firewall_memory.

Beside each stands a yardstick that does what today's daemon does (baseline/firewall.py): a process of nft for each of
two transactions of a qube, and conntrack as a program. It is resident as well, and reads by the same QubesDB client.
Both have the same 50 vifs and the same lists, and take turns. What is measured ends when the commit is counted as
handled, for a start when the last of the qubes is in the verdict map, which nft alone tells.
"""

from __future__ import annotations

import contextlib
import select
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

from bench.figures import Result, spread
from bench.hosting import Provider, addresses, compiled
from bench.stage import BASELINE, Failed, command
from qubes_guestnet.core.firewall import ruleset
from qubes_guestnet.lab.qube import QUBESDB_FOLDER, Qube
from qubes_guestnet.provider.ruleset_generation import Transactions
from qubes_guestnet.system.nft import program as nft
from qubes_guestnet.system.qubesdb import store as qubesdb

QUBES, RULES = 50, 20
SHORT, LONG = 10, 1000
ROUNDS, LONG_ROUNDS, STARTS, REFRESHES = 40, 12, 7, 60
BUDGET_MS, BUDGET_P99_MS, BUDGET_LONG_MS, BUDGET_REFRESH_MS = 5.0, 15.0, 60.0, 2.0
BUDGET_START = 0.10
_SECONDS = 30.0
_PAUSE_SECONDS = 0.15  # longer than the quiet period of the agent
_HANDLED = "/qubes-firewall-handled/"


def entries(count: int, turn: int) -> list[str]:
    """The rules of a list, others in each turn."""
    return [
        f"action=accept proto=tcp dst4=192.0.{2 + number // 250}.{number % 250}/32 dstports={1 + turn}-{1 + turn}"
        for number in range(count)
    ]


class _House:
    """A provider with the vifs of all qubes, whose lists one program puts in force.

    Args:
        far: a qube whose network has the other ends of the vifs.
        tools: by `compiled`.
        ours: by our agent, else by the yardstick.
    """

    def __init__(self, far: Qube, tools: Path, *, ours: bool) -> None:
        self.ours = ours
        self.provider = Provider(far, tools, QUBES + 1, resident=True, firewall=ours)
        self._directory = str(self.provider.qube.path(QUBESDB_FOLDER))
        self._store = qubesdb.connect(writable=True, directory=self._directory)
        self._watches = qubesdb.connect_watches((_HANDLED,), directory=self._directory)
        if not ours:
            self.provider.start(self.words())
            self.provider.settle(1.0)

    def words(self) -> list[str]:
        """The command that puts lists in force."""
        if self.ours:
            return command(sys.executable, "agent")
        return [sys.executable, str(BASELINE / "firewall.py"), QUBESDB_FOLDER]

    def write(self, number: int, count: int, turn: int, *, committed: bool = False) -> str:
        """Write a list of a qube, by default without its commit; its address."""
        address = addresses(number)[0]
        self._store.rm(f"/qubes-firewall/{address}/")
        self._store.write(f"/qubes-firewall/{address}/policy", b"drop")
        for place, entry in enumerate(entries(count, turn)):
            self._store.write(f"/qubes-firewall/{address}/{place:04}", entry.encode())
        if committed:
            self._store.write(f"/qubes-firewall/{address}", b"")
        return address

    def commit(self, number: int, count: int, turn: int) -> float:
        """Seconds from a commit to its being handled."""
        address = self.write(number, count, turn)
        self.provider.settle(_PAUSE_SECONDS)
        self._watches.drain()
        before = self._store.read(f"{_HANDLED}{address}")
        start = time.perf_counter()
        self._store.write(f"/qubes-firewall/{address}", b"")
        while time.perf_counter() - start < _SECONDS:
            select.select([self._watches], [], [], 1.0)
            took = time.perf_counter() - start
            self._watches.drain()
            if self._store.read(f"{_HANDLED}{address}") != before:
                self._confirm(address, count)
                return took
        raise Failed(f"the commit of {address} was not handled")

    def _confirm(self, address: str, count: int) -> None:
        chain = f"qbs-{address.replace('.', '-')}"
        listed = self.provider.qube.run("nft", "list", "chain", "ip", "qubes-firewall", chain).stdout
        if listed.count(" dport ") != count:
            raise Failed(f"{chain} has {listed.count(' dport ')} rules and should have {count}")

    def begin(self) -> float:
        """Seconds from the start of the program to the last list in force, with no rule before."""
        self.provider.stop()
        self.provider.qube.run("nft", "delete table ip qubes-firewall; add table ip6 qubes-firewall; "
                               "delete table ip6 qubes-firewall")  # fmt: skip
        return self.provider.start(self.words(), lists=QUBES)

    def close(self) -> None:
        """End it."""
        self._store.close()
        self._watches.close()
        self.provider.close()


@contextlib.contextmanager
def _houses() -> Iterator[tuple[_House, _House]]:
    tools, far = compiled(), Qube("far")
    houses = [_House(far, tools, ours=True), _House(far, tools, ours=False)]
    try:
        yield houses[0], houses[1]
    finally:
        for house in houses:
            house.close()
        far.kill()
        shutil.rmtree(tools)


def measure() -> tuple[Result, ...]:
    """Run inside `isolate()`."""
    with _houses() as (ours, yardstick):
        commits = _commits(ours, yardstick, SHORT, ROUNDS)
        long = _commits(ours, yardstick, LONG, LONG_ROUNDS)
        for house in (ours, yardstick):
            house.commit(1, SHORT, 0)
        for house in (ours, yardstick):
            for number in range(1, QUBES + 1):
                house.write(number, RULES, number, committed=True)
            house.provider.settle(2.0)
        starts = [(ours.begin(), yardstick.begin()) for _ in range(STARTS)]
    return (
        _committed(SHORT, commits, BUDGET_MS, BUDGET_P99_MS),
        _committed(LONG, long, BUDGET_LONG_MS),
        _started(starts),
        _refreshed(),
    )


def _commits(ours: _House, yardstick: _House, count: int, rounds: int) -> list[tuple[float, float]]:
    """Milliseconds of each; round 0 warms what a running system has warm."""
    took = [(ours.commit(1, count, turn) * 1e3, yardstick.commit(1, count, turn) * 1e3) for turn in range(rounds + 1)]
    return took[1:]


def _lines(took: list[tuple[float, float]], unit: str = "ms") -> tuple[str, ...]:
    return tuple(
        f"{name}: median {each.median:.1f} {unit}, quartiles {each.low:.1f} to {each.high:.1f}, p99 {each.p99:.1f}"
        for name, each in zip(("ours", "yardstick"), map(spread, zip(*took, strict=True)), strict=True)
    )


def _ratio(took: list[tuple[float, float]]) -> float:
    return statistics.median(mine / other for mine, other in took)


def _committed(count: int, took: list[tuple[float, float]], most_ms: float, p99_ms: float | None = None) -> Result:
    """Judge the commits of a list with so many rules, by the median and, where it has a budget, the 99th percentile."""
    mine = spread([each for each, _ in took])
    return Result(
        f"{count} rules of a qube, commit to in force and counted, against a process of nft a step",
        _ratio(took),
        f"{most_ms:g} ms, median" + (f", {p99_ms:g} ms p99" if p99_ms is not None else ""),
        mine.median <= most_ms and (p99_ms is None or mine.p99 <= p99_ms),
        _lines(took),
    )


def _started(took: list[tuple[float, float]]) -> Result:
    ratio = _ratio(took)
    return Result(
        f"{QUBES} qubes with {RULES} rules each, start to all in force, against a process of nft a step",
        ratio,
        f"{BUDGET_START:g}",
        ratio <= BUDGET_START,
        _lines([(mine * 1e3, other * 1e3) for mine, other in took]),
    )


def _refreshed() -> Result:
    """An address of a name comes, and the one before goes."""
    nft.run(ruleset.tables(4, ()) + ruleset.name(4, "example.org", (), make=True))
    transactions = Transactions()

    def change(turn: int, load: Callable[[str], None]) -> float:
        former, latter = (IPv4Address(0xC0000200 + (turn + step) % 200) for step in (0, 1))
        text = ruleset.name(4, "example.org", (latter,), (former,))
        start = time.perf_counter()
        load(text)
        return (time.perf_counter() - start) * 1e3

    took = [
        (change(turn, transactions.run), change(turn + 1, nft.run)) for turn in range(0, 2 * REFRESHES + 2, 2)
    ][1:]  # fmt: skip
    listed = subprocess.run(["nft", "list", "set", "ip", "qubes-firewall", "n-example.org"], check=True,
                            capture_output=True, text=True).stdout  # fmt: skip
    if listed.count("192.0.2.") != 1:
        raise Failed(f"the name has not one address: {listed}")
    mine = spread([each for each, _ in took])
    return Result(
        "an address of a name in rules, against a process of nft",
        _ratio(took),
        f"{BUDGET_REFRESH_MS:g} ms, median",
        mine.median <= BUDGET_REFRESH_MS,
        _lines(took),
    )
