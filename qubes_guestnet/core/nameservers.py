# SPDX-License-Identifier: GPL-2.0-or-later
"""Which name servers the virtual DNS addresses of a provider lead to.

The answer is what this qube itself asks, as far as another machine can ask it too: no loopback address (a stub
resolver listens there for this qube alone), and IPv4 only, for the virtual addresses are. Where a VPN brings servers
for everything those are asked and no others (behaviour B37); where somebody set servers for the whole qube, those
(behaviour B38). Rather nobody than somebody else: a question must not leave outside of the tunnel it is meant for.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable

from . import checks, resolver
from .namedtuple import NamedTuple
from .values import IPV4, IPAddress


class LinkServers(NamedTuple):
    """The servers that systemd-resolved has of one link.

    Args:
        ifindex: of the link; 0 for those of the whole qube.
        servers: in the order of use.
        everything: names of every domain are asked here (it routes `~.`).
        uplink: the link is this qube's own uplink, whose servers we set ourselves.
    """

    ifindex: int
    servers: tuple[IPAddress, ...]
    everything: bool = False
    uplink: bool = False


_Address = ipaddress.IPv4Address


class _Rank(NamedTuple):
    """Links whose servers count alike.

    Args:
        reason: what they are, for people.
        counts: which links.
        final: that there are such servers is the answer, also when nobody outside can ask them: to ask others
            instead would be a leak.
        version: only servers of this family make it the answer; 0 for any.
    """

    reason: str
    counts: Callable[[LinkServers], bool]
    final: bool = False
    version: int = 0


# The first that has any.
_RANKS = (
    _Rank("servers of the whole qube", lambda link: link.ifindex == 0, final=True, version=IPV4),
    _Rank("a link that takes the names of every domain", lambda link: link.everything and not link.uplink, final=True),
    _Rank("the links besides the uplink", lambda link: not link.uplink),
    _Rank("the uplink", lambda link: link.uplink),
)


def upstream(
    links: Iterable[LinkServers] | None, resolv_conf: bytes, own: Iterable[IPAddress], *, uplink: bool
) -> tuple[tuple[_Address, ...], str]:
    """Choose the servers.

    Args:
        links: of systemd-resolved; None when it is not to be had, then the file counts (behaviour B35).
        resolv_conf: what is in /etc/resolv.conf, empty for nothing.
        own: the virtual addresses of this qube's own provider. They are the way of last resort: they are on each
            uplink, also where the names are meant to go elsewhere.
        uplink: there is one. Without, its provider's addresses lead nowhere: who asks is to be told so at once, instead
            of waiting for an answer.

    Returns:
        The servers in the order of use, without repetition, and in one line where they are from.
    """
    own = tuple(own)
    entries = () if links is None else tuple(links)
    named = resolver.parse(resolv_conf).servers
    for rank in _RANKS:
        chosen = [server for link in entries if rank.counts(link) for server in link.servers if server not in own]
        found = _usable(chosen)
        if found or (rank.final and any(rank.version in (0, server.version) for server in chosen)):
            return found, f"systemd-resolved: {rank.reason}"
    found = _usable(named)
    if any(server not in own for server in found):
        return tuple(server for server in found if uplink or server not in own), "/etc/resolv.conf"
    if links is None and named and not found:
        # Addresses that nobody else can ask mean a resolver of this qube's own, and its provider's is another.
        return (), "/etc/resolv.conf: a resolver of this qube alone"
    if own and not uplink:
        return (), "this qube's own provider, and there is none now"
    return _usable(own), "this qube's own provider" if own else "none known"


def _usable(servers: Iterable[IPAddress]) -> tuple[_Address, ...]:
    """Those that another machine can ask, each once."""
    return tuple(dict.fromkeys(own for own in servers if isinstance(own, _Address) and checks.is_host(own)))


def pairs(virtual: Iterable[_Address], servers: Iterable[_Address]) -> tuple[tuple[_Address, _Address], ...]:
    """Virtual address → server, for each virtual address exactly one.

    Fewer servers than virtual addresses are used in turn: an address left out was a question that left this qube as it
    was, into a network where nobody answers it (behaviour B39). No server, no pair.
    """
    servers = tuple(servers)
    return tuple((address, servers[i % len(servers)]) for i, address in enumerate(virtual) if servers)
