# SPDX-License-Identifier: GPL-2.0-or-later
"""One agent a qube (behaviour B144): a second one is refused, and what a dead one left refuses none."""

from __future__ import annotations

import signal
import sys

import pytest

from tests.support.eventually import eventually
from tests.support.qubes.appvm import ENTRIES6, GATEWAY6, IP6, AppVm

WITH6 = {"ip6": f"{IP6}/128", "gateway6": GATEWAY6}
LOCK = "/run/qubes-guestnet/agent.lock"
# The agent of other files, in the same namespaces.
ELSEWHERE = """
import time
from qubes_guestnet.system import agent_status as standing
standing.claim("/run/elsewhere")
print("claimed", flush=True)
time.sleep(99)
"""


@pytest.mark.behaviour("B144")
@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_a_second_agent_is_refused_and_the_first_named(stopped: bool) -> None:
    appvm = AppVm(ENTRIES6)
    first = appvm.agent()
    own = appvm.qube.read("/run/qubes-guestnet/status").split()[1]
    if stopped:
        first.signal(signal.SIGSTOP)
    done = appvm.qube.run(*appvm.program("agent"), check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"qubes-guestnet: an agent is already running: process {own}; systemctl restart qubes-guestnet replaces it\n"
    )
    if stopped:
        first.signal(signal.SIGCONT)
    assert first.running
    appvm.write("/qubes-ip", "10.137.0.6")
    appvm.soon_configured(ip="10.137.0.6/32", **WITH6)
    assert appvm.qube.read("/run/qubes-guestnet/status").split()[1] == own


@pytest.mark.behaviour("B144")
@pytest.mark.parametrize("end", ["kill", "stop"])
def test_one_that_ended_refuses_none(end: str) -> None:
    appvm = AppVm(ENTRIES6)
    for _ in range(3):
        agent = appvm.agent()
        getattr(agent, end)()
    assert appvm.qube.path(LOCK).exists()
    appvm.agent()
    appvm.check(**WITH6)


@pytest.mark.behaviour("B144")
def test_one_that_is_about_to_end_is_waited_for() -> None:
    appvm = AppVm(ENTRIES6)
    first = appvm.agent()
    first.signal(signal.SIGSTOP)
    second = appvm.agent(wait=False)
    first.signal(signal.SIGTERM)
    first.signal(signal.SIGCONT)
    assert first.wait() == 0
    eventually(lambda: sum("READY=1" in said for _, said in appvm.qube.notifications()) == 2, trouble=appvm.log)
    assert second.running
    appvm.check(**WITH6)


@pytest.mark.behaviour("B144")
def test_the_agent_of_another_folder_is_not_in_the_way() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.agent()
    other = appvm.qube.spawn("other", sys.executable, "-c", ELSEWHERE)
    eventually(lambda: "claimed" in other.output(), trouble=other.output)


@pytest.mark.behaviour("B144")
@pytest.mark.behaviour("B146")
def test_where_no_lock_can_be_had_the_qube_has_its_network_all_the_same() -> None:
    appvm = AppVm(ENTRIES6)
    appvm.qube.path(LOCK).mkdir(parents=True)
    agent = appvm.agent()
    appvm.check(**WITH6)
    assert agent.output().count("cannot exclude a second agent: /run/qubes-guestnet/agent.lock") == 1
