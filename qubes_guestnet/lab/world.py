# SPDX-License-Identifier: GPL-2.0-or-later
"""What lies outside a provider: one host that answers ping, serves real DNS (dnsmasq) and echoes TCP.

The provider's end of the cable is configured from here: on a real machine its owner's NetworkManager does that.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .namespaces import LabError
from .probes import query
from .qube import Qube, Service, eventually
from .tools import require

HOST = "192.168.123.45"
HOST6 = "2000:abcd::1"
NAME = "test.example.com"
NAME6 = "six.example.com"
# What its DNS server knows.
ADDRESSES = {NAME: (HOST, HOST6), NAME6: (HOST6,)}
"""Resolves to HOST6 only."""
# A second host, and a name that its DNS server always knows.
HOST2, HOST2_6 = "192.168.123.50", "2000:abcd::50"
_READY = "ready.example.com"
ECHO_PORTS = (1234, 4321)
# The net between the world and its provider, as in the figure of the reference document.
NETWORK, ROUTER, PROVIDER = "192.168.0.0/24", "192.168.0.1", "192.168.0.2"
ROUTER6, PROVIDER6 = "2000:abcd:0:1::1", "2000:abcd:0:1::2"
INTERFACE = "lan"
_RESOLV_CONF = "/etc/resolv.conf"


class Offer(NamedTuple):
    """What a world offers to the provider that is connected to it.

    Attributes:
        ipv4: it routes IPv4. Without, it is what is behind an IPv6 tunnel.
        ipv6: it routes IPv6.
        network: the IPv4 net between them.
        router: its own address in that.
        address: the provider's.
        dns: where its DNS server listens, and what the provider's resolv.conf says.
    """

    ipv4: bool = True
    ipv6: bool = False
    network: str = NETWORK
    router: str = ROUTER
    address: str = PROVIDER
    dns: tuple[str, ...] = (HOST,)


class World:
    """A world of its own; connect a provider's `Qube` to it with `connect`.

    Raises:
        LabError: dnsmasq or another tool is not installed, or dnsmasq did not start.
    """

    def __init__(self, name: str = "world", offer: Offer | None = None) -> None:
        require("dnsmasq", "ip", "nsenter")
        self.offer = offer or Offer()
        self.qube = Qube(name)
        self.qube.wire(f"""
            ip address add {HOST}/32 dev lo; ip address add {HOST6}/128 dev lo nodad
            ip address add {HOST2}/32 dev lo; ip address add {HOST2_6}/128 dev lo nodad
        """)
        self.dns: Service | None = None
        self._records: Mapping[str, Sequence[str]] = ADDRESSES
        if self.offer.ipv4:
            self._serve_names()
        ports = [str(port) for port in ECHO_PORTS]
        self.echo = self.qube.spawn("echo", sys.executable, "-m", "qubes_guestnet.lab.echo", *ports)
        self._provider: tuple[Qube, str] | None = None

    def _serve_names(self) -> None:
        """Start the DNS server where the offer says, and end the former one."""
        if self.dns is not None:
            self.dns.stop()
        for address in self.offer.dns:
            if address not in (HOST, self.offer.router):
                self.qube.wire(f"ip address replace {address}/32 dev lo")
        dns = self.dns = self.qube.spawn(
            "dnsmasq", "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
            "--bind-dynamic", *(f"--listen-address={address}" for address in self.offer.dns),
            "--local=/example.com/", "--log-queries", f"--host-record={_READY},{HOST}",
            *(f"--host-record={name},{','.join(addresses)}" for name, addresses in self._records.items()),
        )  # fmt: skip

        def answers() -> bool:
            if not dns.running:
                raise LabError("dnsmasq did not start", f"its log: {dns.tail()}")
            known = [address for address in self.offer.dns if address != self.offer.router]
            with self.qube.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                return all(query(client, address, _READY, timeout=0.1) for address in known)

        eventually("dnsmasq answers", answers)

    def connect(self, provider: Qube, interface: str) -> None:
        """Lay a cable to `provider`, there named `interface`, and configure both ends; the former cable is gone."""
        self.qube.wire(f"""
            ip link delete {INTERFACE} 2>/dev/null || :
            ip link add {INTERFACE} type veth peer name {interface} netns {provider.pid}
        """)
        self._provider = (provider, interface)
        self._configure()

    def say(self, records: Mapping[str, Sequence[str]]) -> None:
        """Have the DNS server know these names below example.com from now on, and no others (NXDOMAIN).

        Args:
            records: name → addresses.
        """
        self._records = records
        self._serve_names()

    def change(self, offer: Offer) -> None:
        """Offer something else from now on: another net, other DNS servers, IPv6 or none. The host stays the same."""
        former, self.offer = self.offer, offer
        for address in set(former.dns) - set(offer.dns) - {HOST}:
            self.qube.wire(f"ip address delete {address}/32 dev lo 2>/dev/null || :")
        if offer.ipv4 and (offer.dns != former.dns or self.dns is None):
            self._serve_names()
        self._configure()

    def _configure(self) -> None:
        """Set addresses and routes of both ends, and the provider's resolv.conf."""
        if self._provider is None:
            return
        provider, interface = self._provider
        offer = self.offer
        length = ipaddress.ip_network(offer.network).prefixlen
        ends = ((self.qube, INTERFACE, offer.router, ROUTER6), (provider, interface, offer.address, PROVIDER6))
        for qube, name, address, address6 in ends:
            qube.wire(f"""
                ip address flush dev {name} scope global
                ip link set {name} up
                {f"ip address add {address}/{length} dev {name}" if offer.ipv4 else ""}
                {f"ip address add {address6}/64 dev {name} nodad" if offer.ipv6 else ""}
            """)
        provider.wire(f"""
            {f"ip route replace default via {offer.router} dev {interface}" if offer.ipv4 else ""}
            {f"ip -6 route replace default via {ROUTER6} dev {interface}" if offer.ipv6 else ""}
        """)
        if offer.ipv4:
            # In one step, as NetworkManager does it.
            text = "".join(f"nameserver {address}\n" for address in offer.dns)
            provider.write(f"{_RESOLV_CONF}.new", text)
            provider.path(f"{_RESOLV_CONF}.new").replace(provider.path(_RESOLV_CONF))

    def kill(self) -> None:
        """Make an end of it."""
        self.qube.kill()
