# SPDX-License-Identifier: GPL-2.0-or-later
"""What the provider of a qube can do to it, and through it: no more than dom0 gave it to do."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from qubes_guestnet.lab.daemons import without_host_link
from qubes_guestnet.lab.qube import Qube
from tests.support.eventually import eventually
from tests.support.packets import icmp
from tests.support.packets.ports import MARK, UDP, Port, packet_of, udp
from tests.support.qubes.appvm import ENTRIES as ENTRIES_OF_A_GUEST
from tests.support.qubes.appvm import GATEWAY as GATEWAY_OF_A_GUEST
from tests.support.qubes.appvm import GATEWAY_FLAG, IP, MAC, VIF, AppVm
from tests.support.qubes.provider import (
    DNS,
    ENTRIES6,
    OWN,
    OWN6,
    ROUTER,
    ROUTER6,
    UPLINK,
    UPLINK_MAC,
    VIF_MAC,
    WORLD,
    Provider,
)

LINK_LOCAL = "fe80::fcff:ffff:feff:ffff"
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
def proxy(device: str = "tun0") -> Iterator[tuple[Provider, Port, str]]:
    """A provider behind another one, which has one more way out of no group: a tunnel, or a bridge of containers."""
    host, far = Provider(PROXY), Qube("far")
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


@pytest.mark.behaviour("B116")
@pytest.mark.parametrize("loaded", [True, False])
def test_an_uplink_takes_nothing_that_it_did_not_ask_for(loaded: bool) -> None:
    """By the rules, and where there are none yet by the settings of the interface."""
    appvm = AppVm(ENTRIES_OF_A_GUEST)
    if loaded:
        appvm.qube.guestnet("rules", "load")
    appvm.qube.set_flag(GATEWAY_FLAG, True)
    appvm.agent()
    appvm.soon_configured(style="gateway")
    if loaded:
        # The settings may change afterwards: the rules hold.
        for setting in ("accept_ra", "accept_redirects"):
            appvm.oracle.run("sysctl", "-qw", f"net.ipv6.conf.eth0.{setting}=1")
        appvm.oracle.run("sysctl", "-qw", "net.ipv6.conf.eth0.drop_unsolicited_na=0")
    port = Port(appvm.provider, VIF, MAC)
    eventually(lambda: "tentative" not in str(appvm.oracle.ip("address")), what="duplicate detection is over")
    appvm.oracle.run(
        "ip", "neighbour", "replace", "fe80::9", "lladdr", "02:00:00:00:00:09", "nud", "stale", "dev", "eth0"
    )
    port.send_packet(icmp.advertised_router(LINK_LOCAL, VIF_MAC, "2001:db8:bad::"))
    port.send_packet(icmp.advertised_neighbour("fe80::9", icmp.ALL_NODES, "fe80::9", TUNNEL_MAC, solicited=False))
    # A redirect is about a packet of the qube's own, and comes from the gateway that it has.
    about = packet_of(IP, WORLD, udp(IP, WORLD, 700, 9, MARK + b"sent"), UDP)
    with appvm.qube.socket(socket.AF_INET, socket.SOCK_DGRAM) as speaker:
        speaker.bind((IP, 700))
        speaker.sendto(MARK + b"sent", (WORLD, 9))
    assert port.hears(lambda packet: packet.word == "sent")
    new = int.from_bytes(bytes(map(int, ["10", "137", "0", "77"])))
    port.send_packet(icmp.error(GATEWAY_OF_A_GUEST, IP, (5, 1, new), about))
    # What was asked for is answered: a ping, behind all of these.
    assert appvm.oracle.reaches(GATEWAY_OF_A_GUEST)
    time.sleep(0.2)  # the kernel makes addresses of an advertisement after it has taken it
    assert appvm.oracle.addresses("eth0") == {f"{IP}/32"}
    assert appvm.oracle.default_routes(6) == []
    assert appvm.oracle.neighbours("eth0", permanent=False)["fe80::9"] == "02:00:00:00:00:09"
    assert "via 10.137.0.77" not in appvm.oracle.run("ip", "route", "get", WORLD).stdout


@pytest.mark.behaviour("B116")
@pytest.mark.behaviour("B17")
def test_no_file_of_a_user_for_every_interface_lets_a_provider_in() -> None:
    appvm = AppVm(ENTRIES_OF_A_GUEST, plugged=False)
    without_host_link(appvm.qube, "/etc/sysctl.d")
    text = "".join(f"net.ipv6.conf.{which}.accept_ra=2\n" for which in ("default", "*", "eth0"))
    text += "net.ipv6.conf.*.accept_redirects=1\nnet.ipv6.conf.*.drop_unsolicited_na=0\n"
    text += "net.ipv4.conf.*.accept_redirects=1\nnet.ipv4.conf.eth0.arp_announce=2\n"
    appvm.qube.write("/etc/sysctl.d/99-user.conf", text)
    appvm.plug()
    appvm.oracle.run("sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=0")  # right at the first look
    # As udev may run systemd-sysctl for a new interface: after the link is up.
    late = "until ip link show eth0 up | grep -q eth0; do sleep 0.01; done; sysctl -qw net.ipv6.conf.eth0.accept_ra=2"
    udev = appvm.qube.spawn("udev", "sh", "-c", f"{late}; echo written", own_processes=False)
    appvm.agent()
    appvm.soon_configured()
    assert appvm.qube.guestnet("wait-uplink", "--timeout", "20").returncode == 0
    eventually(lambda: "written" in udev.output(), 10.0, trouble=udev.output)

    def settings() -> list[str]:
        names = ("accept_ra", "accept_redirects", "drop_unsolicited_na")
        return [appvm.oracle.run("cat", f"/proc/sys/net/ipv6/conf/eth0/{name}").stdout.strip() for name in names]

    eventually(lambda: settings() == ["0", "0", "1"], 10.0, trouble=appvm.log)
    assert appvm.oracle.run("cat", "/proc/sys/net/ipv4/conf/eth0/arp_announce").stdout.strip() == "2", "the user's own"
