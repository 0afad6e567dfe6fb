# SPDX-License-Identifier: GPL-2.0-or-later
"""What ends offload: the agent's end, that of forwarding, and that of IPv6."""

from __future__ import annotations

import pytest

from tests.support.eventually import eventually
from tests.support.packets.flows import TCP, UDP, Offload, flowing
from tests.support.qubes.provider import GATEWAY6, WORLD, WORLD6, Client, Provider

NO_OFFLOAD = "guestnet-no-offload"


@pytest.mark.behaviour("B62", "B63")
def test_without_an_agent_and_with_the_flag_packets_take_the_long_way(
    host: Provider, behind: Client, offload: Offload
) -> None:
    with flowing(behind.qube, host.world, WORLD, TCP) as flow:
        offload.takes(flow)
        host.agent.stop()
        assert offload.gone()
        offload.leaves(flow)
        host.qube.set_flag(NO_OFFLOAD)
        host.qube.start_agent()
        offload.leaves(flow)
        assert offload.gone()
        host.agent.stop()
        host.qube.set_flag(NO_OFFLOAD, False)
        host.qube.start_agent()
        eventually(offload.complete, 20, "offload is on again")
        offload.takes(flow)


@pytest.mark.behaviour("B62", "B63")
def test_what_a_killed_agent_leaves_behind_the_next_one_makes_right(
    host: Provider, behind: Client, offload: Offload
) -> None:
    with flowing(behind.qube, host.world, WORLD, TCP) as flow:
        offload.takes(flow)
        host.agent.kill()
        host.qube.wire("ip link add late type dummy")
        host.nft(f"add rule ip qubes custom-forward ip daddr {behind.ip} drop")
        host.qube.start_agent()
        flow.cut(flow.near)
        assert offload.gone()
        host.nft("flush chain ip qubes custom-forward")
        eventually(offload.complete, 20, "offload is on again, for the late one too")
        host.qube.wire("ip link delete late")
        flow.goes_on()


@pytest.mark.behaviour("B62", "B95")
def test_ipv6_goes_and_what_is_offloaded_with_it(host: Provider, behind: Client, offload: Offload) -> None:
    with (
        flowing(behind.qube, host.world, WORLD6, TCP) as stream,
        flowing(behind.qube, host.world, WORLD6, UDP) as datagrams,
        flowing(behind.qube, host.world, WORLD, TCP) as other,
    ):
        for flow in (stream, datagrams, other):
            offload.takes(flow)
        host.write("/qubes-netvm-gateway6", "")
        eventually(lambda: not host.forwards(6), what="forwarding is off")
        for flow in (stream, datagrams):
            flow.stands()
        eventually(offload.complete, 20, "offload is on for IPv4")
        other.goes_on()
        offload.takes(other)
        assert other.trouble == ""
    host.write("/qubes-netvm-gateway6", GATEWAY6)
    eventually(lambda: host.forwards(6), what="forwarding is on")
    eventually(offload.complete, 20, "offload is on")
    with flowing(behind.qube, host.world, WORLD6, UDP) as flow:
        offload.takes(flow)


@pytest.mark.behaviour("B62", "B65")
def test_forwarding_goes_off_and_nothing_passes(host: Provider, behind: Client, offload: Offload) -> None:
    with (
        flowing(behind.qube, host.world, WORLD, TCP) as stream,
        flowing(behind.qube, host.world, WORLD6, UDP) as datagrams,
    ):
        for flow in (stream, datagrams):
            offload.takes(flow)
        host.qube.guestnet("forwarding", "off")
        for flow in (stream, datagrams):
            flow.stands()
        assert offload.gone()
        host.qube.guestnet("forwarding", "on")
        eventually(offload.complete, 20, "offload is on again")
        for flow in (stream, datagrams):
            flow.goes_on()
