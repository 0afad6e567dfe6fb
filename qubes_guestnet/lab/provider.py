# SPDX-License-Identifier: GPL-2.0-or-later
"""The provider's end of a qube's interface: how it comes and goes, and a simple provider by plain commands.

The scenarios use the real provider role (`cli/vif.py`). The plain one is for comparisons, and for tests of how a qube
behaves behind another program's provider: it forwards and masquerades, answers ARP for everything it routes
(`proxy_arp`, at once unless asked to be slow), has one host route a vif and the gateway's address on it, and sends the
virtual DNS addresses to the world's host. It filters nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from . import world as outside
from .qube import Qube

BACKEND_MAC = "fe:ff:ff:ff:ff:ff"
VIRTUAL_DNS = ("10.139.1.1", "10.139.1.2")
UPLINK = "ens6"
TUNNEL = "tun0"
GROUP_VIF = 2
METRIC_BASE = 32752


class Vif(NamedTuple):
    """The provider's end of a qube's interface.

    `mapped` says that the qube is told another address than its own. `proxy_arp` False answers ARP only for the
    gateway, as a Whonix gateway does; `proxy_delay` is in hundredths of a second, and at the kernel's default of 80 an
    answer comes at a random moment within 0.8 s. Only a plain provider heeds these two.
    """

    domain: int
    number: int
    mac: str
    address: str
    gateway: str
    address6: str | None = None
    gateway6: str | None = None
    mapped: bool = False
    proxy_arp: bool = True
    proxy_delay: int = 0

    @property
    def name(self) -> str:
        """Name of the device, such as vif4.0."""
        return f"vif{self.domain}.{self.number}"

    @property
    def far(self) -> str:
        """What the qube's end is named until the qube has it."""
        return f"far-{self.name}"


class Networking:
    """What a provider does for its vifs, in the steps Xen takes one after the other.

    Args:
        qube: the provider.
    """

    def __init__(self, qube: Qube) -> None:
        self.qube = qube

    def plug(self, vif: Vif) -> None:
        """The device comes, at the provider's end only."""
        # The qube's end gets its address with its qube: dom0 gives every qube the same one, and an agent here would
        # take that end for its own uplink.
        self.qube.wire(f"ip link add {vif.name} address {BACKEND_MAC} type veth peer name {vif.far}")

    def online(self, vif: Vif) -> None:
        """The hotplug script. LabError when it fails."""
        raise NotImplementedError

    def connect(self, vif: Vif, qube: Qube, interface: str) -> None:
        """The qube gets its end, named `interface`: on Xen the front end connects only when the script has said so."""
        self.qube.wire(f"ip link set {vif.far} netns {qube.pid} name {interface} address {vif.mac}")

    def unplug(self, vif: Vif, qube: Qube, interface: str) -> None:
        """The device goes, at both ends; `interface` is its name in the qube, "" when it never got there."""
        if vif.mapped and interface:
            qube.wire(f"ip link delete {interface}")  # its other end is in a network of its own
        else:
            self.qube.wire(f"ip link delete {vif.far if vif.mapped else vif.name}")

    def vanished(self, vif: Vif) -> None:
        """The qube is gone, and its end of the device with it, which the kernel does at some moment of its own."""
        if not vif.mapped:
            self.qube.wire(f"ip link delete {vif.name} 2>/dev/null || :")

    def offline(self, vif: Vif) -> None:
        """The hotplug script, when the device is gone."""


class Plain(Networking):
    """Plain commands for what the role does.

    Args:
        qube: the provider.
        uplink: name of its interface to the outside.
        ipv6: whether it forwards IPv6 as well.
        dns: where the virtual DNS addresses lead to; None: they are left as they are, for the next provider.
    """

    def __init__(self, qube: Qube, uplink: str, ipv6: bool, dns: str | None) -> None:
        super().__init__(qube)
        self.ipv6 = ipv6
        qube.wire(f"""
            echo 1 > /proc/sys/net/ipv4/ip_forward
            echo {int(ipv6)} > /proc/sys/net/ipv6/conf/all/forwarding
            # Else a new vif may not speak IPv6 for its first second, and that would be measured as the agent's.
            echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
            nft -f - <<'RULES'\n{_rules(uplink, dns)}RULES
        """)

    def online(self, vif: Vif) -> None:
        """Set the vif up."""
        ipv6 = ""
        if self.ipv6 and vif.address6:
            ipv6 = f"ip route add {vif.address6}/128 dev {vif.name} metric {METRIC_BASE - vif.domain}"
            ipv6 += f"; ip address add {vif.gateway6}/128 dev {vif.name} nodad" if vif.gateway6 else ""
        self.qube.wire(f"""
            ip link set {vif.name} group {GROUP_VIF}
            cd /proc/sys/net/ipv4
            echo {int(vif.proxy_arp)} > conf/{vif.name}/proxy_arp
            echo {vif.proxy_delay} > neigh/{vif.name}/proxy_delay
            ip link set {vif.name} up
            ip address add {vif.gateway}/32 dev {vif.name}
            ip route add {vif.address}/32 dev {vif.name} metric {METRIC_BASE - vif.domain}
            {ipv6}
        """)


def _rules(uplink: str, dns: str | None) -> str:
    out = f'chain out {{ type nat hook postrouting priority srcnat; oifname "{uplink}" masquerade; }}'
    virtual = ", ".join(VIRTUAL_DNS)
    names = "".join(
        f'iifname "vif*" ip daddr {{ {virtual} }} {protocol} dport 53 dnat to {dns}\n' for protocol in ("udp", "tcp")
    )
    into = f"chain in {{ type nat hook prerouting priority dstnat;\n{names}}}\n" if dns else ""
    return f"table ip lab {{ {into}{out}\n}}\ntable ip6 lab {{ {out}\n}}\n"


class Provider(Plain):
    """A plain provider with a world of its own behind its uplink.

    Args:
        name: host name.
        ipv6: whether it forwards IPv6 as well.
    """

    def __init__(self, name: str, ipv6: bool = False) -> None:
        self.world = outside.World(f"world-of-{name}", outside.Offer(ipv6=ipv6))
        qube = Qube(name)
        self.world.connect(qube, UPLINK)
        super().__init__(qube, UPLINK, ipv6, outside.HOST)


class Proxy(Plain):
    """A qube that passes on the network it has itself, by plain commands.

    Args:
        qube: started, with an uplink of its own.
        uplink: the name of that.
        ipv6: whether it forwards IPv6 as well.
    """

    def __init__(self, qube: Qube, uplink: str, ipv6: bool = False) -> None:
        # Names are asked of the next provider by its own virtual addresses: nothing is to be changed in their packets.
        super().__init__(qube, uplink, ipv6, None)
