# SPDX-License-Identifier: GPL-2.0-or-later
"""Random walks: keys come, go and are hostile, the interface too, the user meddles, QubesDB and the agent die.

Every few steps, and at the end, the qube has to come to rest in exactly the state that the last keys and flags ask
for, with nothing foreign touched.

`make test` walks 1,000 steps, `make soak STEPS=100000` further. The seed of a walk is in the name of its test;
`make soak SEED=N STEPS=250` walks that one again: the same steps, though not at the same microseconds.
"""

from __future__ import annotations

import os
import sys
import time

import pytest

from tests.lab.walk import LINK_TARGET, Walk
from tests.support.eventually import eventually

STEPS = int(os.environ.get("GUESTNET_SOAK_STEPS") or 1000)
SEED = int(os.environ["GUESTNET_SEED"])  # set by tests/conftest.py where the caller gave none
STEPS_A_WALK = 250
LONGEST_BURST = 10
# A step of its own: nothing else wakes the agent then.
ALONE = 0.35
# Only ever spent by an agent that does not converge; after an outage it may wait for 5 s before it tries again.
DEADLINE_S = 20.0
WALKS = [(SEED + number, ("device", "gateway")[number % 2]) for number in range(-(-STEPS // STEPS_A_WALK))]


class Settled:
    """Holds a walk to what must be so at rest."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._read = 0
        self._descriptors = 0

    def check(self) -> None:
        """Let everything that is stopped go on, and wait until the qube is what the model says."""
        walk = self._walk
        walk.trail.append("-- at rest")
        walk.await_ready()
        walk.wait_for_commands()
        if walk.needs_hup:
            walk.needs_hup = False
            walk.hang_up()
        eventually(lambda: not self._difference(), DEADLINE_S, "the state asked for", self._trouble)
        if walk.model.ambiguous:
            # One of several states is right. Which one stays shows only once the agent has nothing left to do; on a
            # busy machine it may not have begun.
            walk.await_quiet()
            eventually(lambda: not self._difference(), DEADLINE_S, "the state asked for", self._trouble)
        walk.model.rest(walk.look_at().objects, walk.file())
        self._healthy()

    def _difference(self) -> str:
        """The first thing that is not as it must be. Asserts, so that the last one is in the message."""
        walk = self._walk
        sight = walk.look_at()
        asked = walk.model.wanted()
        found = walk.model.difference(sight.up, sight.objects, walk.file())
        if not found and walk.model.plugged and asked.up and not walk.model.removed and sight.group != "1":
            found = f"the group is {sight.group}"
        if not found and sight.others != walk.others:
            found = f"other interfaces were touched: {sight.others ^ walk.others}"
        assert not found, found
        return found

    def _trouble(self) -> str:
        model = self._walk.model
        keys = "\n".join(f"  {key} = {value.data!r:.60} {value.good}" for key, value in sorted(model.keys.items()))
        state = f"flags {model.flags}, plugged {model.plugged}, removed {model.removed}"
        return f"keys:\n{keys}\n{state}\nthe agent's log ends:\n{self._walk.agent.tail(2500)}"

    def _healthy(self) -> None:
        walk = self._walk
        assert walk.agent.running, walk.agent.tail(2500)
        with walk.agent.log.open(errors="replace") as log:
            log.seek(self._read)
            said = log.read()
            self._read = log.tell()
        assert "Traceback" not in said, said
        folder = f"/proc/{walk.agent.pid}/fd"
        self._descriptors = self._descriptors or len(os.listdir(folder))
        eventually(
            lambda: len(os.listdir(folder)) <= self._descriptors,
            what=f"no more than {self._descriptors} open files",
            trouble=lambda: str([os.readlink(f"{folder}/{each}") for each in os.listdir(folder)]),
        )


@pytest.mark.soak
@pytest.mark.behaviour("B1")
@pytest.mark.behaviour("B2")
@pytest.mark.behaviour("B6")
@pytest.mark.behaviour("B7")
@pytest.mark.behaviour("B8")
@pytest.mark.behaviour("B12")
@pytest.mark.behaviour("B15")
@pytest.mark.behaviour("B18")
@pytest.mark.behaviour("B19")
@pytest.mark.behaviour("B106")
@pytest.mark.scenario("S-400")
@pytest.mark.scenario("S-402")
@pytest.mark.parametrize(("seed", "style"), WALKS)
def test_whatever_happens_the_last_keys_win(seed: int, style: str) -> None:
    started = time.monotonic()
    walk = Walk(seed, style)
    settled = Settled(walk)
    settled.check()
    steps = min(STEPS, STEPS_A_WALK)
    left = steps
    try:
        while left:
            burst = 1 if walk.chance.random() < ALONE else min(left, walk.chance.randint(2, LONGEST_BURST))
            for _ in range(burst):
                walk.step()
            left -= burst
            settled.check()
        walk.uplink_back()
        walk.heal()
        walk.plug()
        settled.check()
        assert walk.appvm.qube.guestnet("plan").stdout == ""
        assert not walk.appvm.qube.path(LINK_TARGET).exists()
    except BaseException:
        lines = "\n".join(walk.trail)
        print(f"seed {seed}, step {steps - left} of {steps}; the last steps:\n{lines}", file=sys.stderr)
        raise
    print(f"seed {seed}: {steps} steps in {time.monotonic() - started:.1f} s")
