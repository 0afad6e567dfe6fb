# SPDX-License-Identifier: GPL-2.0-or-later
"""More interfaces than the kernel takes in one message (256)."""

from __future__ import annotations

import pytest

from tests.support.eventually import eventually
from tests.support.hosting import WORLD, Behind, Hosting
from tests.support.offload import TCP, Offload, flowing

PAIRS = 130
GROUP, BATCH = "77", "/run/lab/many"


@pytest.mark.behaviour("B62")
def test_hundreds_of_interfaces(hosting: Hosting, behind: Behind, offload: Offload) -> None:
    lines = [f"link add many{number} group {GROUP} type veth peer name more{number}\n" for number in range(PAIRS)]
    hosting.qube.write(BATCH, "".join(lines))
    hosting.qube.run("ip", "-batch", BATCH, timeout=60)
    eventually(offload.complete, 60, "offload is on for all", lambda: f"{offload.devices()}\n{hosting.trouble()}")
    assert len(offload.devices() or ()) > 2 * PAIRS
    with flowing(behind.qube, hosting.world, WORLD, TCP) as flow:
        offload.takes(flow)
    hosting.qube.run("ip", "link", "delete", "group", GROUP, timeout=60)
    eventually(offload.complete, 60, "offload is on for what is left", hosting.trouble)
    assert "offload: on (" in hosting.qube.guestnet("status").stdout
