# SPDX-License-Identifier: GPL-2.0-or-later
"""An agent that has nothing to do does nothing: it does not wake, whatever state it has come to."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qubes_guestnet.lab.qube import Service
from tests.support.eventually import eventually
from tests.support.qubes.appvm import ENTRIES6, RESOLV_CONF, VIF, AppVm

WINDOW_S = 1.0


def wakings(agent: Service) -> int:
    """How often it has gone to sleep so far."""
    lines = Path(f"/proc/{agent.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def no_carrier(appvm: AppVm) -> None:
    appvm.provider.wire(f"ip link set {VIF} down")


def no_qubesdb(appvm: AppVm) -> None:
    assert appvm.qube.store_daemon is not None
    appvm.qube.store_daemon.kill()


def stopped_qubesdb(appvm: AppVm) -> None:
    assert appvm.qube.store_daemon is not None
    assert appvm.qube.agent is not None
    appvm.qube.store_daemon.signal(signal.SIGSTOP)
    appvm.qube.agent.signal(signal.SIGHUP)


def resolv_conf_read_only(appvm: AppVm) -> None:
    appvm.qube.write("/rw/resolv.conf", "")
    appvm.qube.run("mount", "--bind", "/rw/resolv.conf", RESOLV_CONF)
    appvm.qube.run("mount", "-o", "remount,bind,ro", RESOLV_CONF)


def no_ipv6(appvm: AppVm) -> None:
    appvm.disable_ipv6(True)


STATES: tuple[tuple[Callable[[AppVm], None], int], ...] = (
    # The state, and how often a second it may wake in it: to try again what failed.
    (no_carrier, 0),
    (no_ipv6, 0),
    (no_qubesdb, 4),
    (stopped_qubesdb, 6),
    (resolv_conf_read_only, 4),
)


@pytest.mark.behaviour("B106")
@pytest.mark.parametrize(("state", "allowed"), STATES, ids=lambda value: getattr(value, "__name__", ""))
def test_no_spinning(state: Callable[[AppVm], None], allowed: int) -> None:
    appvm = AppVm(ENTRIES6)
    agent = appvm.agent()
    state(appvm)

    def calm() -> bool:
        before = wakings(agent)
        time.sleep(WINDOW_S)  # what is measured is this time, and not an outcome
        return wakings(agent) - before <= allowed

    eventually(calm, what=f"at most {allowed} wake-ups in {WINDOW_S:g} s", trouble=appvm.log)
