# SPDX-License-Identifier: GPL-2.0-or-later
"""In the company of other daemons: S-020 (NetworkManager owns the uplink of a proxy)."""

from __future__ import annotations

from .. import probes, world
from ..daemons import Daemons
from ..dom0 import INTERFACE
from ..namespaces import LabError
from ..qube import eventually
from ..stage import Stage

_FLAG = "network-manager"
_PROFILE = f"VM uplink {INTERFACE}"


def s_020(stage: Stage) -> None:
    """A proxy's uplink is NetworkManager's: the qube behind it follows `nmcli` down and up again, names included."""
    stage.step("proxy starts behind netvm1, with the service network-manager")
    proxy = stage.proxy("proxy", stage.netvm1, agent=False)
    qube = proxy.running
    qube.set_flag(_FLAG)
    daemons = Daemons(qube)
    daemons.dbus()
    daemons.prepare_networkmanager()
    qube.start_agent()
    stage.step("NetworkManager starts, and takes the profile")
    daemons.networkmanager()
    stage.reaches(proxy)
    if daemons.device("GENERAL.CONNECTION") != _PROFILE:
        raise LabError(f"{INTERFACE} has the profile {daemons.device('GENERAL.CONNECTION')}", qube.agent.tail())  # type: ignore[union-attr]
    stage.step("vm1 starts behind proxy, and reaches the world")
    vm1 = stage.start("vm1", proxy)
    stage.reaches(vm1)
    stage.answered(vm1)
    for _ in range(2):
        stage.step("`nmcli device disconnect` cuts it off")
        daemons.nmcli("device", "disconnect", INTERFACE)
        eventually("vm1 is cut off", lambda: probes.ping(vm1.running, world.HOST, 0.2) is None)
        stage.step("`nmcli connection up` restores it")
        daemons.nmcli("connection", "up", _PROFILE)
        stage.reaches(vm1)
        stage.reaches(proxy)
    stage.step("NetworkManager restarts, and nothing changes")
    daemons.stop("networkmanager")
    stage.reaches(vm1)
    daemons.networkmanager()
    stage.works(vm1)
