# SPDX-License-Identifier: GPL-2.0-or-later
"""What dom0 writes for programs from before Qubes 4.0: whole files for iptables-restore, in entries of up to 3 KB.

`/qubes-iptables…` begins with `/qubes-ip`, so a read of that prefix returns these entries too (behaviour B161).
"""

from __future__ import annotations

from collections.abc import Iterable

# Of a template, or of the qube itself: it knows the firewall's present entries.
FEATURE = "qubes-firewall"
RULES = "/qubes-iptables-domainrules/"
_HEADER = """*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -i vif+ -p udp -m udp --dport 68 -j DROP
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p icmp -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -j REJECT --reject-with icmp-host-prohibited
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i vif+ -o vif+ -j DROP
COMMIT
"""


def entries(clients: Iterable[tuple[int, str]]) -> dict[str, str]:
    """Return the entries of a qube, in dom0's order.

    Args:
        clients: of those connected to it, domain number (0: halted) and IPv4 address; each has the
            default rules.
    """
    rules = {
        f"{RULES}{domid}": f"*filter\n-A FORWARD -s {address} -j ACCEPT\n-A FORWARD -s {address} -j DROP\nCOMMIT\n"
        for domid, address in clients
        if domid
    }
    return {"/qubes-iptables-header": _HEADER, **rules, "/qubes-iptables": "reload"}
