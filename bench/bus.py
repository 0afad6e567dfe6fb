# SPDX-License-Identifier: GPL-2.0-or-later
"""What other programs on the system bus cost a provider's agent, and how soon it follows systemd-resolved.

Real systemd-resolved, and the real dbus-daemon and dbus-broker in turn; at rest, with three signals a second, and with
as many messages as the bus takes. Measured are: a change of a link's servers in systemd-resolved until the virtual DNS
leads there; a change of the virtual DNS's key by dom0 until the rules have it (looking at them by nft takes some
milliseconds of both); and `vif online` by the agent's socket.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from bench.figures import Result, spread
from bench.hosting import SOCKET
from bench.stage import Failed
from qubes_guestnet.core.provider import vif as vif_rules
from qubes_guestnet.lab.daemons import Daemons
from qubes_guestnet.lab.qube import Service
from qubes_guestnet.system import hotplug_socket
from tests.support.eventually import eventually
from tests.support.qubes.provider import ENTRIES, ROUTER, UPLINK, Provider

FOLLOWED_MS, ATTACKED_MS = 50.0, 100.0
ROUNDS = 20
BUSES = ("dbus-daemon", "dbus-broker")
SERVERS = ("198.51.100.60", ROUTER)
KEYS = ("10.139.1.3", "10.139.1.2")
# Longer than the agent's quiet period (50 ms), so that each change finds it idle, as a lone one does in a qube.
PAUSE_SECONDS = 0.15
_TRIES_SECONDS = 25.0


class _Provider:
    def __init__(self, bus: str, how: str) -> None:
        self._host = Provider(ENTRIES, agent=False, servers=["127.0.0.53"])
        self._daemons = Daemons(self._host.qube)
        self._daemons.dbus(bus)
        self._daemons.resolved()
        self._daemons.resolvectl("dns", UPLINK, ROUTER)
        self._host.qube.start_agent()
        self._number = 20
        self._until(lambda: self._leads(ROUTER))
        self.other: Service | None = None
        if how:
            self.other = self._host.qube.spawn(
                how, sys.executable, "-m", "tests.support.programs.bus_peer", how, "agent"
            )
            eventually(lambda: self.other is None or "to :1" in self.other.output())

    def _until(self, check: Callable[[], bool]) -> float:
        """Milliseconds until it is so."""
        start = time.perf_counter()
        while not check():
            if time.perf_counter() - start > _TRIES_SECONDS:
                raise Failed(f"not followed: {self._rules()} {self._host.trouble()[-500:]}")
        return (time.perf_counter() - start) * 1e3

    def _rules(self) -> list[str]:
        return self._host.rules("ip", "dnat-dns")

    def _leads(self, server: str) -> bool:
        return {rule.split()[-1] for rule in self._rules()} == {server}

    def resolved(self, turn: int) -> float:
        """A change by systemd-resolved, from the start of resolvectl on."""
        server, start = SERVERS[turn % 2], time.perf_counter()
        self._daemons.resolvectl("dns", UPLINK, server)
        self._until(lambda: self._leads(server))
        return (time.perf_counter() - start) * 1e3

    def key(self, turn: int) -> float:
        """A change by dom0."""
        address = KEYS[turn % 2]
        self._host.write("/qubes-netvm-secondary-dns", address)
        return self._until(lambda: any(address in rule for rule in self._rules()))

    def online(self, _turn: int) -> float:
        """`vif online` through the agent's socket."""
        self._number += 1
        behind = self._host.plug(self._number)
        text = " ".join(behind.addresses).encode()
        question = vif_rules.ask("online", vif_rules.described(behind.vif, behind.mac.encode(), b"vif", text))
        path = str(self._host.qube.path(SOCKET))
        time.sleep(PAUSE_SECONDS)  # the new device woke it
        start = time.perf_counter()
        answer = hotplug_socket.request(path, question, _TRIES_SECONDS)
        took = (time.perf_counter() - start) * 1e3
        problem, done = vif_rules.answered(answer or b"")
        if problem or not done:
            raise Failed(f"vif online: {answer!r}")
        return took

    def close(self) -> None:
        self._host.qube.kill()
        self._host.world.kill()


def measure(rounds: int = ROUNDS) -> tuple[Result, ...]:
    """Run inside `isolate()`."""
    return tuple(result for bus in BUSES for result in _of(bus, rounds))


def _of(bus: str, rounds: int) -> list[Result]:
    took: dict[tuple[str, str], list[float]] = {}
    for how in ("", "trickle", "flood"):
        provider = _Provider(bus, how)
        for turn in range(rounds):
            for what in ("resolved", "key", "online"):
                time.sleep(PAUSE_SECONDS)
                took.setdefault((what, how), []).append(getattr(provider, what)(turn))
        provider.close()
    words = {"resolved": "systemd-resolved's servers followed", "key": "dom0's key followed", "online": "vif online"}
    return [_result(f"{words[what]} ({bus})", what, took) for what in words]


def _result(name: str, what: str, took: dict[tuple[str, str], list[float]]) -> Result:
    figures = {how: spread(took[what, how]) for how in ("", "trickle", "flood")}
    lines = tuple(
        f"{how or 'at rest'}: median {found.median:.1f} ms, p90 {found.p90:.1f}" for how, found in figures.items()
    )
    limit = FOLLOWED_MS if what == "resolved" else ATTACKED_MS
    judged = figures[""] if what == "resolved" else max(figures["trickle"], figures["flood"])
    when = "at rest" if what == "resolved" else "under flood and trickle"
    ratio = figures["flood"].median / figures[""].median
    return Result(
        f"{name}, flooded against at rest", ratio, f"{limit:g} ms {when}, median", judged.median <= limit, lines
    )
