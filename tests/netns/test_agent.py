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
    Guest,
)

WITH6 = {"ip6": f"{IP6}/128", "gateway6": GATEWAY6}
LOCK = "/run/qubes-guestnet/lock"


def told(guest: Guest, text: str) -> int:
    """How many messages to systemd say this."""
    return sum(text in message for _, message in guest.qube.notifications())


# --- ready, status, watchdog ---------------------------------------------------------------------------------------


def test_ready_when_all_is_configured() -> None:
    guest = Guest(ENTRIES6)
    guest.agent()
    guest.check(**WITH6)
    assert told(guest, "READY=1") == 1
    assert told(guest, "STATUS=eth0: 10.137.0.5/32") == 1


def test_ready_when_nothing_is_to_configure() -> None:
    guest = Guest({}, plugged=False)
    guest.agent()
    assert told(guest, "STATUS=no interface expected") == 1


def test_ready_when_the_interface_is_not_there_yet() -> None:
    guest = Guest(plugged=False)
    guest.agent()
    assert told(guest, f"STATUS={MAC}: not there") == 1
    guest.plug()
    guest.soon_configured()


def test_ready_when_the_settings_are_invalid() -> None:
    guest = Guest({**ENTRIES, "/qubes-ip": "10.137.0.555"})
    guest.agent()
    assert told(guest, "1 error, first: /qubes-ip") == 1
    guest.write("/qubes-ip", "10.137.0.5")
    guest.soon_configured()
    assert guest.said("/qubes-ip: '10.137.0.555' is not valid") == 1
    assert guest.said("all errors cleared") == 1


def test_not_ready_before_the_first_pass_is_over() -> None:
    guest = Guest()
    guest.qube.run("mkdir", "-p", os.path.dirname(LOCK))
    holder = guest.qube.spawn("holder", "flock", "--close", LOCK, "sh", "-c", "echo held; exec sleep 1000")
    eventually(lambda: "held" in holder.output())
    guest.agent(wait=False)
    never(lambda: told(guest, "READY=1"), 0.7)
    holder.kill()
    eventually(lambda: told(guest, "READY=1"), trouble=guest.log)
    guest.check()


def test_not_ready_without_qubesdb_and_ready_once_it_is_there() -> None:
    guest = Guest(None)
    agent = guest.agent(wait=False)
    eventually(lambda: told(guest, "STATUS=waiting for QubesDB"), trouble=guest.log)
    assert not told(guest, "READY=1")
    assert agent.running
    guest.qube.start_store(ENTRIES)
    eventually(lambda: told(guest, "READY=1"), trouble=guest.log)
    guest.check()


@pytest.mark.parametrize("with_qubesdb", [True, False])
def test_the_watchdog_is_served(with_qubesdb: bool) -> None:
    guest = Guest(ENTRIES if with_qubesdb else None)
    guest.agent(wait=with_qubesdb, env={"WATCHDOG_USEC": "200000"})
    eventually(lambda: told(guest, "WATCHDOG=1") >= 5, trouble=guest.log)


def test_no_watchdog_where_systemd_asks_for_none() -> None:
    guest = Guest()
    guest.agent()
    guest.write("/qubes-ip", "10.137.0.6")
    guest.soon_configured(ip="10.137.0.6/32")
    assert told(guest, "WATCHDOG=1") == 0


def test_a_notify_socket_where_nobody_listens_is_no_harm() -> None:
    guest = Guest()
    agent = guest.agent(wait=False, env={"NOTIFY_SOCKET": "/run/nobody"})
    guest.soon_configured()
    assert agent.stop() == 0


# --- signals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_of_the_agent_leaves_the_network(number: signal.Signals) -> None:
    guest = Guest(ENTRIES6)
    agent = guest.agent()
    agent.signal(number)
    assert agent.wait() == 0
    assert told(guest, "STOPPING=1") == 1
    guest.check(**WITH6)


def test_killed_and_started_again() -> None:
    guest = Guest(ENTRIES6)
    agent = guest.agent()
    agent.kill()
    guest.check(**WITH6)
    guest.write("/qubes-ip", "10.137.0.6")
    guest.remove("/qubes-ip6")
    said = len(guest.log())
    guest.agent()
    guest.check(ip="10.137.0.6/32")
    assert "Traceback" not in guest.log()[said:]


def test_sighup_means_look_now() -> None:
    """A flag and the neighbour table wake nobody, so the change waits for the signal."""
    guest = Guest()
    agent = guest.agent()
    guest.qube.set_flag(GATEWAY_FLAG)
    guest.ip("neighbour", "del", "10.137.0.1", "dev", "eth0")
    agent.signal(signal.SIGHUP)
    guest.soon_configured(style="gateway")


def test_many_signals_at_once() -> None:
    guest = Guest()
    agent = guest.agent()
    for _ in range(200):
        agent.signal(signal.SIGHUP)
    guest.write("/qubes-ip", "10.137.0.6")
    guest.soon_configured(ip="10.137.0.6/32")
    assert agent.stop() == 0


def test_nothing_is_written_when_nothing_changed() -> None:
    guest = Guest(ENTRIES6)
    agent = guest.agent()
    guest.soon_configured(**WITH6)
    eventually(lambda: DNS in guest.oracle.neighbours("eth0", permanent=False))
    before, log = guest.identity(), guest.log()
    with guest.monitor() as changes:
        for _ in range(5):
            agent.signal(signal.SIGHUP)
            guest.write("/qubes-ip", "10.137.0.5")
            guest.qube.guestnet("apply")
        assert changes() == ""
    assert guest.log() == log
    assert guest.identity() == before


# --- keys ----------------------------------------------------------------------------------------------------------


def test_each_key_is_followed() -> None:
    guest = Guest()
    guest.agent()
    guest.write("/qubes-ip", "10.137.0.6")
    guest.soon_configured(ip="10.137.0.6/32")
    guest.write("/qubes-netmask", "255.255.0.0")
    guest.soon_configured(ip="10.137.0.6/16")
    guest.write("/qubes-gateway", "10.137.0.2")
    guest.soon_configured(ip="10.137.0.6/16", gateway="10.137.0.2")
    guest.write("/qubes-ip6", IP6)
    guest.write("/qubes-gateway6", GATEWAY6)
    guest.soon_configured(ip="10.137.0.6/16", gateway="10.137.0.2", **WITH6)
    guest.write("/qubes-primary-dns", "10.139.1.7")
    guest.remove("/qubes-secondary-dns")
    guest.soon_configured(ip="10.137.0.6/16", gateway="10.137.0.2", servers=("10.139.1.7",), **WITH6)
    guest.remove("/qubes-ip6")
    guest.soon_configured(ip="10.137.0.6/16", gateway="10.137.0.2", servers=("10.139.1.7",))


def test_per_interface_keys_are_followed() -> None:
    guest = Guest()
    guest.agent()
    guest.write(f"/net-config/{MAC}/gateway", "192.168.7.1")
    guest.write(f"/net-config/{MAC}/ip", "192.168.7.5")
    guest.soon_configured(ip="192.168.7.5/32", gateway="192.168.7.1")
    guest.write(f"/net-config/{MAC}/custom", "1")
    guest.soon_configured(ip="192.168.7.5/32", gateway="192.168.7.1", neighbours=False)
    guest.remove(f"/net-config/{MAC}/")
    guest.soon_configured()


def test_another_mac_means_another_interface() -> None:
    guest = Guest()
    guest.plug("eth1", "00:16:3e:5e:6c:66", "vif5.1")
    guest.agent()
    guest.write("/qubes-mac", "00:16:3e:5e:6c:66")
    guest.soon_configured("eth1")
    assert guest.oracle.addresses("eth0") == set()
    assert guest.oracle.neighbours("eth0") == {}


# --- interfaces ----------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("B1")
@pytest.mark.behaviour("B6")
def test_replugged_again_and_again() -> None:
    guest = Guest(ENTRIES6)
    guest.agent()
    for _ in range(5):
        guest.unplug()
        guest.plug()
        guest.soon_configured(**WITH6)


@pytest.mark.behaviour("B6")
def test_the_provider_crashes() -> None:
    guest = Guest()
    guest.agent()
    guest.lose_provider()
    eventually(lambda: guest.oracle.link("eth0") is None)
    guest.plug()
    guest.soon_configured()


@pytest.mark.behaviour("B1")
def test_events_of_udev_beside_the_agent() -> None:
    """Both know of the interface, in any order, and remove comes late."""
    guest = Guest()
    guest.agent()
    guest.unplug()
    guest.plug()
    guest.qube.guestnet("uplink", "remove", "eth0")
    guest.qube.guestnet("uplink", "add", "eth0")
    guest.soon_configured()


@pytest.mark.behaviour("B18")
def test_the_agent_leaves_down_what_was_removed() -> None:
    guest = Guest()
    agent = guest.agent()
    guest.qube.guestnet("uplink", "remove", "eth0")
    agent.signal(signal.SIGHUP)
    guest.write("/qubes-ip", "10.137.0.6")
    never(lambda: guest.oracle.is_up("eth0"), 0.5)
    guest.unplug()
    guest.plug()
    guest.soon_configured(ip="10.137.0.6/32")


@pytest.mark.behaviour("B5")
@pytest.mark.behaviour("B7")
def test_another_provider_with_stale_ipv6_keys() -> None:
    guest = Guest(ENTRIES6)
    guest.agent()
    guest.unplug()
    guest.write("/qubes-gateway", "10.138.0.9")
    guest.plug()
    guest.soon_configured(gateway="10.138.0.9", **WITH6)
    guest.unplug()
    eventually(lambda: guest.oracle.routes(4) == guest.oracle.routes(6) == [])
    guest.write("/qubes-gateway", "10.138.0.10")  # keys alone are no interface
    assert guest.oracle.link("eth0") is None


@pytest.mark.behaviour("B4")
def test_paused_while_the_provider_changed() -> None:
    guest = Guest(ENTRIES6)
    guest.agent()
    guest.qube.pause()
    guest.unplug()
    guest.write("/qubes-gateway", "10.138.0.9")
    guest.plug()
    guest.qube.unpause()
    assert guest.qube.guestnet("wait-uplink").returncode == 0
    guest.check(gateway="10.138.0.9", **WITH6)


@pytest.mark.behaviour("B8")
def test_renamed_while_it_is_configured() -> None:
    guest = Guest(ENTRIES6)
    guest.agent()
    for old, new in (("eth0", "enX0"), ("enX0", "eth0"), ("eth0", "uplink")):
        guest.oracle.run("sh", "-ec", f"ip link set {old} down; ip link set {old} name {new}")
        guest.soon_configured(new, **WITH6)
    assert "Traceback" not in guest.log()


@pytest.mark.behaviour("B8")
def test_renamed_at_the_moment_it_comes() -> None:
    guest = Guest(plugged=False)
    agent = guest.agent()
    for number in range(10):
        guest.plug("eth0")
        name = f"enX{number}"
        # The agent may have brought it up already, and an interface that is up keeps its name in older kernels.
        rename = (
            f"ip link set eth0 name {name} 2>/dev/null || {{ ip link set eth0 down; ip link set eth0 name {name}; }}"
        )
        guest.oracle.run("sh", "-c", rename)
        guest.soon_configured(name)
        guest.unplug()
    assert agent.running
    assert "Traceback" not in guest.log()


def test_an_interface_that_flaps() -> None:
    """It vanishes at every point of a pass. The agent lives, and ends configured."""
    guest = Guest(ENTRIES6, plugged=False)
    agent = guest.agent()
    for _ in range(4):
        guest.provider.wire(f"""
            for number in $(seq 50); do
                ip link add vif5.0 type veth peer name eth0 address {MAC} netns {guest.qube.pid}
                ip link delete vif5.0
            done
        """)
    guest.plug()
    guest.soon_configured(**WITH6)
    assert agent.running
    assert "Traceback" not in guest.log()
    assert guest.said("did not persist") == 0
    errors = [line for line in guest.log().splitlines() if "errno" in line.lower() or "(E" in line]
    assert errors == []


def test_more_events_than_the_socket_can_hold() -> None:
    """ENOBUFS: what was lost is not known, so everything is looked at."""
    guest = Guest(ENTRIES6)
    agent = guest.agent()
    agent.signal(signal.SIGSTOP)
    flood = "".join("ip address add 192.0.2.1/32 dev lo; ip address del 192.0.2.1/32 dev lo; " for _ in range(20))
    for _ in range(100):
        guest.oracle.run("sh", "-ec", flood)
        if guest.lost_events():
            break
    assert guest.lost_events(), "the socket did not overrun"
    guest.ip("route", "del", "default", "dev", "eth0")
    agent.signal(signal.SIGCONT)
    guest.soon_configured(**WITH6)
    guest.ip("route", "del", "default", "dev", "eth0")
    guest.soon_configured(**WITH6)
    assert "Traceback" not in guest.log()
