# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from qubes_guestnet.core.uplink.unit_jobs import parse, takes_down

UNIT = "qubes-network-uplink@eth0.service"
LISTED = """\
 47 qubes-network-uplink@eth0.service stop    running
 48 network-pre.target                restart waiting
No jobs running.

"""


def test_jobs_as_systemctl_lists_them() -> None:
    assert parse(LISTED.splitlines()) == {UNIT: "stop", "network-pre.target": "restart"}


@pytest.mark.behaviour("B152")
@pytest.mark.parametrize(
    ("jobs", "down"),
    [
        ({UNIT: "stop"}, True),
        ({}, True),  # systemd did not say
        ({UNIT: "stop", "cron.service": "start"}, True),
        ({UNIT: "stop", "shutdown.target": "start", "network-pre.target": "stop"}, True),
        ({UNIT: "restart", "shutdown.target": "start"}, True),
        ({UNIT: "restart"}, False),
        ({UNIT: "try-restart"}, False),
        ({UNIT: "stop", "network-pre.target": "stop"}, False),
        ({UNIT: "restart", "network-pre.target": "restart"}, False),
        ({UNIT: "stop", "network-pre.target": "try-restart"}, False),
        # It is started for another unit meanwhile.
        ({UNIT: "stop", "network-pre.target": "start"}, True),
    ],
)
def test_the_interface_goes_down_when_its_unit_is_stopped_for_itself(jobs: dict[str, str], down: bool) -> None:
    assert takes_down(UNIT, jobs) is down
