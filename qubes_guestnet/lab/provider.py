# SPDX-License-Identifier: GPL-2.0-or-later
"""A simple routed provider by plain commands: what stands in for a network qube until the real provider role does.

It forwards and masquerades, answers ARP for everything it routes (`proxy_arp`, at once unless asked to be slow), has
one host route a vif and the gateway's address on it, and sends the virtual DNS addresses to the world's host. It
filters nothing: anti-spoofing and the firewall are the real role's.
"""

from __future__ import annotations

from typing import NamedTuple

from . import world as outside
from .qube import Qube

BACKEND_MAC = "fe:ff:ff:ff:ff:ff"
VIRTUAL_DNS = ("10.139.1.1", "10.139.1.2")
UPLINK = "ens6"
_GROUP_VIF = 2
_METRIC_BASE = 32752
_RULES = f"""
table ip lab {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    iifname "vif*" ip daddr {{ {", ".join(VIRTUAL_DNS)} }} udp dport 53 dnat to {outside.HOST}
    iifname "vif*" ip daddr {{ {", ".join(VIRTUAL_DNS)} }} tcp dport 53 dnat to {outside.HOST}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    oifname "{UPLINK}" masquerade
  }}
}}
table ip6 lab {{
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    oifname "{UPLINK}" masquerade
  }}
}}
"""


class Vif(NamedTuple):
    """The provider's end of a qube's interface.

    `proxy_arp` False answers ARP only for the gateway, as a Whonix gateway does; `proxy_delay` is in hundredths of a
    second, and at the kernel's default of 80 an answer comes at a random moment within 0.8 s.
    """

    name: str
    domain: int
    address: str
    gateway: str
    address6: str | None
    gateway6: str | None
    proxy_arp: bool = True
    proxy_delay: int = 0


class Provider:
    """A provider with a world of its own behind its uplink.

    Args:
        name: host name.
        ipv6: whether it forwards IPv6 as well.
    """

    def __init__(self, name: str, ipv6: bool = False) -> None:
        self.ipv6 = ipv6
        self.world = outside.World(f"world-of-{name}")
        self.qube = Qube(name)
        self.world.connect(self.qube, UPLINK, ipv6)
        self.qube.wire(f"""
            echo 1 > /proc/sys/net/ipv4/ip_forward
            echo {int(ipv6)} > /proc/sys/net/ipv6/conf/all/forwarding
            # Else a new vif may not speak IPv6 for its first second, and that would be measured as the agent's.
            echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
            nft -f - <<'RULES'\n{_RULES}RULES
        """)

    def attach(self, vif: Vif, qube: Qube, interface: str, mac: str) -> None:
        """Give `qube` a new interface named `interface` with address `mac`, served by `vif` here.

        As on Xen the provider's end is ready before the qube's gets its carrier: there the backend connects only when
        the hotplug script has said so, here the qube's end is moved to it last.
        """
        far = f"far-{vif.name}"
        ipv6 = ""
        if self.ipv6 and vif.address6:
            ipv6 = f"ip route add {vif.address6}/128 dev {vif.name} metric {_METRIC_BASE - vif.domain}"
            ipv6 += f"; ip address add {vif.gateway6}/128 dev {vif.name} nodad" if vif.gateway6 else ""
        self.qube.wire(f"""
            ip link add {vif.name} address {BACKEND_MAC} group {_GROUP_VIF} type veth peer name {far} address {mac}
            cd /proc/sys/net/ipv4
            echo {int(vif.proxy_arp)} > conf/{vif.name}/proxy_arp
            echo {vif.proxy_delay} > neigh/{vif.name}/proxy_delay
            ip link set {vif.name} up
            ip address add {vif.gateway}/32 dev {vif.name}
            ip route add {vif.address}/32 dev {vif.name} metric {_METRIC_BASE - vif.domain}
            {ipv6}
            ip link set {far} netns {qube.pid} name {interface}
        """)

    def detach(self, vif: str) -> None:
        """Take the interface away, at both ends."""
        self.qube.wire(f"ip link delete {vif}")

    def kill(self) -> None:
        """Let it crash, and its world with it."""
        self.qube.kill()
        self.world.qube.kill()


class Proxy(Provider):
    """A qube that passes on the network it has itself: what is between a network qube and the qubes of a user.

    Args:
        qube: started, with an uplink of its own.
        uplink: the name of that.
        ipv6: whether it forwards IPv6 as well.
    """

    def __init__(self, qube: Qube, uplink: str, ipv6: bool = False) -> None:
        self.ipv6, self.qube = ipv6, qube
        # Names are asked of the next provider by its own virtual addresses: nothing is to be changed in their packets.
        rule = f'chain out {{ type nat hook postrouting priority srcnat; oifname "{uplink}" masquerade; }}'
        tables = "".join(f"table {family} lab {{ {rule}\n}}\n" for family in ("ip", "ip6"))
        qube.wire(f"""
            echo 1 > /proc/sys/net/ipv4/ip_forward
            echo {int(ipv6)} > /proc/sys/net/ipv6/conf/all/forwarding
            echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
            nft -f - <<'RULES'\n{tables}RULES
        """)
