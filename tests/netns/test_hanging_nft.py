# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of a pass that hang, one after the other: the agent goes on, and its watchdog is fed in time."""

from __future__ import annotations

import itertools

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.provider import ENTRIES6, Provider

WATCHDOG_S = 9


@pytest.mark.behaviour("B119")
def test_nft_that_hangs_does_not_have_the_watchdog_end_the_agent() -> None:
    """Each run of it has its ten seconds, and a pass runs many: together they take less than the watchdog allows."""
    host = Provider(ENTRIES6, agent=False)
    behind = host.attach()
    host.qube.start_agent(env={"WATCHDOG_USEC": f"{WATCHDOG_S}000000"})
    eventually(lambda: host.works(behind), trouble=host.trouble)
    whole = host.settled()
    host.qube.write("/run/lab/hangs", "#!/bin/sh\nexec sleep 600\n")
    host.qube.path("/run/lab/hangs").chmod(0o755)
    host.replace_nft("/run/lab/hangs")
    host.real_nft("flush ruleset")
    eventually(lambda: not host.forwards(4) and not host.forwards(6), trouble=host.trouble)
    eventually(lambda: "used up the time of this pass" in host.trouble(), 60, trouble=host.trouble)
    host.restore_nft()
    eventually(lambda: host.settled() == whole, 60, trouble=host.trouble)
    fed = [when for when, message in host.qube.notifications() if "WATCHDOG=1" in message]
    gaps = [after - before for before, after in itertools.pairwise(fed)]
    assert max(gaps) < WATCHDOG_S
    assert host.works(behind)
