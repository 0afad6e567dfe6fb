# SPDX-License-Identifier: GPL-2.0-or-later
"""Random walks: keys come, go and are garbage, the interface too, QubesDB and the agent die; the last keys win.

`make test` walks 1,000 steps, `make soak STEPS=100000` further. The seed of a walk is in the name of its test;
`make soak SEED=N STEPS=250` walks that one again, as far as timing lets it.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.eventually import eventually
from tests.support.guest import ENTRIES6, GATEWAY_FLAG, MAC, Guest

STEPS = int(os.environ.get("GUESTNET_SOAK_STEPS") or 1000)
SEED = int(os.environ.get("GUESTNET_SEED") or random.SystemRandom().randrange(1 << 31))
STEPS_A_WALK = 250
LONGEST_BURST = 12
# Only ever spent by an agent that does not converge; a store that hangs costs some seconds of retries.
DEADLINE_S = 40.0
WALKS = [(SEED + number, ("device", "gateway")[number % 2]) for number in range(-(-STEPS // STEPS_A_WALK))]

OWN = f"/net-config/{MAC}/"
NO_DEFAULT_FLAG = "disable-default-route"
HOSTILE = (b"garbage", b"\n", b"-h", b"\xff\xfe", b"0.0.0.0", b"224.0.0.1", b"::", b"A" * 3000, b"10.137.0.5\n")
# Keys and what dom0 may write there. The pools do not overlap, so that no two keys contradict each other.
GOOD: dict[str, tuple[str, ...]] = {
    "ip": tuple(f"10.137.0.{host}" for host in range(10, 60)),
    "netmask": ("255.255.255.255", "255.255.255.0", "32", "26"),
    "gateway": tuple(f"10.138.0.{host}" for host in range(10, 60)),
    "ip6": tuple(f"fd09:24ef:4179::a89:{host:x}" for host in range(10, 60)),
    "netmask6": ("128", "64"),
    "gateway6": tuple(f"fd09:24ef:4179::b89:{host:x}" for host in range(10, 60)),
    "primary-dns": tuple(f"10.139.1.{host}" for host in range(1, 9)),
    "secondary-dns": ("", *(f"10.139.2.{host}" for host in range(1, 9))),
}
PER_INTERFACE = ("ip", "netmask", "gateway", "ip6", "netmask6", "gateway6")
LENGTHS = {"255.255.255.255": "32", "255.255.255.0": "24"}


class Walk:
    """One qube, and what dom0 wants of it at every moment.

    Args:
        chance: the source of all decisions.
        style: default-route style.
    """

    def __init__(self, chance: random.Random, style: str) -> None:
        self.chance = chance
        self.style = style
        self.keys = dict(ENTRIES6)
        self.guest = Guest(self.keys, plugged=False)
        self.interface = ""
        self.vif = ""
        self.plugs = 0
        self.dirty: set[str] = set()
        self.default = True
        self.told: list[str] = []
        self.guest.qube.set_flag(GATEWAY_FLAG, style == "gateway")
        self.guest.qube.wire(
            "ip link add other0 type bridge; ip link set other0 up; ip address add 192.0.2.9/24 dev other0;"
            "ip route add 198.51.100.0/24 via 192.0.2.1; ip route add default via 192.0.2.1 metric 5000"
        )
        self.foreign = self._foreign()
        self.plug()
        self.guest.agent()

    # --- steps -------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One of the things that happen to a qube, more or less as often as they do."""
        actions = list(ACTIONS)
        action = self.chance.choices(actions, [ACTIONS[name] for name in actions])[0]
        self.told.append(action)
        getattr(self, action)()

    def write_key(self) -> None:
        leaf = self.chance.choice(list(GOOD))
        own = leaf in PER_INTERFACE and OWN + "ip" in self.keys and self.chance.random() < 0.5
        self._write((OWN if own else "/qubes-") + leaf, self.chance.choice(GOOD[leaf]))

    def write_garbage(self) -> None:
        key = "/qubes-" + self.chance.choice(list(GOOD))
        self.dirty.add(key)
        self._send(lambda: self.guest.write(key, self.chance.choice(HOSTILE)))

    def remove_key(self) -> None:
        leaf = self.chance.choice([name for name in GOOD if name not in ("ip", "gateway")])
        if self.keys.pop("/qubes-" + leaf, None) is not None:
            self._send(lambda: self.guest.remove("/qubes-" + leaf))

    def write_own_set(self) -> None:
        for leaf in ("netmask", "gateway", "ip"):
            self._write(OWN + leaf, self.chance.choice(GOOD[leaf]))

    def remove_own_set(self) -> None:
        for key in [key for key in self.keys if key.startswith(OWN)]:
            del self.keys[key]
        self._send(lambda: self.guest.remove(OWN))

    def plug(self) -> None:
        if self.interface:
            return
        self.plugs += 1
        self.vif, self.interface = f"vif5.{self.plugs}", self.chance.choice(("eth0", "eth0", "enX0"))
        self.guest.plug(self.interface, vif=self.vif)
        # The way back to every address: Linux proxies no ARP answer to one that it cannot reach.
        self.guest.provider.wire(f"ip route add 10.137.0.0/24 dev {self.vif}")

    def unplug(self) -> None:
        if self.interface:
            self.guest.unplug(self.vif)
            self.interface = ""

    def replug(self) -> None:
        self.unplug()
        if self.chance.random() < 0.7:
            self.write_key()
        self.plug()

    def meddle(self) -> None:
        words = self.chance.choice(
            ("link set {} down", "address flush dev {}", "-4 route flush dev {}", "-6 neighbour flush nud all dev {}")
        )
        self._ip(words.format(self.interface))

    def rename(self) -> None:
        if self.interface:
            new = {"eth0": "enX0", "enX0": "eth0"}[self.interface]
            self._ip(f"link set {self.interface} down")
            if self._ip(f"link set {self.interface} name {new}"):
                self.interface = new

    def restart_store(self) -> None:
        daemon = self.guest.qube.store_daemon
        assert daemon is not None
        if self.chance.random() < 0.5:
            daemon.kill()
        else:
            daemon.stop()
        self.write_key()
        self.dirty.clear()  # dom0 brings what it has, and that is good
        self.guest.qube.start_store(self.keys)

    def kill_agent(self) -> None:
        assert self.guest.qube.agent is not None
        self.guest.qube.agent.kill()
        self.guest.qube.start_agent(wait=self.chance.random() < 0.5)

    def hang_up(self) -> None:
        assert self.guest.qube.agent is not None
        self.guest.qube.agent.signal(signal.SIGHUP)

    def pause(self) -> None:
        self.guest.qube.pause()
        self.chance.choice((self.write_key, self.replug, self.unplug))()
        self.guest.qube.unpause()

    def flag(self) -> None:
        self.default = not self.default
        self.guest.qube.set_flag(NO_DEFAULT_FLAG, not self.default)
        self.hang_up()

    def command(self) -> None:
        """Somebody calls the command while the agent is at work."""
        self.guest.qube.guestnet(*self.chance.choice((("apply",), ("status",), ("plan",))), check=False)

    def _write(self, key: str, value: str) -> None:
        self.keys[key] = value
        self.dirty.discard(key)
        self._send(lambda: self.guest.write(key, value))

    def _send(self, write: Callable[[], None]) -> None:
        daemon = self.guest.qube.store_daemon
        if daemon is not None and daemon.running:
            write()

    def _ip(self, words: str) -> bool:
        return bool(self.interface) and not self.guest.oracle.run("ip", *words.split(), check=False).returncode

    # --- what must hold ----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Let dom0 put right what is garbage, and wait until the qube is what the keys say."""
        for key in sorted(self.dirty):
            leaf = key.removeprefix("/qubes-")
            self._write(key, self.chance.choice(GOOD[leaf]))
        agent = self.guest.qube.agent
        assert agent is not None
        if self.interface:
            eventually(self._as_asked, DEADLINE_S, f"the state of {self.keys} after {self.told}", self.guest.log)
        assert agent.running, self.guest.log()
        assert self._foreign() == self.foreign

    def _as_asked(self) -> bool:
        # With `device`, an answer by ARP that is late on a busy machine is a good reason to use the gateway.
        styles = ("device", "gateway") if self.style == "device" else ("gateway",)
        for style in styles:
            try:
                return self.guest.is_configured(self.interface, style=style, default=self.default, **self._wanted())
            except AssertionError:
                if style == styles[-1]:
                    raise
        return False

    def _wanted(self) -> dict[str, Any]:
        folder = OWN if OWN + "ip" in self.keys else "/qubes-"

        def value(leaf: str, default: str = "") -> str:
            return self.keys.get(folder + leaf) or default

        netmask = value("netmask", "32")
        ip6 = value("ip6")
        first = self.keys.get("/qubes-primary-dns") or value("gateway")
        servers = (first, self.keys.get("/qubes-secondary-dns"))
        return {
            "ip": f"{value('ip')}/{LENGTHS.get(netmask, netmask)}",
            "gateway": value("gateway"),
            "ip6": f"{ip6}/{value('netmask6', '128')}" if ip6 else "",
            "gateway6": value("gateway6") if ip6 else "",
            "servers": tuple(server for server in servers if server),
        }

    def _foreign(self) -> tuple[set[str], list[tuple[Any, ...]]]:
        oracle = self.guest.oracle
        routes = [(route["dst"], route.get("gateway"), route.get("metric")) for route in oracle.routes(4, "other0")]
        return oracle.addresses("other0"), sorted(routes, key=str)


# What happens, and how often.
ACTIONS = {
    "write_key": 40, "write_garbage": 10, "remove_key": 8, "write_own_set": 2, "remove_own_set": 2,
    "replug": 6, "unplug": 2, "plug": 6, "meddle": 6, "rename": 2,
    "restart_store": 2, "kill_agent": 3, "hang_up": 4, "pause": 2, "flag": 2, "command": 3,
}  # fmt: skip


@pytest.mark.soak
@pytest.mark.behaviour("B1")
@pytest.mark.behaviour("B2")
@pytest.mark.behaviour("B6")
@pytest.mark.behaviour("B7")
@pytest.mark.behaviour("B106")
@pytest.mark.scenario("S-400")
@pytest.mark.scenario("S-402")
@pytest.mark.parametrize(("seed", "style"), WALKS)
def test_whatever_happens_the_last_keys_win(seed: int, style: str) -> None:
    chance = random.Random(seed)
    walk = Walk(chance, style)
    left = min(STEPS, STEPS_A_WALK)
    while left:
        burst = min(left, chance.randint(1, LONGEST_BURST))
        walk.told.clear()
        for _ in range(burst):
            walk.step()
        left -= burst
        walk.check()
    walk.plug()
    walk.check()
    assert walk.guest.qube.guestnet("plan").stdout == ""
