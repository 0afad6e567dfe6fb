# SPDX-License-Identifier: GPL-2.0-or-later
"""The system bus reads its configuration anew, ends, and comes back, be it dbus-daemon, dbus-broker or the other one.

One process each, as in a qube without systemd.
"""

from __future__ import annotations

import itertools

import pytest

from qubes_guestnet.lab.daemons import Daemons
from qubes_guestnet.lab.qube import Qube, Service
from tests.netns.test_networkmanager import FLAG, IP, soon_managed
from tests.netns.test_networkmanager import start as with_networkmanager
from tests.netns.test_resolved import knows
from tests.support.eventually import eventually, never
from tests.support.needs import needs
from tests.support.qubes.appvm import DNS, DNS2, ENTRIES, AppVm

BUSES = ("dbus-daemon", "dbus-broker")
RELOAD = ("busctl", "call", "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "ReloadConfig")
# Which one runs first, and which one comes back: also the other, as after an installation.
WAYS = tuple(itertools.product(BUSES, BUSES))


@pytest.fixture(autouse=True)
def _tools() -> None:
    needs("dbus-daemon", "dbus-broker-launch", "busctl", "/lib/systemd/systemd-resolved")


def agent(appvm: AppVm) -> Service:
    assert appvm.qube.agent is not None
    return appvm.qube.agent


def bus_ends(qube: Qube, daemons: Daemons, how: str) -> None:
    """Of itself or killed; its socket is left, as by a socket unit, or goes too."""
    if how == "kill":
        daemons.running.pop("dbus").kill()
    else:
        daemons.stop("dbus")
        qube.run("sh", "-c", "rm -rf /run/dbus/*")


@pytest.mark.behaviour("B21")
@pytest.mark.parametrize("how", ["stop", "kill"])
@pytest.mark.parametrize(("first", "second"), WAYS)
def test_resolved_is_taken_up_again(first: str, second: str, how: str) -> None:
    appvm = AppVm(ENTRIES)
    daemons = Daemons(appvm.qube)
    daemons.dbus(first)
    daemons.resolved()
    appvm.agent()
    knows(appvm, daemons)
    appvm.qube.run(*RELOAD)
    appvm.write("/qubes-secondary-dns", "10.139.1.3")
    knows(appvm, daemons, (DNS, "10.139.1.3"))
    bus_ends(appvm.qube, daemons, how)
    appvm.write("/qubes-secondary-dns", "10.139.1.4")
    eventually(lambda: appvm.servers() == [DNS, "10.139.1.4"], what="resolv.conf without a bus", trouble=appvm.log)
    daemons.stop("resolved")
    daemons.dbus(second)
    daemons.resolved()
    knows(appvm, daemons, (DNS, "10.139.1.4"))
    appvm.write("/qubes-secondary-dns", DNS2)
    knows(appvm, daemons, (DNS, DNS2))
    assert agent(appvm).running


@pytest.mark.behaviour("B25")
@pytest.mark.parametrize("bus", BUSES)
def test_networkmanager_is_taken_up_again(bus: str) -> None:
    appvm, daemons = with_networkmanager(ENTRIES)
    daemons.stop("dbus")
    daemons.dbus(bus)
    assert appvm.qube.path(f"/run/qubes-service/{FLAG}").exists()
    daemons.networkmanager()
    appvm.agent()
    soon_managed(appvm, daemons, ipv6=False)
    appvm.qube.run(*RELOAD)
    appvm.write("/qubes-ip", "10.137.0.77")
    soon_managed(appvm, daemons, ip="10.137.0.77", ipv6=False)
    daemons.stop("networkmanager")
    bus_ends(appvm.qube, daemons, "kill")
    appvm.write("/qubes-ip", IP)
    never(lambda: not agent(appvm).running, 1.0)
    daemons.dbus(bus)
    daemons.networkmanager()
    soon_managed(appvm, daemons, ipv6=False)
    assert agent(appvm).running
