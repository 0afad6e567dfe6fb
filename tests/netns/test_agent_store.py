# SPDX-License-Identifier: GPL-2.0-or-later
"""The resident agent while QubesDB is killed, stopped, restarted or late: what is configured stays, and it recovers."""

from __future__ import annotations

import signal

import pytest

from qubes_guestnet.lab.qube import Service
from tests.support.eventually import eventually, never
from tests.support.qubes.appvm import ENTRIES, ENTRIES6, GATEWAY6, IP6, AppVm

WITH6 = {"ip6": f"{IP6}/128", "gateway6": GATEWAY6}
ANSWERS = "QubesDB answers again"


def store_of(appvm: AppVm) -> Service:
    assert appvm.qube.store_daemon is not None
    return appvm.qube.store_daemon


def outages(appvm: AppVm) -> int:
    return appvm.said("the configuration stays, trying again")


@pytest.mark.behaviour("B106")
@pytest.mark.parametrize("ending", ["kill", "stop"])
def test_the_daemon_ends_and_comes_back_with_other_entries(ending: str) -> None:
    appvm = AppVm(ENTRIES6)
    agent = appvm.agent()
    getattr(store_of(appvm), ending)()
    eventually(lambda: outages(appvm) == 1, trouble=appvm.log)
    eventually(lambda: "waiting for QubesDB" in appvm.qube.notifications()[-1][1])
    appvm.check(**WITH6)
    appvm.qube.start_store({**ENTRIES6, "/qubes-ip": "10.137.0.6"})
    appvm.soon_configured(ip="10.137.0.6/32", **WITH6)
    appvm.write("/qubes-ip", "10.137.0.7")  # its watches are set again
    appvm.soon_configured(ip="10.137.0.7/32", **WITH6)
    assert (outages(appvm), appvm.said(ANSWERS)) == (1, 1)
    assert agent.running


@pytest.mark.behaviour("B106")
def test_a_long_outage_is_told_once() -> None:
    appvm = AppVm()
    appvm.agent()
    store_of(appvm).kill()
    eventually(lambda: outages(appvm) == 1, trouble=appvm.log)
    said = len(appvm.log().splitlines())
    never(lambda: len(appvm.log().splitlines()) > said, 1.0)
    appvm.qube.start_store(ENTRIES)
    eventually(lambda: appvm.said(ANSWERS) == 1, trouble=appvm.log)
    # One more is another outage.
    store_of(appvm).kill()
    eventually(lambda: outages(appvm) == 2, trouble=appvm.log)


@pytest.mark.behaviour("B106")
def test_the_daemon_is_restarted_again_and_again() -> None:
    appvm = AppVm()
    appvm.agent()
    for number in range(6, 11):
        store_of(appvm).kill()
        appvm.qube.start_store({**ENTRIES, "/qubes-ip": f"10.137.0.{number}"})
        appvm.soon_configured(ip=f"10.137.0.{number}/32")


def test_the_daemon_hangs() -> None:
    appvm = AppVm()
    agent = appvm.agent(env={"WATCHDOG_USEC": "400000"})
    store_of(appvm).signal(signal.SIGSTOP)
    agent.signal(signal.SIGHUP)
    eventually(lambda: outages(appvm) == 1, trouble=appvm.log)
    served = sum("WATCHDOG" in message for _, message in appvm.qube.notifications())
    eventually(lambda: sum("WATCHDOG" in message for _, message in appvm.qube.notifications()) > served + 2)
    appvm.check()
    store_of(appvm).signal(signal.SIGCONT)
    appvm.write("/qubes-ip", "10.137.0.6")
    appvm.soon_configured(ip="10.137.0.6/32")
    assert (outages(appvm), appvm.said(ANSWERS)) == (1, 1)


@pytest.mark.parametrize("fault", ["kill", "hang"])
def test_the_end_during_an_outage(fault: str) -> None:
    appvm = AppVm()
    agent = appvm.agent()
    if fault == "kill":
        store_of(appvm).kill()
    else:
        store_of(appvm).signal(signal.SIGSTOP)
        agent.signal(signal.SIGHUP)
    eventually(lambda: outages(appvm) == 1, trouble=appvm.log)
    assert agent.stop() == 0
    appvm.check()


@pytest.mark.behaviour("B6")
def test_the_interface_is_replugged_during_an_outage() -> None:
    appvm = AppVm()
    appvm.agent()
    store_of(appvm).kill()
    eventually(lambda: outages(appvm) == 1, trouble=appvm.log)
    appvm.unplug()
    appvm.plug()
    appvm.qube.start_store(ENTRIES)
    appvm.soon_configured()


def test_a_burst_of_keys_is_few_passes() -> None:
    """dom0 writes a provider one key at a time; each pass tells what it did, so a pass a key would be seen."""
    appvm = AppVm()
    appvm.agent()
    appvm.write("/qubes-primary-dns", "10.139.1.9")
    appvm.soon_configured(servers=("10.139.1.9", "10.139.1.2"))
    before = appvm.said("address add")
    for number in range(10, 60):
        appvm.write("/qubes-ip", f"10.137.0.{number}")
    appvm.soon_configured(ip="10.137.0.59/32", servers=("10.139.1.9", "10.139.1.2"))
    assert appvm.said("address add") - before < 40


def test_entries_that_come_one_by_one_from_nothing() -> None:
    appvm = AppVm({})
    appvm.agent()
    for key, value in ENTRIES6.items():
        appvm.write(key, value)
    appvm.soon_configured(**WITH6)
    for key in ENTRIES6:
        if key != "/qubes-mac":
            appvm.remove(key)
    eventually(lambda: appvm.oracle.addresses("eth0") == set() and not appvm.routes(4) and not appvm.routes(6),
               trouble=appvm.log)  # fmt: skip
