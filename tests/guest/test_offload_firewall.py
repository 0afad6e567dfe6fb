# SPDX-License-Identifier: GPL-2.0-or-later
"""Offload where the agent enforces the lists of client qubes: on, and no way around a list that changes."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from tests.support.eventually import eventually
from tests.support.packets.flows import TCP, UDP, Flow, Offload, flowing
from tests.support.qubes.firewall import Enforcing
from tests.support.qubes.provider import WORLD, WORLD6, Client

KEPT_PORT = 4433
KEPT = f"action=accept proto=tcp dstports={KEPT_PORT}-{KEPT_PORT}"
EVERYTHING = "action=accept"
# Both are not multiplied for the emulated machine: its agent took 0.3 to 0.6 s, and the kernel looks at its offloaded
# connections once a second here too.
CUT_S, QUIET_S = 2.0, 3.0


@pytest.fixture(scope="module")
def enforcing() -> Iterator[Enforcing]:
    """A provider with the flag and the mark of `qubes-firewall.service`, beside the one of the other tests."""
    host = Enforcing(name="enforcing-")
    yield host
    host.qube.kill()
    host.world.kill()


@pytest.fixture(scope="module")
def listed(enforcing: Enforcing) -> Client:
    """A qube whose list accepts everything."""
    behind = enforcing.attach(5)
    enforcing.applied(behind.ip, EVERYTHING)
    enforcing.applied(behind.ip6, EVERYTHING)
    return behind


@pytest.fixture
def offloading(enforcing: Enforcing, listed: Client) -> Offload:
    offload = Offload(enforcing.qube)
    eventually(offload.complete, 20, "offload is on beside our own tables", enforcing.trouble)
    return offload


def last_arrival(flow: Flow, since: float) -> float:
    """Seconds from a moment to the last number that arrived at either end, told once no more came for a while."""
    seen, at = (flow.near.arrived, flow.far.arrived), since

    def quiet() -> bool:
        nonlocal seen, at
        now = flow.near.arrived, flow.far.arrived
        if now != seen:
            seen, at = now, time.monotonic()
        return time.monotonic() - at > QUIET_S

    eventually(quiet, 20, "it ends", flow.__str__)
    return at - since


@pytest.mark.behaviour("B62", "B63", "B70")
@pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])
@pytest.mark.parametrize("version", [4, 6])
def test_a_commit_that_refuses_ends_an_offloaded_stream_in_two_seconds(
    enforcing: Enforcing, listed: Client, offloading: Offload, kind: socket.SocketKind, version: int
) -> None:
    """And what the new list accepts goes on, offloaded, without a reset."""
    address, target = (listed.ip, WORLD) if version == 4 else (listed.ip6, WORLD6)
    with (
        flowing(listed.qube, enforcing.world, target, kind) as refused,
        flowing(listed.qube, enforcing.world, target, TCP, KEPT_PORT) as kept,
    ):
        for flow in (refused, kept):
            offloading.takes(flow)
        since = time.monotonic()
        enforcing.commit(address, KEPT)
        took = last_arrival(refused, since)
        assert took <= CUT_S, f"{took:.2f} s: {refused}"
        assert not offloading.marked(refused)
        eventually(offloading.complete, 20, "offload is on again", enforcing.trouble)
        offloading.takes(kept)
        assert kept.trouble == ""
    enforcing.applied(address, EVERYTHING)
    with flowing(listed.qube, enforcing.world, target, kind) as again:
        offloading.takes(again)
