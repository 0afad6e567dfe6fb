# SPDX-License-Identifier: GPL-2.0-or-later
"""The real systemd-resolved beside the agent: it knows the servers, and whatever it does, resolv.conf is right."""

from __future__ import annotations

import signal
import sys

import pytest

from qubes_guestnet.lab.daemons import Daemons
from qubes_guestnet.lab.qube import Service
from tests.support.eventually import eventually
from tests.support.qubes.appvm import DNS, DNS2, ENTRIES6, GATEWAY6, IP6, Guest

WITH6 = {"ip6": f"{IP6}/128", "gateway6": GATEWAY6}


def start(*, resolved: bool = True) -> tuple[Guest, Daemons]:
    guest = Guest(ENTRIES6)
    daemons = Daemons(guest.qube)
    daemons.dbus()
    if resolved:
        daemons.resolved()
    return guest, daemons


def knows(guest: Guest, daemons: Daemons, servers: tuple[str, ...] = (DNS, DNS2)) -> None:
    """Wait until resolved has our servers on eth0, for all names."""

    def told() -> bool:
        assert daemons.resolvectl("dns", "eth0").split() == list(servers)
        assert daemons.resolvectl("domain", "eth0") == "~."
        assert daemons.resolvectl("default-route", "eth0") == "yes"
        return True

    eventually(told, what="systemd-resolved knows the servers", trouble=guest.log)


def knows_nothing(guest: Guest, daemons: Daemons) -> None:
    """Wait until resolved has nothing of ours on eth0."""
    nothing = lambda: daemons.resolvectl("dns", "eth0") + daemons.resolvectl("domain", "eth0")  # noqa: E731
    eventually(lambda: "10.139" not in nothing() and "~." not in nothing(), what="reverted", trouble=guest.log)


def without_library(guest: Guest) -> dict[str, str]:
    """An environment in which jeepney cannot be imported."""
    guest.qube.write("/run/lab/hide/sitecustomize.py", "import sys\nsys.modules['jeepney'] = None\n")
    path = ":".join(("/run/lab/hide", *sys.path))
    return {"PYTHONPATH": path}


@pytest.mark.behaviour("B21")
@pytest.mark.parametrize("library", [True, False], ids=["bus", "resolvectl"])
def test_it_knows_the_servers_also_after_a_change_and_a_restart(library: bool) -> None:
    guest, daemons = start()
    guest.agent(env={} if library else without_library(guest))
    guest.soon_configured(**WITH6)
    knows(guest, daemons)
    guest.write("/qubes-secondary-dns", "10.139.1.3")
    knows(guest, daemons, (DNS, "10.139.1.3"))
    daemons.stop("resolved")
    guest.qube.run("sh", "-c", "rm -rf /run/systemd/resolve/*")  # what it saved for its next start
    daemons.resolved()
    knows(guest, daemons, (DNS, "10.139.1.3"))
    assert guest.servers() == [DNS, "10.139.1.3"]


@pytest.mark.behaviour("B21")
def test_it_starts_after_the_agent_as_does_the_bus() -> None:
    guest = Guest(ENTRIES6)
    daemons = Daemons(guest.qube)
    guest.qube.run("rmdir", "/run/dbus")
    guest.agent()
    guest.soon_configured(**WITH6)
    guest.qube.run("mkdir", "/run/dbus")
    daemons.dbus()
    daemons.resolved()
    knows(guest, daemons)
    assert "error" not in guest.log().lower()


def test_the_bus_restarts() -> None:
    guest, daemons = start()
    guest.agent()
    knows(guest, daemons)
    daemons.stop("resolved")
    daemons.stop("dbus")
    guest.qube.run("sh", "-c", "rm -rf /run/systemd/resolve/* /run/dbus/*")
    daemons.dbus()
    daemons.resolved()
    knows(guest, daemons)


@pytest.mark.behaviour("B21", "B15")
def test_withdrawn_with_the_interface_and_by_the_flag() -> None:
    guest, daemons = start()
    guest.agent()
    knows(guest, daemons)
    guest.qube.set_flag("disable-dns-server")
    guest.qube.agent.signal(signal.SIGHUP)  # type: ignore[union-attr]
    knows_nothing(guest, daemons)
    assert guest.servers() == []
    guest.qube.set_flag("disable-dns-server", False)
    guest.qube.agent.signal(signal.SIGHUP)  # type: ignore[union-attr]
    knows(guest, daemons)
    guest.qube.guestnet("uplink", "remove", "eth0")
    knows_nothing(guest, daemons)
    guest.qube.guestnet("uplink", "add", "eth0")
    knows(guest, daemons)
    guest.unplug()
    eventually(lambda: "eth0" not in guest.qube.run("resolvectl", "dns").stdout, what="gone with the interface")


@pytest.mark.behaviour("B21")
def test_the_command_line_tells_it_too() -> None:
    guest, daemons = start()
    assert "resolvectl dns eth0" in guest.qube.guestnet("plan").stdout
    guest.qube.guestnet("apply")
    knows(guest, daemons)
    assert guest.qube.guestnet("apply").stdout == ""


@pytest.mark.behaviour("B21", "B35")
def test_absent_or_masked_is_no_error() -> None:
    guest, _ = start(resolved=False)
    done = guest.qube.guestnet("apply")
    assert done.stderr == ""
    guest.check(**WITH6)
    guest.qube.run("mkdir", "-p", "/run/systemd/resolve")  # it ran once, and is masked now
    done = guest.qube.guestnet("apply")
    assert done.stderr == ""


def hang(guest: Guest, daemons: Daemons) -> Service:
    """Stop a daemon in the middle of its work."""
    daemons.running["resolved"].signal(signal.SIGSTOP)
    return daemons.running["resolved"]


@pytest.mark.behaviour("B21", "B35")
def test_a_hanging_one_holds_nothing_up() -> None:
    guest, daemons = start()
    hanging = hang(guest, daemons)
    guest.agent()
    guest.soon_configured(**WITH6)
    eventually(lambda: guest.said("resolve1") > 0, what="it says who hangs", trouble=guest.log)
    guest.write("/qubes-ip", "10.137.0.66")
    guest.soon_configured(ip="10.137.0.66/32", **WITH6)
    assert guest.servers() == [DNS, DNS2]
    hanging.signal(signal.SIGCONT)
    knows(guest, daemons)
    eventually(lambda: guest.said("all errors cleared"), 20, trouble=guest.log)


@pytest.mark.behaviour("B24")
def test_the_drop_in_switches_multicast_names_off() -> None:
    guest, daemons = start()
    guest.agent()
    knows(guest, daemons)
    # A link's own setting counts only where the global one allows it.
    everywhere = guest.qube.run("resolvectl", "status", "--no-pager").stdout.partition("Link ")[0]
    assert "-LLMNR" in everywhere
    assert "-mDNS" in everywhere
    sockets = guest.oracle.run("ss", "-Hlnu").stdout
    assert ":5355" not in sockets
    assert ":5353" not in sockets


def test_a_vpn_on_its_own_link_keeps_its_servers() -> None:
    guest, daemons = start()
    guest.agent()
    knows(guest, daemons)
    guest.ip("link", "add", "tun0", "type", "veth", "peer", "name", "tun0-far")
    guest.ip("link", "set", "tun0", "up")
    guest.qube.run("resolvectl", "dns", "tun0", "10.8.0.1")
    guest.qube.run("resolvectl", "domain", "tun0", "~.")
    guest.write("/qubes-secondary-dns", "10.139.1.3")
    knows(guest, daemons, (DNS, "10.139.1.3"))
    assert daemons.resolvectl("dns", "tun0") == "10.8.0.1"
    assert daemons.resolvectl("domain", "tun0") == "~."
