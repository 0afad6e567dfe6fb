# SPDX-License-Identifier: GPL-2.0-or-later
"""Other programs on the system bus, the real dbus-daemon and the real dbus-broker: what they send is of no effect."""

from __future__ import annotations

import collections
import os
import re
import sys

import pytest

from qubes_guestnet.core import bus_messages
from qubes_guestnet.lab.daemons import BUS, Daemons
from qubes_guestnet.lab.qube import Qube, Service
from qubes_guestnet.system.dbus import bus as dbus
from tests.support.eventually import eventually
from tests.support.needs import needs
from tests.support.programs.bus_peer import GOOD, SERVICE
from tests.support.qubes.appvm import DNS, AppVm
from tests.support.qubes.provider import ENTRIES, ROUTER, UPLINK, Provider

BUSES = ("dbus-daemon", "dbus-broker")
FORGED = 100_000
SERIAL = 0x5EED0001
VPN = "198.51.100.60"
BUSY_S = 30.0  # a deadline for what takes some milliseconds, on a machine that has much else to do
HELD_KB = 4096  # what a process may grow by that reads messages of 64 KiB one after the other
both = pytest.mark.parametrize("bus", BUSES)


@pytest.fixture(autouse=True)
def _tools() -> None:
    needs("dbus-daemon", "dbus-broker-launch", "/lib/systemd/systemd-resolved")


def other(qube: Qube, *words: str) -> Service:
    """Another program on the bus, see bus_peer."""
    return qube.spawn(words[0], sys.executable, "-m", "tests.support.programs.bus_peer", *words)


class Judged:
    """Counts the messages that a connection of this process has read, by type, and the bytes of the round at hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kinds: collections.Counter[int] = collections.Counter()
        self.bytes = 0
        hear = bus_messages.Exchange.hear

        def counted(exchange: bus_messages.Exchange, data: bytes) -> bus_messages.Message | None:
            self.bytes += len(data)
            self.kinds[data[1]] += 1
            return hear(exchange, data)

        monkeypatch.setattr(bus_messages.Exchange, "hear", counted)


@pytest.mark.behaviour("B110")
@pytest.mark.behaviour("B111")
@both
def test_a_hundred_thousand_forged_messages_of_every_type_change_nothing(
    bus: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """On a bus without any policy, and with a serial that the other program knows: it is the sender that counts."""
    qube = Qube("appvm")
    Daemons(qube).dbus(bus, policy=False)
    service = other(qube, "serve", SERVICE, "0.005")
    eventually(lambda: "ready" in service.output(), trouble=service.output)
    monkeypatch.setattr(os, "urandom", lambda size: SERIAL.to_bytes(4, "little")[:size])
    monkeypatch.setattr(dbus, "SECONDS", 60)  # a busy machine breaks nothing here
    judged = Judged(monkeypatch)
    connection = dbus.Bus(str(qube.path(BUS)))
    request.addfinalizer(connection.close)
    connection.watch_owner(SERVICE)
    connection.watch_properties(SERVICE)
    connection.call(bus_messages.BUS, "/", bus_messages.BUS, "RequestName", "su", ("org.example.Target", 0))
    forging = other(qube, "forge", "org.example.Target", str(FORGED), str(SERIAL))
    answers = 0

    def one_call() -> None:
        assert connection.call(SERVICE, "/", SERVICE, "Anything") == (GOOD,), forging.output()

    while forging.running:
        for _ in range(20):
            judged.bytes = 0
            assert not connection.drain(), "woken by what others sent"
            assert judged.bytes < dbus.ROUND_BYTES + bus_messages.LONGEST
        one_call()
        answers += 1
    assert f"sent {FORGED}" in forging.output()
    one_call()  # the bus delivers in order: all that was sent before is read now
    assert not connection.drain()
    each = FORGED // 8
    assert answers > 2
    assert judged.kinds[bus_messages.SIGNAL] >= 4 * each
    assert judged.kinds[1] == 2 * each
    if bus == "dbus-daemon":  # the other one delivers no answer that was not asked for
        assert judged.kinds[bus_messages.RETURN] > each
        assert judged.kinds[bus_messages.ERROR] == each


def held_kb(pid: int) -> int:
    """The most memory that a process ever held."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return int(re.findall(r"VmHWM:\s+(\d+)", status.read())[0])


def led_to(host: Provider) -> set[str]:
    """Where the virtual DNS leads."""
    return {rule.split()[-1] for rule in host.rules("ip", "dnat-dns")}


@pytest.mark.behaviour("B110")
@pytest.mark.behaviour("B111")
@pytest.mark.parametrize("how", ["flood", "trickle"])
@both
def test_a_provider_goes_on_as_if_there_were_none(bus: str, how: str) -> None:
    host = Provider(ENTRIES, agent=False, servers=["127.0.0.53"])
    daemons = Daemons(host.qube)
    daemons.dbus(bus)
    daemons.resolved()
    daemons.resolvectl("dns", UPLINK, ROUTER)
    agent = host.qube.start_agent()
    host.attach()
    eventually(lambda: led_to(host) == {ROUTER}, trouble=host.trouble)
    before = held_kb(agent.pid)
    forging = other(host.qube, how, "agent")
    eventually(lambda: "to :1" in forging.output(), trouble=forging.output)
    for number, server in enumerate((VPN, ROUTER), 20):
        host.works(host.attach(number))
        daemons.resolvectl("dns", UPLINK, server)
        eventually(lambda server=server: led_to(host) == {server}, BUSY_S, trouble=host.trouble)  # type: ignore[misc]
    assert forging.running
    assert held_kb(agent.pid) < before + HELD_KB
    forging.kill()


@pytest.mark.behaviour("B111")
@both
def test_a_key_of_dom0_is_followed_whatever_comes(bus: str) -> None:
    appvm = AppVm()
    Daemons(appvm.qube).dbus(bus)
    appvm.agent()
    appvm.soon_configured()
    others = [other(appvm.qube, how, "agent") for how in ("flood", "trickle")]
    eventually(lambda: all("to :1" in one.output() for one in others))
    for number in range(20):
        appvm.write("/qubes-ip", f"10.137.0.{100 + number}")
        appvm.soon_configured(ip=f"10.137.0.{100 + number}/32")
    assert all(one.running for one in others)


@pytest.mark.behaviour("B111")
@both
def test_messages_that_are_too_long_are_told_once_and_names_are_right_all_the_time(bus: str) -> None:
    appvm = AppVm()
    daemons = Daemons(appvm.qube)
    daemons.dbus(bus)
    daemons.resolved()
    agent = appvm.agent()
    appvm.soon_configured()
    before = held_kb(agent.pid)
    hitting = other(appvm.qube, "long", "agent", "70000")
    hits = lambda: hitting.output().count("hit")  # noqa: E731
    for wanted, server in ((1, "10.139.1.7"), (3, "10.139.1.8"), (4, "10.139.1.9")):
        eventually(lambda wanted=wanted: hits() >= wanted, 20, trouble=hitting.output)  # type: ignore[misc]
        appvm.write("/qubes-secondary-dns", server)
        eventually(  # type: ignore[misc]
            lambda server=server: daemons.resolvectl("dns", "eth0").split() == [DNS, server], BUSY_S, trouble=appvm.log
        )
    assert hits() < 12, "it is not there again at once"
    assert appvm.said("70") == 1, appvm.log()
    assert held_kb(agent.pid) < before + HELD_KB
    hitting.kill()
    appvm.write("/qubes-ip", "10.137.0.66")
    appvm.soon_configured(ip="10.137.0.66/32", servers=(DNS, "10.139.1.9"))
