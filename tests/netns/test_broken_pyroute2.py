# SPDX-License-Identifier: GPL-2.0-or-later
"""A release of pyroute2 that cannot be had without its package takes no network away (B149): the agent, in a qube."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.programs.releases import PYROUTE2, TREE, copy
from tests.support.qubes.appvm import IP, AppVm


@pytest.mark.behaviour("B149")
@pytest.mark.parametrize("broken", PYROUTE2)
def test_the_agent_configures_its_interface_all_the_same(broken: str, tmp_path: Path) -> None:
    appvm = AppVm(plugged=False)
    # Below /run, because a qube does not see the folder of a test.
    folder = appvm.qube.path("/run/releases")
    folder.mkdir()
    PYROUTE2[broken](copy("pyroute2", folder))
    agent = appvm.qube.start_agent(env={"PYTHONPATH": f"/run/releases:{TREE}"}, deadline=30)
    appvm.plug()
    appvm.soon_configured()
    assert f"{IP}/32" in appvm.oracle.addresses("eth0")
    assert agent.output().count("importing all of pyroute2") == 1
    appvm.qube.guestnet("uplink", "remove", "eth0", env={"PYTHONPATH": f"/run/releases:{TREE}"})
    link = appvm.oracle.link("eth0")
    assert link is not None
    assert "UP" not in link["flags"]
