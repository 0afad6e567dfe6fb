# SPDX-License-Identifier: GPL-2.0-or-later
"""The resident agent's life: ready, signals, watchdog; interfaces that come, go, change their name and flap."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.eventually import eventually, never
from tests.support.qubes.appvm import (
    DNS,
    ENTRIES,
    ENTRIES6,
    GATEWAY6,
    GATEWAY_FLAG,
    IP6,
    MAC,
    AppVm,
)

WITH6 = {"ip6": f"{IP6}/128", "gateway6": GATEWAY6}
LOCK = "/run/qubes-guestnet/lock"


def told(appvm: AppVm, text: str) -> int:
    """How many messages to systemd say this."""
    return sum(text in message for _, message in appvm.qube.notifications())


# --- ready, status, watchdog ---------------------------------------------------------------------------------------


def test_ready_when_all_is_configured() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.agent()
    appvm.check(**WITH6)
    assert told(appvm, "READY=1") == 1
    assert told(appvm, "STATUS=eth0: 10.137.0.5/32") == 1


def test_ready_when_nothing_is_to_configure() -> None:
    appvm = AppVm({}, plugged=False)
    appvm.agent()
    assert told(appvm, "STATUS=no interface expected") == 1


def test_ready_when_the_interface_is_not_there_yet() -> None:
    appvm = AppVm(plugged=False)
    appvm.agent()
    assert told(appvm, f"STATUS={MAC}: not there") == 1
    appvm.plug()
    appvm.soon_configured()


def test_ready_when_the_settings_are_invalid() -> None:
    appvm = AppVm({**ENTRIES, "/qubes-ip": "10.137.0.555"})
    appvm.agent()
    assert told(appvm, "1 error, first: /qubes-ip") == 1
    appvm.write("/qubes-ip", "10.137.0.5")
    appvm.soon_configured()
    assert appvm.said("/qubes-ip: '10.137.0.555' is not valid") == 1
    assert appvm.said("all errors cleared") == 1


def test_not_ready_before_the_first_pass_is_over() -> None:
    appvm = AppVm()
    appvm.qube.run("mkdir", "-p", os.path.dirname(LOCK))
    holder = appvm.qube.spawn("holder", "flock", "--close", LOCK, "sh", "-c", "echo held; exec sleep 1000")
    eventually(lambda: "held" in holder.output())
    appvm.agent(wait=False)
    never(lambda: told(appvm, "READY=1"), 0.7)
    holder.kill()
    eventually(lambda: told(appvm, "READY=1"), trouble=appvm.log)
    appvm.check()


def test_not_ready_without_qubesdb_and_ready_once_it_is_there() -> None:
    appvm = AppVm(None)
    agent = appvm.agent(wait=False)
    eventually(lambda: told(appvm, "STATUS=waiting for QubesDB"), trouble=appvm.log)
    assert not told(appvm, "READY=1")
    assert agent.running
    appvm.qube.start_store(ENTRIES)
    eventually(lambda: told(appvm, "READY=1"), trouble=appvm.log)
    appvm.check()


@pytest.mark.parametrize("with_qubesdb", [True, False])
def test_the_watchdog_is_served(with_qubesdb: bool) -> None:
    appvm = AppVm(ENTRIES if with_qubesdb else None)
    appvm.agent(wait=with_qubesdb, env={"WATCHDOG_USEC": "200000"})
    eventually(lambda: told(appvm, "WATCHDOG=1") >= 5, trouble=appvm.log)


def test_no_watchdog_where_systemd_asks_for_none() -> None:
    appvm = AppVm()
    appvm.agent()
    appvm.write("/qubes-ip", "10.137.0.6")
    appvm.soon_configured(ip="10.137.0.6/32")
    assert told(appvm, "WATCHDOG=1") == 0


def test_a_notify_socket_where_nobody_listens_is_no_harm() -> None:
    appvm = AppVm()
    agent = appvm.agent(wait=False, env={"NOTIFY_SOCKET": "/run/no-listener"})
    appvm.soon_configured()
    assert agent.stop() == 0


# --- signals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_of_the_agent_leaves_the_network(number: signal.Signals) -> None:
    appvm = AppVm(ENTRIES6)
    agent = appvm.agent()
    agent.signal(number)
    assert agent.wait() == 0
    assert told(appvm, "STOPPING=1") == 1
    appvm.check(**WITH6)


def test_killed_and_started_again() -> None:
    appvm = AppVm(ENTRIES6)
    agent = appvm.agent()
    agent.kill()
    appvm.check(**WITH6)
    appvm.write("/qubes-ip", "10.137.0.6")
    appvm.remove("/qubes-ip6")
    said = len(appvm.log())
    appvm.agent()
    appvm.check(ip="10.137.0.6/32")
    assert "Traceback" not in appvm.log()[said:]


def test_sighup_means_look_now() -> None:
    """A flag and the neighbour table wake no pass, so the change waits for the signal."""
    appvm = AppVm()
    agent = appvm.agent()
    appvm.qube.set_flag(GATEWAY_FLAG)
    appvm.ip("neighbour", "del", "10.137.0.1", "dev", "eth0")
    agent.signal(signal.SIGHUP)
    appvm.soon_configured(style="gateway")


def test_many_signals_at_once() -> None:
    appvm = AppVm()
    agent = appvm.agent()
    for _ in range(200):
        agent.signal(signal.SIGHUP)
    appvm.write("/qubes-ip", "10.137.0.6")
    appvm.soon_configured(ip="10.137.0.6/32")
    assert agent.stop() == 0


def test_nothing_is_written_when_nothing_changed() -> None:
    appvm = AppVm(ENTRIES6)
    agent = appvm.agent()
    appvm.soon_configured(**WITH6)
    eventually(lambda: DNS in appvm.oracle.neighbours("eth0", permanent=False))
    before, log = appvm.identity(), appvm.log()
    with appvm.monitor() as changes:
        for _ in range(5):
            agent.signal(signal.SIGHUP)
            appvm.write("/qubes-ip", "10.137.0.5")
            appvm.qube.guestnet("apply")
        assert changes() == ""
    assert appvm.log() == log
    assert appvm.identity() == before


# --- keys ----------------------------------------------------------------------------------------------------------


def test_each_key_is_followed() -> None:
    appvm = AppVm()
    appvm.agent()
    appvm.write("/qubes-ip", "10.137.0.6")
    appvm.soon_configured(ip="10.137.0.6/32")
    appvm.write("/qubes-netmask", "255.255.0.0")
    appvm.soon_configured(ip="10.137.0.6/16")
    appvm.write("/qubes-gateway", "10.137.0.2")
    appvm.soon_configured(ip="10.137.0.6/16", gateway="10.137.0.2")
    appvm.write("/qubes-ip6", IP6)
    appvm.write("/qubes-gateway6", GATEWAY6)
    appvm.soon_configured(ip="10.137.0.6/16", gateway="10.137.0.2", **WITH6)
    appvm.write("/qubes-primary-dns", "10.139.1.7")
    appvm.remove("/qubes-secondary-dns")
    appvm.soon_configured(ip="10.137.0.6/16", gateway="10.137.0.2", servers=("10.139.1.7",), **WITH6)
    appvm.remove("/qubes-ip6")
    appvm.soon_configured(ip="10.137.0.6/16", gateway="10.137.0.2", servers=("10.139.1.7",))


def test_per_interface_keys_are_followed() -> None:
    appvm = AppVm()
    appvm.agent()
    appvm.write(f"/net-config/{MAC}/gateway", "192.168.7.1")
    appvm.write(f"/net-config/{MAC}/ip", "192.168.7.5")
    appvm.soon_configured(ip="192.168.7.5/32", gateway="192.168.7.1")
    appvm.write(f"/net-config/{MAC}/custom", "1")
    appvm.soon_configured(ip="192.168.7.5/32", gateway="192.168.7.1", neighbours=False)
    appvm.remove(f"/net-config/{MAC}/")
    appvm.soon_configured()


def test_another_mac_means_another_interface() -> None:
    appvm = AppVm()
    appvm.plug("eth1", "00:16:3e:5e:6c:66", "vif5.1")
    appvm.agent()
    appvm.write("/qubes-mac", "00:16:3e:5e:6c:66")
    appvm.soon_configured("eth1")
    assert appvm.oracle.addresses("eth0") == set()
    assert appvm.oracle.neighbours("eth0") == {}


# --- interfaces ----------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("B1")
@pytest.mark.behaviour("B6")
def test_replugged_again_and_again() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.agent()
    for _ in range(5):
        appvm.unplug()
        appvm.plug()
        appvm.soon_configured(**WITH6)


@pytest.mark.behaviour("B6")
def test_the_provider_crashes() -> None:
    appvm = AppVm()
    appvm.agent()
    appvm.lose_provider()
    eventually(lambda: appvm.oracle.link("eth0") is None)
    appvm.plug()
    appvm.soon_configured()


@pytest.mark.behaviour("B1")
def test_events_of_udev_beside_the_agent() -> None:
    """Both know of the interface, in any order, and remove comes late."""
    appvm = AppVm()
    appvm.agent()
    appvm.unplug()
    appvm.plug()
    appvm.qube.guestnet("uplink", "remove", "eth0")
    appvm.qube.guestnet("uplink", "add", "eth0")
    appvm.soon_configured()


@pytest.mark.behaviour("B18")
def test_the_agent_leaves_down_what_was_removed() -> None:
    appvm = AppVm()
    agent = appvm.agent()
    appvm.qube.guestnet("uplink", "remove", "eth0")
    agent.signal(signal.SIGHUP)
    appvm.write("/qubes-ip", "10.137.0.6")
    never(lambda: appvm.oracle.is_up("eth0"), 0.5)
    appvm.unplug()
    appvm.plug()
    appvm.soon_configured(ip="10.137.0.6/32")


@pytest.mark.behaviour("B5")
@pytest.mark.behaviour("B7")
def test_another_provider_with_stale_ipv6_keys() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.agent()
    appvm.unplug()
    appvm.write("/qubes-gateway", "10.138.0.9")
    appvm.plug()
    appvm.soon_configured(gateway="10.138.0.9", **WITH6)
    appvm.unplug()
    eventually(lambda: appvm.oracle.routes(4) == appvm.oracle.routes(6) == [])
    appvm.write("/qubes-gateway", "10.138.0.10")  # keys alone are no interface
    assert appvm.oracle.link("eth0") is None


@pytest.mark.behaviour("B4")
def test_paused_while_the_provider_changed() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.agent()
    appvm.qube.pause()
    appvm.unplug()
    appvm.write("/qubes-gateway", "10.138.0.9")
    appvm.plug()
    appvm.qube.unpause()
    assert appvm.qube.guestnet("wait-uplink").returncode == 0
    appvm.check(gateway="10.138.0.9", **WITH6)


@pytest.mark.behaviour("B8")
def test_renamed_while_it_is_configured() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.agent()
    for old, new in (("eth0", "enX0"), ("enX0", "eth0"), ("eth0", "uplink")):
        appvm.oracle.run("sh", "-ec", f"ip link set {old} down; ip link set {old} name {new}")
        appvm.soon_configured(new, **WITH6)
    assert "Traceback" not in appvm.log()


@pytest.mark.behaviour("B8")
def test_renamed_at_the_moment_it_comes() -> None:
    appvm = AppVm(plugged=False)
    agent = appvm.agent()
    for number in range(10):
        appvm.plug("eth0")
        name = f"enX{number}"
        # The agent may have brought it up already, and an interface that is up keeps its name in older kernels.
        rename = (
            f"ip link set eth0 name {name} 2>/dev/null || {{ ip link set eth0 down; ip link set eth0 name {name}; }}"
        )
        appvm.oracle.run("sh", "-c", rename)
        appvm.soon_configured(name)
        appvm.unplug()
    assert agent.running
    assert "Traceback" not in appvm.log()


def test_an_interface_that_flaps() -> None:
    """It vanishes at every point of a pass. The agent lives, and ends configured."""
    appvm = AppVm(ENTRIES6, plugged=False)
    agent = appvm.agent()
    for _ in range(4):
        appvm.provider.wire(f"""
            for number in $(seq 50); do
                ip link add vif5.0 type veth peer name eth0 address {MAC} netns {appvm.qube.pid}
                ip link delete vif5.0
            done
        """)
    appvm.plug()
    appvm.soon_configured(**WITH6)
    assert agent.running
    assert "Traceback" not in appvm.log()
    assert appvm.said("did not persist") == 0
    errors = [line for line in appvm.log().splitlines() if "errno" in line.lower() or "(E" in line]
    assert errors == []


def test_more_events_than_the_socket_can_hold() -> None:
    """ENOBUFS: what was lost is not known, so everything is looked at."""
    appvm = AppVm(ENTRIES6)
    agent = appvm.agent()
    agent.signal(signal.SIGSTOP)
    flood = "".join("ip address add 192.0.2.1/32 dev lo; ip address del 192.0.2.1/32 dev lo; " for _ in range(20))
    for _ in range(100):
        appvm.oracle.run("sh", "-ec", flood)
        if appvm.lost_events():
            break
    assert appvm.lost_events(), "the socket did not overrun"
    appvm.ip("route", "del", "default", "dev", "eth0")
    agent.signal(signal.SIGCONT)
    appvm.soon_configured(**WITH6)
    appvm.ip("route", "del", "default", "dev", "eth0")
    appvm.soon_configured(**WITH6)
    assert "Traceback" not in appvm.log()
