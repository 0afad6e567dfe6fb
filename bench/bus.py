# SPDX-License-Identifier: GPL-2.0-or-later
"""What other programs on the system bus cost a provider's agent, and how soon it follows systemd-resolved.

Real systemd-resolved, and the real dbus-daemon and dbus-broker in turn; at rest, with three signals a second, and with
as many messages as the bus takes. Measured are: a change of a link's servers in systemd-resolved until the virtual DNS
leads there; a change of the virtual DNS's key by dom0 until the rules have it; and `vif online` by the agent's socket.
The kernel's event of the transaction ends a measurement, because nft would take 10 to 50 ms to show its result.

The link's servers are changed by the state file that systemd-networkd would write. resolvectl takes longer to start
than the agent to follow; and it cannot work during the flood once dbus-broker holds 512 MiB of messages of one user,
because the broker then closes each new connection of that user, and all programs of the lab have the same user.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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
_DISTURBED = 0.1  # of the budget, spent waiting for a processor at rest: then it is the machine that is measured
_LONGEST = 1 << 16
_NETLINK_NETFILTER, _SOL_NETLINK, _ADD_MEMBERSHIP, _NFTABLES_GROUP = 12, 270, 1, 7  # linux/netlink.h, nfnetlink.h


class Took(NamedTuple):
    """Milliseconds.

    Args:
        wall: until it was followed.
        cpu: processor time of the agent until its rules were seen.
        queued: how long the agent was ready to run and had no processor meanwhile.
    """

    wall: float
    cpu: float
    queued: float


class _Provider:
    def __init__(self, bus: str, how: str) -> None:
        self._host = Provider(ENTRIES, agent=False, servers=["127.0.0.53"])
        self._daemons = Daemons(self._host.qube)
        self._daemons.dbus(bus)
        index = self._host.link(UPLINK)["ifindex"]
        self._link_file = self._host.qube.path(f"/run/systemd/netif/links/{index}")
        self._link_file.parent.mkdir(parents=True)
        self._networkd_says(ROUTER)
        self._daemons.resolved()
        self._rule_events = _rule_events(self._host)
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
        """Return the time of the kernel's event after which it is so."""
        deadline = time.monotonic() + _TRIES_SECONDS
        while select.select([self._rule_events], [], [], max(0.0, deadline - time.monotonic()))[0]:
            changed = time.perf_counter()
            self._forget_events()
            if check():
                return changed
        raise Failed(f"not followed: {self._rules()} {self._host.trouble()[-500:]}")

    def timed(self, what: str, turn: int) -> Took:
        """Measure one change: "resolved", "key" or "online"."""
        before = self._scheduled()
        wall = getattr(self, what)(turn)
        cpu, queued = (after - former for after, former in zip(self._scheduled(), before, strict=True))
        return Took(wall, cpu, queued)

    def _scheduled(self) -> tuple[float, float]:
        """Return milliseconds on a processor, and waiting for one, of the agent (proc(5), schedstat)."""
        running, waiting, _ = Path(f"/proc/{self._host.agent.pid}/schedstat").read_text().split()
        return int(running) / 1e6, int(waiting) / 1e6

    def _forget_events(self) -> None:
        while select.select([self._rule_events], [], [], 0)[0]:
            try:
                self._rule_events.recv(_LONGEST)
            except OSError as error:  # more than its buffer holds: as good as any number of events
                if error.errno != errno.ENOBUFS:
                    raise

    def _networkd_says(self, server: str) -> None:
        written = self._link_file.with_name("next")
        written.write_text(f"ADMIN_STATE=configured\nOPER_STATE=routable\nDNS={server}\n")
        os.replace(written, self._link_file)

    def _rules(self) -> list[str]:
        return self._host.rules("ip", "dnat-dns")

    def _leads(self, server: str) -> bool:
        return {rule.split()[-1] for rule in self._rules()} == {server}

    def resolved(self, turn: int) -> float:
        """A change by systemd-resolved, from the moment on when it hears of it. Milliseconds, as of the others."""
        server = SERVERS[turn % 2]
        self._forget_events()
        start = time.perf_counter()
        self._networkd_says(server)
        return (self._until(lambda: self._leads(server)) - start) * 1e3

    def key(self, turn: int) -> float:
        """A change by dom0."""
        address = KEYS[turn % 2]
        self._forget_events()
        start = time.perf_counter()
        self._host.write("/qubes-netvm-secondary-dns", address)
        return (self._until(lambda: any(address in rule for rule in self._rules())) - start) * 1e3

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


def _rule_events(host: Provider) -> socket.socket:
    """Return a socket that hears of each transaction of nftables in the provider."""
    events = host.qube.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    events.bind((0, 0))
    events.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFTABLES_GROUP)
    return events


def measure(rounds: int = ROUNDS) -> tuple[Result, ...]:
    """Run inside `isolate()`."""
    return tuple(result for bus in BUSES for result in _of(bus, rounds))


def _of(bus: str, rounds: int) -> list[Result]:
    took: dict[tuple[str, str], list[Took]] = {}
    for how in ("", "trickle", "flood"):
        provider = _Provider(bus, how)
        for turn in range(rounds):
            for what in ("resolved", "key", "online"):
                time.sleep(PAUSE_SECONDS)
                took.setdefault((what, how), []).append(provider.timed(what, turn))
        provider.close()
    words = {"resolved": "systemd-resolved's servers followed", "key": "dom0's key followed", "online": "vif online"}
    return [_result(f"{words[what]} ({bus})", what, took) for what in words]


def _result(name: str, what: str, took: dict[tuple[str, str], list[Took]]) -> Result:
    figures = {how: spread([each.wall for each in took[what, how]]) for how in ("", "trickle", "flood")}
    lines = tuple(_line(how, took[what, how]) for how in figures)
    limit = FOLLOWED_MS if what == "resolved" else ATTACKED_MS
    judged = figures[""] if what == "resolved" else max(figures["trickle"], figures["flood"])
    when = "at rest" if what == "resolved" else "under flood and trickle"
    ratio = figures["flood"].median / figures[""].median
    queued = spread([each.queued for each in took[what, ""]]).median
    disturbed = f"the agent waited {queued:.0f} ms for a processor at rest" if queued > limit * _DISTURBED else ""
    budget, passed = f"{limit:g} ms {when}, median", judged.median <= limit
    return Result(f"{name}, flooded against at rest", ratio, budget, passed, lines, disturbed)


def _line(how: str, took: list[Took]) -> str:
    wall, cpu, queued = (spread([each[number] for each in took]) for number in range(3))
    return (
        f"{how or 'at rest'}: median {wall.median:.1f} ms, p90 {wall.p90:.1f}; the agent's processor time "
        f"{cpu.median:.1f} ms, waiting for a processor {queued.median:.1f} ms (medians)"
    )
