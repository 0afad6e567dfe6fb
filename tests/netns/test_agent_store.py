# SPDX-License-Identifier: GPL-2.0-or-later
"""The resident agent while QubesDB is killed, stopped, restarted or late: what is configured stays, and it recovers."""

from __future__ import annotations

import signal

import pytest

from qubes_guestnet.lab.qube import Service
from tests.support.eventually import eventually, never
from tests.support.qubes.appvm import ENTRIES, ENTRIES6, GATEWAY6, IP6, Guest

WITH6 = {"ip6": f"{IP6}/128", "gateway6": GATEWAY6}
ANSWERS = "QubesDB answers again"


def store_of(guest: Guest) -> Service:
    assert guest.qube.store_daemon is not None
    return guest.qube.store_daemon


def outages(guest: Guest) -> int:
    return guest.said("the configuration stays, trying again")


@pytest.mark.behaviour("B106")
@pytest.mark.parametrize("ending", ["kill", "stop"])
def test_the_daemon_ends_and_comes_back_with_other_entries(ending: str) -> None:
    guest = Guest(ENTRIES6)
    agent = guest.agent()
    getattr(store_of(guest), ending)()
    eventually(lambda: outages(guest) == 1, trouble=guest.log)
    eventually(lambda: "waiting for QubesDB" in guest.qube.notifications()[-1][1])
    guest.check(**WITH6)
    guest.qube.start_store({**ENTRIES6, "/qubes-ip": "10.137.0.6"})
    guest.soon_configured(ip="10.137.0.6/32", **WITH6)
    guest.write("/qubes-ip", "10.137.0.7")  # its watches are set again
    guest.soon_configured(ip="10.137.0.7/32", **WITH6)
    assert (outages(guest), guest.said(ANSWERS)) == (1, 1)
    assert agent.running


@pytest.mark.behaviour("B106")
def test_a_long_outage_is_told_once() -> None:
    guest = Guest()
    guest.agent()
    store_of(guest).kill()
    eventually(lambda: outages(guest) == 1, trouble=guest.log)
    said = len(guest.log().splitlines())
    never(lambda: len(guest.log().splitlines()) > said, 1.0)
    guest.qube.start_store(ENTRIES)
    eventually(lambda: guest.said(ANSWERS) == 1, trouble=guest.log)
    # One more is another outage.
    store_of(guest).kill()
    eventually(lambda: outages(guest) == 2, trouble=guest.log)


@pytest.mark.behaviour("B106")
def test_the_daemon_is_restarted_again_and_again() -> None:
    guest = Guest()
    guest.agent()
    for number in range(6, 11):
        store_of(guest).kill()
        guest.qube.start_store({**ENTRIES, "/qubes-ip": f"10.137.0.{number}"})
        guest.soon_configured(ip=f"10.137.0.{number}/32")


def test_the_daemon_hangs() -> None:
    guest = Guest()
    agent = guest.agent(env={"WATCHDOG_USEC": "400000"})
    store_of(guest).signal(signal.SIGSTOP)
    agent.signal(signal.SIGHUP)
    eventually(lambda: outages(guest) == 1, trouble=guest.log)
    served = sum("WATCHDOG" in message for _, message in guest.qube.notifications())
    eventually(lambda: sum("WATCHDOG" in message for _, message in guest.qube.notifications()) > served + 2)
    guest.check()
    store_of(guest).signal(signal.SIGCONT)
    guest.write("/qubes-ip", "10.137.0.6")
    guest.soon_configured(ip="10.137.0.6/32")
    assert (outages(guest), guest.said(ANSWERS)) == (1, 1)


@pytest.mark.parametrize("fault", ["kill", "hang"])
def test_the_end_during_an_outage(fault: str) -> None:
    guest = Guest()
    agent = guest.agent()
    if fault == "kill":
        store_of(guest).kill()
    else:
        store_of(guest).signal(signal.SIGSTOP)
        agent.signal(signal.SIGHUP)
    eventually(lambda: outages(guest) == 1, trouble=guest.log)
    assert agent.stop() == 0
    guest.check()


@pytest.mark.behaviour("B6")
def test_the_interface_is_replugged_during_an_outage() -> None:
    guest = Guest()
    guest.agent()
    store_of(guest).kill()
    eventually(lambda: outages(guest) == 1, trouble=guest.log)
    guest.unplug()
    guest.plug()
    guest.qube.start_store(ENTRIES)
    guest.soon_configured()


def test_a_burst_of_keys_is_few_passes() -> None:
    """dom0 writes a provider one key at a time; each pass tells what it did, so a pass a key would be seen."""
    guest = Guest()
    guest.agent()
    guest.write("/qubes-primary-dns", "10.139.1.9")
    guest.soon_configured(servers=("10.139.1.9", "10.139.1.2"))
    before = guest.said("address add")
    for number in range(10, 60):
        guest.write("/qubes-ip", f"10.137.0.{number}")
    guest.soon_configured(ip="10.137.0.59/32", servers=("10.139.1.9", "10.139.1.2"))
    assert guest.said("address add") - before < 40


def test_entries_that_come_one_by_one_from_nothing() -> None:
    guest = Guest({})
    guest.agent()
    for key, value in ENTRIES6.items():
        guest.write(key, value)
    guest.soon_configured(**WITH6)
    for key in ENTRIES6:
        if key != "/qubes-mac":
            guest.remove(key)
    eventually(lambda: guest.oracle.addresses("eth0") == set() and not guest.routes(4) and not guest.routes(6),
               trouble=guest.log)  # fmt: skip
