# SPDX-License-Identifier: GPL-2.0-or-later
"""Which link types are taken for a VPN's: all whose frames have no header of a link layer."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator

import pytest

from qubes_guestnet.system import tunnels
from tests.support.judge.oracle import Oracle

TUNSETIFF, TUNSETLINK = 0x400454CA, 0x400454CD  # linux/if_tun.h
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
# linux/if_arp.h
WITHOUT = {
    "PPP": 512, "raw IP of a modem": 519, "IP in IP": 768, "IP in IPv6": 769, "SIT": 776, "GRE": 778, "SLIP": 256,
    "GRE over IPv6": 823, "none, as WireGuard": 65534, "one that is not known": 4711,
}  # fmt: skip
WITH = {"Ethernet": 1, "InfiniBand": 32, "loopback": 772, "802.11": 801, "a monitor": 803, "CAN": 280}


@contextlib.contextmanager
def device(oracle: Oracle, kind: int) -> Iterator[str]:
    """A device of this link type, not yet up."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("=16sH22x", b"vpn0", IFF_TUN | IFF_NO_PI))
        fcntl.ioctl(descriptor, TUNSETLINK, kind)
        (shown,) = oracle.ip("link", "show", "vpn0")
        assert shown["link_type"] != "ether" or kind == WITH["Ethernet"]
        yield "vpn0"
    finally:
        os.close(descriptor)


@pytest.mark.behaviour("B124")
@pytest.mark.parametrize("kind", WITHOUT.values(), ids=WITHOUT.keys())
def test_without_a_link_layer_it_is_a_tunnel_once_it_is_up(oracle: Oracle, kind: int) -> None:
    with device(oracle, kind) as name:
        assert tunnels.links([name, "eth0", "lo"]) == ()
        oracle.run("ip", "link", "set", name, "up")
        assert tunnels.links([name, "eth0", "lo"]) == (name,)


@pytest.mark.behaviour("B124")
@pytest.mark.parametrize("kind", WITH.values(), ids=WITH.keys())
def test_with_a_link_layer_it_is_none(oracle: Oracle, kind: int) -> None:
    with device(oracle, kind) as name:
        oracle.run("ip", "link", "set", name, "up")
        assert tunnels.links([name, "eth0", "lo", "gone"]) == ()
