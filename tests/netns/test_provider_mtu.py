# SPDX-License-Identifier: GPL-2.0-or-later
"""The MTU that dom0 asks for is that of the vifs too."""

from __future__ import annotations

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.provider import ENTRIES, Provider


@pytest.mark.behaviour("B109")
def test_vifs_get_the_mtu_of_dom0_and_follow_it() -> None:
    host = Provider({**ENTRIES, "/vm-config/net-mtu": "1420"})
    behind = host.attach()
    assert host.link(behind.vif)["mtu"] == 1420
    host.write("/vm-config/net-mtu", "1400")
    eventually(lambda: host.link(behind.vif)["mtu"] == 1400, what="the vif has the other MTU")
    host.write("/vm-config/net-mtu", "12")
    eventually(lambda: "/vm-config/net-mtu" in host.agent.output(), what="the error is told")
    assert host.link(behind.vif)["mtu"] == 1400
