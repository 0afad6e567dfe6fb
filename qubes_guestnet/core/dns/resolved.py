# SPDX-License-Identifier: GPL-2.0-or-later
"""The desired settings of an interface in systemd-resolved, for programs that query it directly (NSS in Fedora).

resolv.conf does not depend on them: it names the servers itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..namedtuple import NamedTuple
from ..uplink.desired import Flags
from ..values import IPAddress

# The routing-only domain ".": queries for every domain go to this link's servers.
EVERY_DOMAIN = "~."


class LinkNames(NamedTuple):
    """The name service of one link.

    Args:
        servers: name servers as text, in order.
        domains: domains, with a leading "~" if routing-only.
        default_route: names that match no link's domain are looked up on this link.
    """

    servers: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    default_route: bool = False


def wanted(servers: Iterable[IPAddress], flags: Flags, *, networkmanager: bool, there: bool) -> LinkNames | None:
    """Return the desired settings of a link; None if we set nothing on it.

    Args:
        servers: servers from dom0.
        flags: flags of this qube; `disable-dns-server` is relevant.
        networkmanager: NetworkManager owns the link and sets its servers in systemd-resolved from its profile.
        there: the interface is present and we configure it.
    """
    texts = tuple(map(str, servers))
    if not there or not texts or networkmanager or flags.disable_dns_server:
        return None
    return LinkNames(texts, (EVERY_DOMAIN,), default_route=True)


def parse_resolvectl(dns: str, domain: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Parse the servers and domains printed by `resolvectl dns LINK` and `resolvectl domain LINK` ("Link 2 (eth0):
    …").
    """
    return tuple(dns.partition("): ")[2].split()), tuple(domain.partition("): ")[2].split())
