# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals in the middle of a request (B72): the answers keep their order, or the connection is given up."""

from __future__ import annotations

import signal

import pytest

from qubes_guestnet.errors import StoreError
from tests.support.programs.qubesdb_clients import Kind
from tests.support.programs.qubesdb_faulty import Running


@pytest.mark.behaviour("B72")
def test_a_storm_of_signals_does_not_mix_up_the_answers(kind: Kind, daemon: Running) -> None:
    store, watches = kind.connect(writable=True), kind.watches("/n")
    seen = 0

    def handler(_number: int, _frame: object) -> None:
        nonlocal seen
        seen += 1

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    try:
        for number in range(300):
            store.write("/n", b"%d" % number)
            assert store.read("/n") == b"%d" % number
            assert watches.drain()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen > 10


@pytest.mark.behaviour("B72")
def test_after_an_exception_in_the_middle_the_connection_is_given_up(kind: Kind, daemon: Running) -> None:
    class Stop(Exception):
        pass

    def handler(_number: int, _frame: object) -> None:
        raise Stop

    store = kind.connect()
    daemon.hub.fault = ("delay", 0.3)
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        with pytest.raises(Stop):
            store.read("/qubes-ip")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(StoreError, match="interrupted"):
        store.read("/qubes-mac")
