# SPDX-License-Identifier: GPL-2.0-or-later
"""The real systemd-resolved beside the agent: it knows the servers, and whatever it does, resolv.conf is right."""

from __future__ import annotations

import signal
import sys

import pytest

from qubes_guestnet.lab.daemons import Daemons
from qubes_guestnet.lab.qube import Service
from tests.support.eventually import eventually
from tests.support.qubes.appvm import DNS, DNS2, ENTRIES6, GATEWAY6, IP6, AppVm

WITH6 = {"ip6": f"{IP6}/128", "gateway6": GATEWAY6}


def start(*, resolved: bool = True) -> tuple[AppVm, Daemons]:
    appvm = AppVm(ENTRIES6)
    daemons = Daemons(appvm.qube)
    daemons.dbus()
    if resolved:
        daemons.resolved()
    return appvm, daemons


def knows(appvm: AppVm, daemons: Daemons, servers: tuple[str, ...] = (DNS, DNS2)) -> None:
    """Wait until resolved has our servers on eth0, for all names."""

    def told() -> bool:
        assert daemons.resolvectl("dns", "eth0").split() == list(servers)
        assert daemons.resolvectl("domain", "eth0") == "~."
        assert daemons.resolvectl("default-route", "eth0") == "yes"
        return True

    eventually(told, what="systemd-resolved knows the servers", trouble=appvm.log)


def knows_nothing(appvm: AppVm, daemons: Daemons) -> None:
    """Wait until resolved has nothing of ours on eth0."""
    nothing = lambda: daemons.resolvectl("dns", "eth0") + daemons.resolvectl("domain", "eth0")  # noqa: E731
    eventually(lambda: "10.139" not in nothing() and "~." not in nothing(), what="reverted", trouble=appvm.log)


def without_library(appvm: AppVm) -> dict[str, str]:
    """An environment in which jeepney cannot be imported."""
    appvm.qube.write("/run/lab/hide/sitecustomize.py", "import sys\nsys.modules['jeepney'] = None\n")
    path = ":".join(("/run/lab/hide", *sys.path))
    return {"PYTHONPATH": path}


@pytest.mark.behaviour("B21")
@pytest.mark.parametrize("library", [True, False], ids=["bus", "resolvectl"])
def test_it_knows_the_servers_also_after_a_change_and_a_restart(library: bool) -> None:
    appvm, daemons = start()
    appvm.agent(env={} if library else without_library(appvm))
    appvm.soon_configured(**WITH6)
    knows(appvm, daemons)
    appvm.write("/qubes-secondary-dns", "10.139.1.3")
    knows(appvm, daemons, (DNS, "10.139.1.3"))
    daemons.stop("resolved")
    appvm.qube.run("sh", "-c", "rm -rf /run/systemd/resolve/*")  # what it saved for its next start
    daemons.resolved()
    knows(appvm, daemons, (DNS, "10.139.1.3"))
    assert appvm.servers() == [DNS, "10.139.1.3"]


@pytest.mark.behaviour("B21")
def test_it_starts_after_the_agent_as_does_the_bus() -> None:
    appvm = AppVm(ENTRIES6)
    daemons = Daemons(appvm.qube)
    appvm.qube.run("rmdir", "/run/dbus")
    appvm.agent()
    appvm.soon_configured(**WITH6)
    appvm.qube.run("mkdir", "/run/dbus")
    daemons.dbus()
    daemons.resolved()
    knows(appvm, daemons)
    assert "error" not in appvm.log().lower()


def test_the_bus_restarts() -> None:
    appvm, daemons = start()
    appvm.agent()
    knows(appvm, daemons)
    daemons.stop("resolved")
    daemons.stop("dbus")
    appvm.qube.run("sh", "-c", "rm -rf /run/systemd/resolve/* /run/dbus/*")
    daemons.dbus()
    daemons.resolved()
    knows(appvm, daemons)


@pytest.mark.behaviour("B21", "B15")
def test_withdrawn_with_the_interface_and_by_the_flag() -> None:
    appvm, daemons = start()
    appvm.agent()
    knows(appvm, daemons)
    appvm.qube.set_flag("disable-dns-server")
    appvm.qube.agent.signal(signal.SIGHUP)  # type: ignore[union-attr]
    knows_nothing(appvm, daemons)
    assert appvm.servers() == []
    appvm.qube.set_flag("disable-dns-server", False)
    appvm.qube.agent.signal(signal.SIGHUP)  # type: ignore[union-attr]
    knows(appvm, daemons)
    appvm.qube.guestnet("uplink", "remove", "eth0")
    knows_nothing(appvm, daemons)
    appvm.qube.guestnet("uplink", "add", "eth0")
    knows(appvm, daemons)
    appvm.unplug()
    eventually(lambda: "eth0" not in appvm.qube.run("resolvectl", "dns").stdout, what="gone with the interface")


@pytest.mark.behaviour("B21")
def test_the_command_line_tells_it_too() -> None:
    appvm, daemons = start()
    assert "resolvectl dns eth0" in appvm.qube.guestnet("plan").stdout
    appvm.qube.guestnet("apply")
    knows(appvm, daemons)
    assert appvm.qube.guestnet("apply").stdout == ""


@pytest.mark.behaviour("B21", "B35")
def test_absent_or_masked_is_no_error() -> None:
    appvm, _ = start(resolved=False)
    done = appvm.qube.guestnet("apply")
    assert done.stderr == ""
    appvm.check(**WITH6)
    appvm.qube.run("mkdir", "-p", "/run/systemd/resolve")  # it ran once, and is masked now
    done = appvm.qube.guestnet("apply")
    assert done.stderr == ""


def hang(appvm: AppVm, daemons: Daemons) -> Service:
    """Stop a daemon in the middle of its work."""
    daemons.running["resolved"].signal(signal.SIGSTOP)
    return daemons.running["resolved"]


@pytest.mark.behaviour("B21", "B35")
def test_a_hanging_one_holds_nothing_up() -> None:
    appvm, daemons = start()
    hanging = hang(appvm, daemons)
    appvm.agent()
    appvm.soon_configured(**WITH6)
    eventually(lambda: appvm.said("resolve1") > 0, what="it names the service that hangs", trouble=appvm.log)
    appvm.write("/qubes-ip", "10.137.0.66")
    appvm.soon_configured(ip="10.137.0.66/32", **WITH6)
    assert appvm.servers() == [DNS, DNS2]
    hanging.signal(signal.SIGCONT)
    knows(appvm, daemons)
    eventually(lambda: appvm.said("all errors cleared"), 20, trouble=appvm.log)


@pytest.mark.behaviour("B24")
def test_the_drop_in_switches_multicast_names_off() -> None:
    appvm, daemons = start()
    appvm.agent()
    knows(appvm, daemons)
    # A link's own setting counts only where the global one allows it.
    everywhere = appvm.qube.run("resolvectl", "status", "--no-pager").stdout.partition("Link ")[0]
    assert "-LLMNR" in everywhere
    assert "-mDNS" in everywhere
    sockets = appvm.oracle.run("ss", "-Hlnu").stdout
    assert ":5355" not in sockets
    assert ":5353" not in sockets


def test_a_vpn_on_its_own_link_keeps_its_servers() -> None:
    appvm, daemons = start()
    appvm.agent()
    knows(appvm, daemons)
    appvm.ip("link", "add", "tun0", "type", "veth", "peer", "name", "tun0-far")
    appvm.ip("link", "set", "tun0", "up")
    appvm.qube.run("resolvectl", "dns", "tun0", "10.8.0.1")
    appvm.qube.run("resolvectl", "domain", "tun0", "~.")
    appvm.write("/qubes-secondary-dns", "10.139.1.3")
    knows(appvm, daemons, (DNS, "10.139.1.3"))
    assert daemons.resolvectl("dns", "tun0") == "10.8.0.1"
    assert daemons.resolvectl("domain", "tun0") == "~."
