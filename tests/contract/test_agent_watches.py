# SPDX-License-Identifier: GPL-2.0-or-later
"""What the agent's connection tells of dom0's commits, over the real client and a daemon."""

from __future__ import annotations

import ipaddress
import signal
from collections.abc import Iterator

import pytest

from qubes_guestnet.agent.connection import Connection
from qubes_guestnet.core.firewall.commits import Facts, State, advance
from qubes_guestnet.core.firewall.entries import FOLDER, by_address
from qubes_guestnet.core.firewall.parsing import MOST_RULES
from qubes_guestnet.system.qubesdb import store as qubesdb
from qubes_guestnet.system.signals import Signals
from tests.support.eventually import eventually
from tests.support.programs.qubesdb_clients import Kind
from tests.support.programs.qubesdb_faulty import Running

OTHER, STALE = ipaddress.IPv4Address("10.137.0.5"), ipaddress.IPv4Address("10.137.0.6")


@pytest.fixture
def connection(kind: Kind, daemon: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    if kind.name == "direct":
        monkeypatch.setenv(qubesdb.DIRECTORY_VARIABLE, kind.directory)
    made = Connection(Signals(()))
    made.watch((FOLDER,), (FOLDER,))
    yield made
    made.close()
    signal.set_wakeup_fd(-1)


@pytest.mark.behaviour("B80")
@pytest.mark.behaviour("B89")
def test_the_events_of_the_longest_list_are_not_taken_for_a_start(kind: Kind, connection: Connection) -> None:
    """A busy agent has them all at once. A stale list of another qube, which waits for its commit, counted then (F-05).

    An agent that reads after each few of them never has so many.
    """
    dom0 = kind.connect(writable=True)
    dom0.write(f"{FOLDER}{STALE}/policy", b"accept")
    dom0.write(f"{FOLDER}{STALE}", b"")
    eventually(lambda: connection.drain() and f"{FOLDER}{STALE}" in connection.paths)
    connection.read()
    dom0.write(f"{FOLDER}{OTHER}/policy", b"drop")
    for number in range(MOST_RULES):
        dom0.write(f"{FOLDER}{OTHER}/{number:04}", b"action=accept")
    dom0.write(f"{FOLDER}{OTHER}", b"")
    eventually(lambda: connection.drain() and f"{FOLDER}{OTHER}" in connection.paths)
    raw, seen, meanwhile, starts = connection.read()
    facts = Facts(0.0, by_address(raw), seen, meanwhile, frozenset({OTHER, STALE}), starts=starts)
    outcome = advance(State(), facts)
    assert not starts
    assert outcome.handled == {OTHER}
    assert outcome.waiting == {STALE}
