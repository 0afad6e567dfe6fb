# SPDX-License-Identifier: GPL-2.0-or-later
"""A qube with a fake address, its provider, and a world behind a link that is narrower than anybody says."""

from __future__ import annotations

import socket
import sys

from qubes_guestnet.lab.probes import ping
from qubes_guestnet.lab.qube import Qube
from tests.support.needs import needs
from tests.support.packets.wire import Wire

MAC, BACKEND_MAC = "00:16:3e:5e:6c:04", "fe:ff:ff:ff:ff:ff"
REAL, VISIBLE = "10.137.0.4", "192.168.1.128"
GATEWAY, FAKE_GATEWAY = "10.137.0.1", "192.168.1.1"
PROVIDER, WORLD, FAR_MTU = "198.51.100.1", "198.51.100.7", 1300
VIF, NAMESPACE = "vif4.0", "vif4-nat"
IP_OPTIONS, IP_MTU_DISCOVER, IP_RECVERR = 4, 10, 11  # linux/in.h

BUILD = """
from ipaddress import ip_address
from qubes_guestnet.core.provider.vif import Mapping, Vif
from qubes_guestnet.core.vif_name import parse_name
from qubes_guestnet.core.provider import fake_address
from qubes_guestnet.system.fake_address import Namespace
mapping = Mapping(ip_address("{real}"), ip_address("{visible}"), {gateway} and ip_address({gateway}))
vif = Vif(parse_name("vif4.0"), "{mac}", "vif", (mapping.real,), (mapping,))
with Namespace(vif.name) as space:
    for step in fake_address.build(space.observe(), vif, mapping, ip_address("{real_gateway}"), space.outside):
        space.carry_out(step)
"""
DEMOLISH = """
from qubes_guestnet.core.provider import fake_address
from qubes_guestnet.core.vif_name import parse_name
from qubes_guestnet.system.fake_address import Namespace
with Namespace(parse_name("vif4.0")) as space:
    for step in fake_address.demolish(space.observe(), parse_name("vif4.0"), space.outside):
        space.carry_out(step)
"""


# A test is a process of its own, whose end closes them all.
_open: list[socket.socket | Wire] = []


class Tree:
    """A qube, its provider, and a world behind a link that is narrower than anybody says.

    Args:
        gateway: that the qube believes to have; None: the real one.
    """

    def __init__(self, gateway: str | None = FAKE_GATEWAY) -> None:
        needs("ip", "nft", "nsenter", "ethtool")
        self.gateway = gateway
        self.shown = gateway or GATEWAY
        self.qube, self.provider, self.world = Qube("appvm"), Qube("provider"), Qube("world")
        self.provider.wire(f"""
            ip link add out type veth peer name eth0 netns {self.world.pid}
            ip link set lo up; ip link set out up mtu {FAR_MTU}
            ip address add 198.51.100.1/24 dev out
            echo 1 > /proc/sys/net/ipv4/ip_forward
        """)
        self.world.wire(f"""
            ip link set lo up; ip link set eth0 up; ip address add {WORLD}/24 dev eth0
            ip route add default via 198.51.100.1 mtu lock {FAR_MTU} advmss 1460
        """)
        self.plug()

    def plug(self) -> None:
        """The toolstack makes the two ends."""
        self.provider.wire(
            f"ip link add {VIF} address {BACKEND_MAC} type veth peer name eth0 address {MAC} netns {self.qube.pid}"
        )
        self.qube.wire(f"""
            ip link set lo up; ip link set eth0 up; ip address add {VISIBLE}/24 dev eth0
            ip neighbour replace {self.shown} lladdr {BACKEND_MAC} dev eth0
            ip route replace default via {self.shown} dev eth0 onlink
        """)

    def build(self, visible: str = VISIBLE, check: bool = True) -> str:
        """Call our own; what it complained of."""
        words = {"real": REAL, "visible": visible, "gateway": repr(self.gateway), "mac": MAC}
        program = BUILD.format(real_gateway=GATEWAY, **words)
        return self.provider.run(sys.executable, "-c", program, check=check).stderr

    def attach(self) -> None:
        """What the provider does with every vif."""
        self.provider.wire(f"""
            ip address replace {GATEWAY}/32 dev {VIF}
            ip neighbour replace {REAL} lladdr {MAC} nud permanent dev {VIF}
            ip link set {VIF} up
            ip route replace {REAL}/32 dev {VIF}
        """)

    def demolish(self) -> None:
        self.provider.run(sys.executable, "-c", DEMOLISH)

    def between(self, *words: str) -> str:
        """A command in the namespace."""
        return self.provider.run("nsenter", f"--net=/run/netns/{NAMESPACE}", *words).stdout

    def state(self) -> str:
        """All that is in the namespace, without what every packet changes."""
        looks = (("nft", "-s", "list", "ruleset"), ("ip", "address"), ("ip", "route"), ("ip", "neighbour"))
        return "\n".join(self.between(*look) for look in looks)

    def works(self) -> bool:
        return ping(self.qube, WORLD) is not None

    def socket(self, qube: Qube, kind: int = socket.SOCK_DGRAM, address: tuple[str, int] = ("", 0)) -> socket.socket:
        made = qube.socket(socket.AF_INET, kind)
        made.settimeout(5)
        made.setsockopt(socket.IPPROTO_IP, IP_RECVERR, int(kind == socket.SOCK_DGRAM))
        made.bind(address)
        _open.append(made)
        return made

    @staticmethod
    def wire(qube: Qube, interface: str) -> Wire:
        made = Wire(qube, interface)
        _open.append(made)
        return made

    def error(self, qube: Qube, address: str, port: int = 9, **options: int) -> int:
        """The errno that a datagram comes back with: only of an ICMP error in which the kernel knows its own packet."""
        with self.socket(qube) as probe:
            for option, value in options.items():
                probe.setsockopt(socket.IPPROTO_IP, getattr(socket, option), value)
            probe.connect((address, port))
            probe.send(b"x" * 40)
            try:
                probe.recv(100)
            except OSError as error:
                return error.errno or 0
            return 0
