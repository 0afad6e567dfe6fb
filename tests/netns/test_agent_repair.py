# SPDX-License-Identifier: GPL-2.0-or-later
"""What others take away from the agent comes back; what can not be set is told once; resolv.conf and its writers."""

from __future__ import annotations

import signal

import pytest

from tests.support.eventually import eventually, never
from tests.support.qubes.appvm import (
    BACKEND_MAC,
    ENTRIES,
    ENTRIES6,
    GATEWAY,
    GATEWAY6,
    GATEWAY_FLAG,
    IP,
    IP6,
    RESOLV_CONF,
    AppVm,
)

WITH6 = {"ip6": f"{IP6}/128", "gateway6": GATEWAY6}
LIMIT = 5  # write-backs of the same content within a minute

HARM = {
    "default route": "ip route del default dev eth0",
    "ipv6 default route": "ip -6 route del default dev eth0",
    "all routes": "ip route flush dev eth0; ip -6 route flush dev eth0",
    "address": f"ip address del {IP}/32 dev eth0",
    "ipv6 address": f"ip address del {IP6}/128 dev eth0",
    "all addresses": "ip address flush dev eth0",
    "link": "ip link set eth0 down",
    "link up and down": "ip link set eth0 down; ip link set eth0 up",
    "group": "ip link set eth0 group 7",
}


@pytest.mark.parametrize("style", ["device", "gateway"])
def test_what_is_taken_away_comes_back(style: str) -> None:
    appvm = AppVm(ENTRIES6)
    appvm.qube.set_flag(GATEWAY_FLAG, style == "gateway")
    appvm.agent()
    for name, harm in HARM.items():
        appvm.oracle.run("sh", "-ec", harm)
        eventually(lambda: appvm.is_configured(style=style, **WITH6), what=name, trouble=appvm.log)
    assert appvm.said("did not persist") == 0


@pytest.mark.behaviour("B11")
def test_a_neighbour_entry_comes_back_with_the_next_pass() -> None:
    """Changes of the neighbour table start no pass: a device route makes one for every destination."""
    appvm = AppVm(ENTRIES6)
    agent = appvm.agent()
    appvm.ip("neighbour", "del", GATEWAY, "dev", "eth0")
    appvm.ip("neighbour", "replace", GATEWAY6, "lladdr", "02:00:00:00:00:01", "nud", "permanent", "dev", "eth0")
    agent.signal(signal.SIGHUP)
    appvm.soon_configured(**WITH6)
    appvm.ip("neighbour", "replace", GATEWAY, "lladdr", BACKEND_MAC, "nud", "reachable", "dev", "eth0")
    agent.signal(signal.SIGHUP)
    appvm.soon_configured(**WITH6)


def test_a_fight_over_a_route_is_lost_slowly() -> None:
    """Another program removes it each time: the agent follows without burning the processor."""
    appvm = AppVm()
    # Verbose, because of the same pass again and again the journal tells ever less.
    appvm.qube.agent = agent = appvm.qube.spawn("agent", *appvm.program("agent", "--verbose"))
    appvm.soon_configured()
    hostile = "while :; do ip route del default dev eth0 2>/dev/null; sleep 0.01; done"
    fighter = appvm.qube.spawn("fighter", "sh", "-c", hostile)

    def calm() -> bool:
        before = appvm.said("route append")
        never(lambda: appvm.said("route append") > before + 5, 2.0)
        return True

    eventually(lambda: appvm.said("route append") >= 10, trouble=appvm.log)
    eventually(calm, 30)
    fighter.kill()
    appvm.soon_configured()
    assert agent.running


# --- IPv6 switched off ---------------------------------------------------------------------------------------------


@pytest.mark.behaviour("B7")
@pytest.mark.behaviour("B13")
def test_disabled_ipv6_never_hurts_ipv4() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.disable_ipv6(True)
    agent = appvm.agent()
    appvm.check()
    assert appvm.said("disable_ipv6") == 1, appvm.log()
    lines = len(appvm.log().splitlines())
    for _ in range(3):
        agent.signal(signal.SIGHUP)
        appvm.qube.guestnet("apply", check=False)
    appvm.write("/qubes-ip", "10.137.0.6")
    appvm.soon_configured(ip="10.137.0.6/32")
    assert appvm.said("disable_ipv6") == 1, "an error that goes on is told once"
    assert len(appvm.log().splitlines()) == lines + 3  # what woke the pass, and two operations
    appvm.disable_ipv6(False)
    appvm.soon_configured(ip="10.137.0.6/32", **WITH6)
    assert appvm.said("all errors cleared") == 0, "IPv6 that is off is a note and no error (B129)"


def test_ipv6_disabled_and_enabled_while_it_is_in_use() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.agent()
    for number in (1, 2):
        appvm.disable_ipv6(True)
        eventually(lambda: appvm.said("disable_ipv6") == number, trouble=appvm.log)  # noqa: B023
        appvm.check()
        appvm.disable_ipv6(False)
        appvm.soon_configured(**WITH6)
    assert appvm.said("disable_ipv6") == 2


# --- resolv.conf ---------------------------------------------------------------------------------------------------


def test_resolv_conf_is_written_back_but_not_for_ever() -> None:
    appvm = AppVm()
    appvm.agent()
    for number in range(LIMIT):
        appvm.qube.write(RESOLV_CONF, f"nameserver 192.0.2.{number}\n")
        appvm.soon_configured()
    appvm.qube.write(RESOLV_CONF, "nameserver 192.0.2.99\n")
    complaint = f"another program overwrote /etc/resolv.conf {LIMIT} times in 60 s"
    eventually(lambda: appvm.said(complaint), trouble=appvm.log)
    appvm.qube.write(RESOLV_CONF, "nameserver 192.0.2.98\n")
    never(lambda: appvm.servers() != ["192.0.2.98"], 0.5)
    assert appvm.said(complaint) == 1
    assert appvm.said("STATUS") == 0
    assert complaint in appvm.qube.notifications()[-1][1]
    assert appvm.status()["agent"]["error"].startswith(complaint)
    appvm.write("/qubes-secondary-dns", "10.139.1.9")
    appvm.soon_configured(servers=("10.139.1.1", "10.139.1.9"))
    eventually(lambda: appvm.said("all errors cleared") == 1, trouble=appvm.log)
    appvm.qube.write(RESOLV_CONF, "nameserver 192.0.2.97\n")
    appvm.soon_configured(servers=("10.139.1.1", "10.139.1.9"))


@pytest.mark.behaviour("B19")
def test_resolv_conf_is_removed_or_replaced_by_a_link() -> None:
    appvm = AppVm()
    appvm.agent()
    file = appvm.qube.path(RESOLV_CONF)
    file.unlink()
    appvm.soon_configured()
    appvm.qube.write("/run/elsewhere", "nameserver 192.0.2.1\n")
    appvm.qube.run("ln", "-sf", "/run/elsewhere", RESOLV_CONF)
    eventually(lambda: not file.is_symlink(), trouble=appvm.log)
    appvm.soon_configured()
    assert appvm.qube.read("/run/elsewhere") == "nameserver 192.0.2.1\n"


@pytest.mark.behaviour("B23")
@pytest.mark.parametrize("folder", ["/etc/qubes/protected-files.d", "/rw/config/protected-files.d"])
def test_a_protected_resolv_conf(folder: str) -> None:
    appvm = AppVm()
    appvm.qube.write(f"{folder}/mine", f"{RESOLV_CONF}\n")
    appvm.qube.write(RESOLV_CONF, "nameserver 192.0.2.1\n")
    before = appvm.identity()
    agent = appvm.agent()
    appvm.write("/qubes-primary-dns", "10.139.1.7")
    agent.signal(signal.SIGHUP)
    appvm.write("/qubes-ip", "10.137.0.6")
    appvm.soon_configured(ip="10.137.0.6/32", servers=("192.0.2.1",))
    assert appvm.identity() == before
    assert appvm.status()["resolver"]["owner"] == "protected"


def test_a_bind_mounted_resolv_conf_is_written_in_place() -> None:
    appvm = AppVm()
    appvm.qube.write("/rw/resolv.conf", "nameserver 192.0.2.1\n")
    appvm.qube.run("mount", "--bind", "/rw/resolv.conf", RESOLV_CONF)
    appvm.agent()
    appvm.check()
    assert "nameserver 10.139.1.1\n" in appvm.qube.read("/rw/resolv.conf")
    appvm.write("/qubes-primary-dns", "10.139.1.7")
    appvm.soon_configured(servers=("10.139.1.7", "10.139.1.2"))


def test_a_resolv_conf_that_cannot_be_written_is_told_once_and_healed() -> None:
    appvm = AppVm()
    appvm.qube.write("/rw/resolv.conf", "")
    appvm.qube.run("mount", "--bind", "/rw/resolv.conf", RESOLV_CONF)
    appvm.qube.run("mount", "-o", "remount,bind,ro", RESOLV_CONF)
    agent = appvm.agent()
    appvm.check(servers=())
    agent.signal(signal.SIGHUP)
    assert appvm.said("Read-only file system") == 1
    # Its own attempts count neither as another program's write nor as a reason for the next one.
    never(lambda: appvm.said("another program overwrote"), 1.5)
    appvm.qube.run("umount", RESOLV_CONF)
    appvm.soon_configured()
    eventually(lambda: appvm.said("all errors cleared") == 1, trouble=appvm.log)
    assert appvm.said("Read-only file system") == 1


@pytest.mark.behaviour("B15")
def test_flags_are_followed_with_the_next_pass() -> None:
    appvm = AppVm(ENTRIES)
    agent = appvm.agent()
    appvm.qube.set_flag("disable-dns-server")
    appvm.qube.set_flag("disable-default-route")
    agent.signal(signal.SIGHUP)
    appvm.soon_configured(servers=(), default=False)
    appvm.qube.set_flag("disable-dns-server", False)
    appvm.qube.set_flag("disable-default-route", False)
    agent.signal(signal.SIGHUP)
    appvm.soon_configured()
