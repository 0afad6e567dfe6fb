# SPDX-License-Identifier: GPL-2.0-or-later
"""Each table of the qube that this program loads or knows: its name, its families, and the hooks of its chains.

The kernel calls the chains of one hook in ascending order of priority. So the order of all our chains, and of those
that the firewall's service makes, shows here and nowhere else. The namespace of a fake address has a table of its own
(`fake_address`). Names of tables are a public interface.
"""

from __future__ import annotations

from ..namedtuple import NamedTuple

QUBES = "qubes"
LIMITS = "qubes-limits"  # see `limits`
GUARD = "qubes-guard"  # of the family inet, owned by a provider's resident agent (system/nft/guard)
OFFLOAD = "qubes-offload"  # of the family inet, see `flowtable`
LOG = "qubes-log"  # of the family inet, owned by a running `firewall log` (system/nft/log)
FIREWALL = "qubes-firewall"  # loaded by qubes-firewall.service
DNS_SET = "dns-addr"  # of FIREWALL: the servers that its rules for DNS accept
FIREWALL_MAP = "qubes"  # of FIREWALL: the rules of each qube

NAME_SETS = "n-"  # of FIREWALL: a set with such a name has the addresses of a host

LIMITS_MAP = "qubes"  # of LIMITS: the limits of each vif

IP_FAMILIES = ("ip", "ip6")
ARP = "arp"  # a kernel can be built without it (CONFIG_NF_TABLES_ARP)
FAMILIES = (*IP_FAMILIES, ARP)
SETS = {"ip": ("allowed", "downstream"), "ip6": ("allowed", "downstream"), ARP: ("allowed",)}  # of QUBES

# nft(8) on priorities: what nft prints in place of these numbers, for the families ip, ip6 and inet.
NAMED = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}
_NAMES = {number: name for name, number in NAMED.items()}
CONNTRACK = -200  # NF_IP_PRI_CONNTRACK: before it the state of a connection is unknown
LAST = 2147483647


class Hook(NamedTuple):
    """The hook of a chain.

    Args:
        hook: prerouting, input, forward or postrouting.
        priority: lower is earlier.
        kind: filter or nat.
    """

    hook: str
    priority: int
    kind: str = "filter"

    def __str__(self) -> str:
        """Return its declaration in the language of nft."""
        return f"type {self.kind} hook {self.hook} priority {_NAMES.get(self.priority, self.priority)}"


QUBES_HOOKS = {
    "prerouting": Hook("prerouting", -300),
    "egress": Hook("postrouting", 300),  # after all NAT: packets as they leave
    "postrouting": Hook("postrouting", 100, "nat"),
    "input": Hook("input", 0),
    "forward": Hook("forward", 0),
    "dnat-dns": Hook("prerouting", -100, "nat"),
}
# New connections are counted after the rules that accept packets: what those drop is no connection. In prerouting
# directly after conntrack, before every chain that can drop a packet.
LIMITS_HOOKS = {
    "prerouting": Hook("prerouting", CONNTRACK + 1),
    "forward": Hook("forward", 10),
    "input": Hook("input", 10),
}
# As the firewall's service of qubes-core-agent has them.
FIREWALL_HOOKS = {
    "forward": Hook("forward", 0),
    "prerouting": Hook("prerouting", -300),
    "postrouting": Hook("postrouting", -300),
}
GUARD_HOOKS = {
    "prerouting": Hook("prerouting", -400),
    "input": Hook("input", -400),
    "before-input": Hook("input", -1),
    "behind-input": Hook("input", 1),
    "before-forward": Hook("forward", -1),
    "behind-forward": Hook("forward", 1),
    "behind-egress": Hook("postrouting", 301),
}
# Ahead of the chains that judge: what they refuse is reported too.
LOG_HOOK = Hook("forward", -2)
# After every other forward chain: a connection that any of them drops does not get here. Of two chains with this
# priority, the one loaded later is earlier, and a change of rules has ours loaded anew.
OFFLOAD_HOOKS = {"forward": Hook("forward", LAST)}
# At ingress, after all filters, which see the packets before the flowtable.
FLOWTABLE_PRIORITY = 300
