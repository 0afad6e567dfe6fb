# SPDX-License-Identifier: GPL-2.0-or-later
"""What dom0 writes while the interface is there: S-400, S-402, S-404."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from .. import probes, world
from ..dom0 import Vm
from ..namespaces import LabError
from ..qube import eventually
from ..stage import Stage
from .foreign import add_foreign, check_foreign

_CHANGES = 100
_LONGEST_BURST = 10
_KILLS_EVERY = 4
# Only a broken agent needs that long; a slow machine does not.
_GAP_LIMIT = 5.0
_LONG = b"A" * 3071
_HOSTILE = (b"garbage", _LONG, b"-h", b"\n", b"\xff\xfe", b"0.0.0.0", b"::", b"224.0.0.1", b"ff02::1", b"127.0.0.1")


def s_400(stage: Stage) -> None:
    """Keys change on a live interface, one by one, in random order: the final state is exactly the final keys'."""
    vm = stage.start("vm1", stage.netvm1)
    _change_keys(stage, vm, lambda _number: None)


def s_402(stage: Stage) -> None:
    """The agent is killed at random moments meanwhile, and started again at once as systemd does."""
    vm = stage.start("vm1", stage.netvm1)
    foreign = add_foreign(stage, vm)
    chance = random.Random(402)
    kills = 0

    def kill(number: int) -> None:
        nonlocal kills
        if number % _KILLS_EVERY:
            return
        time.sleep(chance.uniform(0, 0.03))
        agent = vm.running.agent
        assert agent is not None
        agent.kill()
        kills += 1
        vm.running.start_agent(wait=False)

    _change_keys(stage, vm, kill)
    stage.step(f"after {kills} kills nothing foreign was touched")
    check_foreign(vm, foreign)


def _change_keys(stage: Stage, vm: Vm, meanwhile: Callable[[int], None]) -> None:
    good = vm.entries()
    seed = random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    stage.step(f"{_CHANGES} changes in random order (seed {seed})")
    # The provider must know the way back to every address tried: Linux proxies no ARP answer to one it cannot reach.
    stage.netvm1.running.wire(f"ip route add 10.137.0.0/24 dev {vm.vif}")
    watch = _DefaultRoutes(vm)
    left = _CHANGES
    while left:
        burst = min(left, chance.randint(1, _LONGEST_BURST))
        for number in range(left, left - burst, -1):
            key, value = _some_change(chance, stage.ipv6)
            stage.dom0.write(vm, key, value)
            meanwhile(number)
            watch.look_for(chance.uniform(0, 0.02))
        left -= burst
        stage.configured(vm)
        watch.look_for(0)
    stage.step("the last keys are dom0's own again, and vm1 reaches the world")
    for key in chance.sample(sorted(good), len(good)):
        stage.dom0.write(vm, key, good[key])
    stage.configured(vm)
    stage.reaches(vm)
    watch.look_for(0)
    stage.note(f"at most {watch.most} default routes at a time; longest time with none or two: {watch.gap:.3f} s")
    if watch.gap > _GAP_LIMIT:
        raise LabError(f"for {watch.gap:.1f} s there was not exactly one default route")


def _some_change(chance: random.Random, ipv6: bool) -> tuple[str, str]:
    host = chance.randint(10, 250)
    changes = [
        ("/qubes-ip", f"10.137.0.{host}"),
        ("/qubes-gateway", f"10.137.1.{host}"),
        ("/qubes-netmask", chance.choice(("255.255.255.255", "255.255.255.0"))),
        ("/qubes-primary-dns", f"10.139.1.{host}"),
        ("/qubes-secondary-dns", chance.choice(("", f"10.139.2.{host}"))),
    ]
    if ipv6:
        changes += [
            ("/qubes-ip6", f"fd09:24ef:4179::a89:{host:x}"),
            ("/qubes-gateway6", f"fd09:24ef:4179::b89:{host:x}"),
        ]
    return chance.choice(changes)


class _DefaultRoutes:
    """Counts IPv4 default routes again and again, and how long there was not exactly one."""

    def __init__(self, vm: Vm) -> None:
        self._table = probes.RouteTable(vm.running, "eth0")
        self._wrong_since: float | None = None
        self.gap = 0.0
        self.most = 0

    def look_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            count = self._table.default_routes()
            self.most = max(self.most, count)
            if count == 1:
                self._wrong_since = None
            elif self._wrong_since is None:
                self._wrong_since = now
            else:
                self.gap = max(self.gap, now - self._wrong_since)
            if now >= end:
                return
            time.sleep(0.0005)


def s_404(stage: Stage) -> None:
    """Every key gets hostile values: an error names the key, what runs stays, and a good value heals."""
    stage.step("vm1 starts behind netvm1")
    vm = stage.start("vm1", stage.netvm1)
    stage.configured(vm)
    good = vm.entries()
    for key, value in good.items():
        hostile = [*_HOSTILE, value.encode() + b"\n", _wrong_family(key)]
        stage.step(f"{len(hostile)} hostile values in {key}")
        for untrusted in hostile:
            _refused(stage, vm, key, untrusted, good)
        stage.dom0.write(vm, key, value)
        stage.configured(vm)
    stage.step("after all of them vm1 reaches the world")
    stage.reaches(vm)


def _wrong_family(key: str) -> bytes:
    if key == "/qubes-mac":
        return b"00:16:3e:5e:6c"
    return b"10.137.0.9" if key.endswith("6") else b"fd09:24ef:4179::9"


def _refused(stage: Stage, vm: Vm, key: str, untrusted: bytes, good: dict[str, str]) -> None:
    agent = vm.running.agent
    assert agent is not None
    said = len(agent.output())
    stage.dom0.write(vm, key, untrusted)
    eventually(f"an error names {key} for {untrusted[:20]!r}", lambda: f"{key}:" in agent.output()[said:])
    # What is asked for is judged by the last good value: a hostile one changes nothing.
    vm.database[key] = good[key].encode()
    stage.configured(vm)
    if probes.ping(vm.running, world.HOST) is None:
        raise LabError(f"{untrusted[:20]!r} in {key} cut vm1 off")
    if agent.output()[said:].count(f"{key}:") > 1:
        raise LabError(f"the error about {key} was logged more than once: {agent.output()[said:]}")
