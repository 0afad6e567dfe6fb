# SPDX-License-Identifier: GPL-2.0-or-later
"""Random walks through a tree: netvm of a paused qube, rewritten entries of providers, IPv6 switched while they run.

`make soak` walks further, and `make soak SEED=N` walks one again; the seed is in the name of the test.
"""

from __future__ import annotations

import os
import random
import sys

import pytest

from tests.lab.tree_walk import TreeWalk
from tests.support.needs import needs

# A step of these costs as much as twenty of a walk with one qube: whole qubes start.
STEPS = max(24, int(os.environ.get("GUESTNET_SOAK_STEPS") or 0) // 20)
SEED = int(os.environ.get("GUESTNET_SEED") or random.SystemRandom().randrange(1 << 31))
LONGEST_BURST = 4


@pytest.mark.soak
@pytest.mark.behaviour("B4")
@pytest.mark.behaviour("B95")
@pytest.mark.behaviour("B159")
@pytest.mark.behaviour("B160")
@pytest.mark.behaviour("B161")
@pytest.mark.parametrize(("seed", "release"), [(SEED, "4.3"), (SEED + 1, "4.2")])
def test_whatever_dom0_does_every_qube_has_what_it_was_attached_with(seed: int, release: str) -> None:
    needs("ip", "nft", "nsenter", "dnsmasq")
    walk = TreeWalk(seed, release)
    left = STEPS
    try:
        walk.settled()
        while left:
            burst = min(left, walk.chance.randint(1, LONGEST_BURST))
            for _ in range(burst):
                walk.step()
            left -= burst
            walk.settled()
    except BaseException:
        lines = "\n".join(walk.trail)
        print(f"seed {seed}, step {STEPS - left} of {STEPS}; the last steps:\n{lines}", file=sys.stderr)
        raise
