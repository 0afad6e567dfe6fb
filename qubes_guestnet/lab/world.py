# SPDX-License-Identifier: GPL-2.0-or-later
"""What lies outside a provider: one host that answers ping, serves real DNS (dnsmasq) and echoes TCP."""

from __future__ import annotations

import socket
import sys

from .namespaces import LabError
from .probes import query
from .qube import Qube, Service, eventually
from .tools import require

HOST = "192.168.123.45"
HOST6 = "2000:abcd::1"
NAME = "test.example.com"
ECHO_PORTS = (1234, 4321)
# The net between the world and its provider, as in the figure of the reference document.
ROUTER, PROVIDER = "192.168.0.1", "192.168.0.2"
ROUTER6, PROVIDER6 = "2000:abcd:0:1::1", "2000:abcd:0:1::2"
INTERFACE = "lan"
_DNS_PORT = 53


class World:
    """A world of its own; connect a provider's `Qube` to it with `connect`.

    Raises:
        LabError: dnsmasq or another tool is not installed, or dnsmasq did not start.
    """

    def __init__(self, name: str = "world") -> None:
        require("dnsmasq", "ip", "nsenter")
        self.qube = Qube(name)
        self.qube.wire(f"ip address add {HOST}/32 dev lo; ip address add {HOST6}/128 dev lo nodad")
        self.dns = self._start_dns()
        ports = [str(port) for port in ECHO_PORTS]
        self.echo = self.qube.spawn("echo", sys.executable, "-m", "qubes_guestnet.lab.echo", *ports)

    def _start_dns(self) -> Service:
        dns = self.qube.spawn(
            "dnsmasq", "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
            "--bind-interfaces", f"--listen-address={HOST}", "--local=/example.com/", "--log-queries",
            f"--host-record={NAME},{HOST},{HOST6}",
        )  # fmt: skip

        def answers() -> bool:
            if not dns.running:
                raise LabError("dnsmasq did not start", f"its log: {dns.tail()}")
            with self.qube.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                return query(client, HOST, NAME, timeout=0.1)

        eventually("dnsmasq answers", answers)
        return dns

    def connect(self, provider: Qube, interface: str, ipv6: bool) -> None:
        """Lay a cable to `provider`, there named `interface`, and configure both ends."""
        self.qube.wire(f"""
            ip link add {INTERFACE} type veth peer name {interface} netns {provider.pid}
            ip address add {ROUTER}/24 dev {INTERFACE}
            ip address add {ROUTER6}/64 dev {INTERFACE} nodad
            ip link set {INTERFACE} up
        """)
        provider.wire(f"""
            ip address add {PROVIDER}/24 dev {interface}
            ip link set {interface} up
            ip route add default via {ROUTER} dev {interface}
        """)
        if ipv6:
            provider.wire(f"""
                ip address add {PROVIDER6}/64 dev {interface} nodad
                ip route add default via {ROUTER6} dev {interface}
            """)
