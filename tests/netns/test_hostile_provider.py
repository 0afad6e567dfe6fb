# SPDX-License-Identifier: GPL-2.0-or-later
"""What the provider of a qube can do to it, and through it: no more than dom0 gave it to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from qubes_guestnet.lab.qube import Qube
from tests.support.eventually import eventually
from tests.support.hosting import (
    DNS,
    ENTRIES6,
    OWN,
    OWN6,
    ROUTER,
    ROUTER6,
    UPLINK,
    UPLINK_MAC,
    Hosting,
)
from tests.support.packets import Port

TUNNEL_MAC = "02:00:00:00:00:77"
INSIDE, INSIDE6 = "10.8.0.2", "fd08::2"
FAR, FAR6 = "10.8.0.9", "fd08::9"
PROXY = {
    **ENTRIES6,
    "/qubes-mac": UPLINK_MAC,
    "/qubes-ip": OWN,
    "/qubes-gateway": ROUTER,
    "/qubes-ip6": OWN6,
    "/qubes-gateway6": ROUTER6,
    "/qubes-primary-dns": DNS,
}
WORDS = {4: "ip", 6: "ip6"}


@contextmanager
def proxy(device: str = "tun0") -> Iterator[tuple[Hosting, Port, str]]:
    """A provider behind another one, which has one more way out of no group: a tunnel, or a bridge of containers."""
    host, far = Hosting(PROXY), Qube("far")
    host.qube.wire(f"""
        ip link add {device} type veth peer name far0 address {TUNNEL_MAC} netns {far.pid}; ip link set {device} up
        ip address add {INSIDE}/24 dev {device}; ip -6 address add {INSIDE6}/64 dev {device} nodad
        ip neighbour replace {FAR} lladdr {TUNNEL_MAC} dev {device}
        ip -6 neighbour replace {FAR6} lladdr {TUNNEL_MAC} dev {device}
    """)
    far.wire("ip link set far0 up")
    mac = str(host.link(device)["address"])
    eventually(lambda: host.forwards() and host.forwards(6), trouble=host.trouble)
    assert host.link(UPLINK)["group"] in ("1", "uplink")
    yield host, Port(far, "far0", mac), device


@pytest.mark.behaviour("B115")
@pytest.mark.parametrize("version", [4, 6])
def test_nothing_of_the_provider_is_forwarded(version: int) -> None:
    with proxy() as (host, tunnel, _device):
        behind, outside = host.attach(), host.outside()
        router, far = (ROUTER, FAR) if version == 4 else (ROUTER6, FAR6)
        own = behind.ip if version == 4 else behind.ip6
        strange = "127.0.0.1" if version == 4 else "::1"
        for source, target in ((router, far), (strange, far), (own, far), (far, far), (router, own), (far, own)):
            outside.send(source, target, "provider's")
        if version == 4:
            outside.send(router, DNS, "provider's", dport=53)
        # The qube's own way into the tunnel, and the answer.
        behind.port.send(own, far, "asked", sport=700)
        assert tunnel.hears(lambda packet: packet.word == "asked")
        inside = INSIDE if version == 4 else INSIDE6
        tunnel.send(far, inside, "answered", sport=9, dport=700)
        assert behind.port.hears(lambda packet: packet.word == "answered")
        assert (tunnel.words(), behind.port.words()) == ({"asked"}, {"answered"})
        assert "provider's" not in outside.words()
        assert host.drops("forward", WORDS[version]) >= 1


@pytest.mark.behaviour("B83")
@pytest.mark.behaviour("B115")
@pytest.mark.parametrize("version", [4, 6])
def test_containers_go_out_and_come_in_where_their_owner_lets_them(version: int) -> None:
    with proxy("docker0") as (host, container, device):
        outside, word = host.outside(), WORDS[version]
        router, far, own = (ROUTER, FAR, OWN) if version == 4 else (ROUTER6, FAR6, OWN6)
        container.send(far, router, "out", sport=700)
        assert outside.hears(lambda packet: (packet.word, packet.source) == ("out", own))
        outside.send(router, own, "answer", sport=9, dport=700)
        assert container.hears(lambda packet: packet.word == "answer")
        outside.send(router, far, "in")
        host.nft(f"add rule {word} qubes custom-forward oifname {device} udp dport 9 accept")
        outside.send(router, far, "in by its owner's rule")
        assert container.hears(lambda packet: packet.word == "in by its owner's rule")
        assert container.words() == {"answer", "in by its owner's rule"}
        # Between two interfaces of no group nothing is ours.
        other = Qube("other")
        host.qube.wire(f"""
            ip link add lxc0 type veth peer name far0 netns {other.pid}; ip link set lxc0 up
            ip address add 10.9.0.1/24 dev lxc0; ip -6 address add fd09:9::1/64 dev lxc0 nodad
        """)
        other.wire("ip link set far0 up")
        Port(other, "far0", str(host.link("lxc0")["address"])).send(
            "10.9.0.2" if version == 4 else "fd09:9::2", far, "between"
        )
        assert container.hears(lambda packet: packet.word == "between")
