# SPDX-License-Identifier: GPL-2.0-or-later
"""What ends offload: the agent's end, that of forwarding, and that of IPv6."""

from __future__ import annotations

import pytest

from tests.support.eventually import eventually
from tests.support.packets.flows import TCP, UDP, Offload, flowing
from tests.support.qubes.provider import GATEWAY6, WORLD, WORLD6, Behind, Hosting

NO_OFFLOAD = "guestnet-no-offload"


@pytest.mark.behaviour("B62", "B63")
def test_without_an_agent_and_with_the_flag_packets_take_the_long_way(
    hosting: Hosting, behind: Behind, offload: Offload
) -> None:
    with flowing(behind.qube, hosting.world, WORLD, TCP) as flow:
        offload.takes(flow)
        hosting.agent.stop()
        assert offload.gone()
        offload.leaves(flow)
        hosting.qube.set_flag(NO_OFFLOAD)
        hosting.qube.start_agent()
        offload.leaves(flow)
        assert offload.gone()
        hosting.agent.stop()
        hosting.qube.set_flag(NO_OFFLOAD, False)
        hosting.qube.start_agent()
        eventually(offload.complete, 20, "offload is on again")
        offload.takes(flow)


@pytest.mark.behaviour("B62", "B63")
def test_what_a_killed_agent_leaves_behind_the_next_one_makes_right(
    hosting: Hosting, behind: Behind, offload: Offload
) -> None:
    with flowing(behind.qube, hosting.world, WORLD, TCP) as flow:
        offload.takes(flow)
        hosting.agent.kill()
        hosting.qube.wire("ip link add late type dummy")
        hosting.nft(f"add rule ip qubes custom-forward ip daddr {behind.ip} drop")
        hosting.qube.start_agent()
        flow.cut(flow.near)
        assert offload.gone()
        hosting.nft("flush chain ip qubes custom-forward")
        eventually(offload.complete, 20, "offload is on again, for the late one too")
        hosting.qube.wire("ip link delete late")
        flow.goes_on()


@pytest.mark.behaviour("B62", "B95")
def test_ipv6_goes_and_what_is_offloaded_with_it(hosting: Hosting, behind: Behind, offload: Offload) -> None:
    with (
        flowing(behind.qube, hosting.world, WORLD6, TCP) as stream,
        flowing(behind.qube, hosting.world, WORLD6, UDP) as datagrams,
        flowing(behind.qube, hosting.world, WORLD, TCP) as other,
    ):
        for flow in (stream, datagrams, other):
            offload.takes(flow)
        hosting.write("/qubes-netvm-gateway6", "")
        eventually(lambda: not hosting.forwards(6), what="forwarding is off")
        for flow in (stream, datagrams):
            flow.stands()
        eventually(offload.complete, 20, "offload is on for IPv4")
        other.goes_on()
        offload.takes(other)
        assert other.trouble == ""
    hosting.write("/qubes-netvm-gateway6", GATEWAY6)
    eventually(lambda: hosting.forwards(6), what="forwarding is on")
    eventually(offload.complete, 20, "offload is on")
    with flowing(behind.qube, hosting.world, WORLD6, UDP) as flow:
        offload.takes(flow)


@pytest.mark.behaviour("B62", "B65")
def test_forwarding_goes_off_and_nothing_passes(hosting: Hosting, behind: Behind, offload: Offload) -> None:
    with (
        flowing(behind.qube, hosting.world, WORLD, TCP) as stream,
        flowing(behind.qube, hosting.world, WORLD6, UDP) as datagrams,
    ):
        for flow in (stream, datagrams):
            offload.takes(flow)
        hosting.qube.guestnet("forwarding", "off")
        for flow in (stream, datagrams):
            flow.stands()
        assert offload.gone()
        hosting.qube.guestnet("forwarding", "on")
        eventually(offload.complete, 20, "offload is on again")
        for flow in (stream, datagrams):
            flow.goes_on()
