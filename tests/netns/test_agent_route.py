# SPDX-License-Identifier: GPL-2.0-or-later
"""The device route, and when it is given up: providers that answer ARP at once, late, or not at all."""

from __future__ import annotations

import signal
import socket

import pytest

from tests.support.eventually import eventually, never
from tests.support.qubes.appvm import DNS, ENTRIES, GATEWAY_FLAG, VIF, AppVm, ArpListener

IP_RECVERR = 11  # linux/in.h
FALLING = "falling back to the gateway route"


def probed(appvm: AppVm, address: str = DNS) -> bool:
    """The provider has answered the probe."""
    return address in appvm.oracle.neighbours("eth0", permanent=False)


def test_a_prompt_provider_keeps_the_device_route() -> None:
    appvm = AppVm()
    appvm.agent()
    eventually(lambda: probed(appvm), trouble=appvm.log)
    never(lambda: appvm.said(FALLING), 0.5)
    appvm.check()
    assert appvm.status()["interfaces"][0]["style_reason"] == "default"


def test_a_first_answer_that_got_lost_is_asked_for_again_before_anybody_else() -> None:
    """A new link drops what comes in its first moment, and the kernel alone would wait for a second."""
    appvm = AppVm(plugged=False)
    appvm.plug(arp="own")
    with ArpListener(appvm) as provider:
        appvm.agent(wait=False)
        provider.request_for(DNS)
        asked, again = provider.request()
        assert asked == DNS
        provider.answer(again)
        eventually(lambda: probed(appvm), trouble=appvm.log)


@pytest.mark.behaviour("B152")
def test_packets_that_wait_for_the_answer_of_a_probe_are_not_refused() -> None:
    """An upgrade in a running qube refused 2 of 61 pings: the repeated probe deleted the entry that they waited in."""
    appvm = AppVm(plugged=False)
    appvm.plug(arp="own")
    with ArpListener(appvm) as provider, appvm.qube.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        appvm.agent(wait=False)
        client.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        provider.request_for(DNS)
        client.connect((DNS, 9))
        client.send(b"waits")
        again = provider.request_for(DNS)
        with pytest.raises(BlockingIOError):  # no error is queued
            client.recv(64, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        provider.answer(again)
        eventually(lambda: probed(appvm), trouble=appvm.log)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


@pytest.mark.behaviour("B10")
@pytest.mark.parametrize("arp", ["own", "off"])
def test_a_provider_that_does_not_answer(arp: str) -> None:
    """A Whonix gateway answers for itself only; one with anti-spoofing perhaps not at all."""
    appvm = AppVm(plugged=False)
    appvm.plug(arp=arp)
    agent = appvm.agent()
    appvm.soon_configured(style="gateway")
    for _ in range(3):
        agent.signal(signal.SIGHUP)
        appvm.qube.guestnet("apply")
    appvm.check(style="gateway")
    assert appvm.said(FALLING) == 1
    (interface,) = appvm.status()["interfaces"]
    assert (interface["style"], interface["style_reason"][:28]) == ("gateway", "fall-back: no ARP answer for")
    text = appvm.qube.guestnet("status", check=False).stdout
    assert "default route: gateway route (fall-back: no ARP answer for 10.139.1.1 and 10.139.1.2 within 100 ms" in text


def test_a_provider_that_answers_late() -> None:
    appvm = AppVm(plugged=False)
    appvm.plug(arp="own")
    with ArpListener(appvm) as provider:
        appvm.agent(wait=False)
        request = provider.request_for(DNS)
        appvm.soon_configured(style="gateway")
        provider.answer(request)
        eventually(lambda: probed(appvm))
        never(lambda: len(appvm.oracle.default_routes(4)) != 1, 0.3)
    appvm.check(style="gateway")
    assert appvm.said(FALLING) == 1


def test_the_fall_back_outlives_the_agent() -> None:
    appvm = AppVm(plugged=False)
    appvm.plug(arp="own")
    agent = appvm.agent()
    appvm.soon_configured(style="gateway")
    agent.kill()
    appvm.agent()
    appvm.check(style="gateway")
    assert appvm.said(FALLING) == 1


def test_a_new_interface_starts_with_the_device_route_again() -> None:
    appvm = AppVm(plugged=False)
    appvm.plug(arp="own")
    appvm.agent()
    appvm.soon_configured(style="gateway")
    appvm.unplug()
    appvm.plug(arp="proxy")
    eventually(lambda: probed(appvm), trouble=appvm.log)
    appvm.soon_configured()
    never(lambda: appvm.said(FALLING) > 1, 0.3)


def test_another_gateway_is_tried_anew() -> None:
    appvm = AppVm(plugged=False)
    appvm.plug(arp="own")
    appvm.agent()
    appvm.soon_configured(style="gateway")
    appvm.provider.wire(f"echo 1 > /proc/sys/net/ipv4/conf/{VIF}/proxy_arp")
    appvm.ip("neighbour", "flush", "dev", "eth0")  # the kernel asks for it once a second, and so still does
    appvm.write("/qubes-gateway", "10.139.1.7")
    appvm.soon_configured(gateway="10.139.1.7")
    never(lambda: appvm.said(FALLING) > 1, 0.5)
    appvm.check(gateway="10.139.1.7")


def test_without_carrier_nobody_is_asked() -> None:
    """On Xen the interface is there before the provider's end is: its silence says nothing."""
    appvm = AppVm(plugged=False)
    appvm.plug(up=False)
    appvm.agent()
    never(lambda: appvm.said(FALLING), 0.5)
    appvm.check()
    appvm.provider.wire(f"ip link set {VIF} up; ip route add 10.137.0.5/32 dev {VIF}")
    eventually(lambda: probed(appvm), trouble=appvm.log)
    appvm.check()
    assert appvm.said(FALLING) == 0


def test_the_link_goes_down_and_up_while_it_is_probed() -> None:
    appvm = AppVm()
    appvm.agent()
    eventually(lambda: probed(appvm), trouble=appvm.log)
    for _ in range(10):
        appvm.provider.wire(f"ip link set {VIF} down; ip link set {VIF} up; ip route append 10.137.0.5/32 dev {VIF}")
        appvm.ip("link", "set", "eth0", "down")
        appvm.soon_configured()
    assert appvm.said(FALLING) == 0


@pytest.mark.parametrize("entries", [{k: v for k, v in ENTRIES.items() if "dns" not in k}, ENTRIES])
def test_nobody_is_asked_in_vain(entries: dict[str, str]) -> None:
    """Without a virtual DNS address, or when the gateway is used anyhow, no question is on the wire."""
    appvm = AppVm(entries, plugged=False)
    appvm.plug(arp="own")
    appvm.qube.set_flag(GATEWAY_FLAG, entries is ENTRIES)
    appvm.agent()
    never(lambda: appvm.said(FALLING), 0.4)
    if entries is ENTRIES:
        appvm.check(style="gateway")
    else:
        appvm.check(servers=("10.137.0.1",))
    assert "10.139.1.1" not in str(appvm.oracle.ip("neighbour", "show", "dev", "eth0"))
