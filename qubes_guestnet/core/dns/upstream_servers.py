# SPDX-License-Identifier: GPL-2.0-or-later
"""Choose the upstream servers of a provider's virtual DNS addresses from one record of facts.

These are the qube's own servers, as far as client qubes can reach them: no loopback address (a stub resolver there
serves only this qube), and only IPv4, like the virtual addresses. If a VPN brings servers for all names, only these are
used (behaviour B37); likewise the user's global servers (behaviour B38). Queries are rejected rather than redirected
elsewhere, so that none leaves outside of its tunnel.

The first source that has an answer decides:

1. `[dns] servers` of guestnet.toml, the owner's choice.
2. systemd-resolved, by `_RANKS`. Queries are rejected if a server requires TLS, because client qubes send plain DNS, or
   if the link of the servers is down (B127).
3. If systemd-resolved has stopped answering: its last answer, for `HOLD_SECONDS`. Then queries are rejected until it
   answers again, or until the device of the last answer's link no longer exists (B128). A resolv.conf whose servers are
   routed by that same link cannot bypass it, and is used at once.
4. /etc/resolv.conf, if it names servers other than this qube's own virtual addresses. All of its lines count (B130).
   While the device of the VPN that they belong to is set down, queries are rejected, as with systemd-resolved.
5. The virtual addresses of this qube's own provider.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping

from ..endpoint import Endpoint, host_of
from ..namedtuple import NamedTuple
from ..owned_state import Last
from ..values import IPV4, IPAddress
from . import resolv_conf as resolver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# A restart of systemd-resolved takes a second, and its watchdog ends a hanging one after three minutes. This is longer
# than most restarts, but short enough that queries do not go to a vanished server for long. `[dns] hold` changes it.
HOLD_SECONDS = 60
LONGEST_HOLD = 3600
# Pause before the next request; a request to a hanging service costs half a second.
PATIENCE_SECONDS, LONG_PATIENCE_SECONDS = 3, 15


class LinkServers(NamedTuple):
    """The servers of one link in systemd-resolved.

    Args:
        ifindex: index of the link; 0 for the global servers.
        servers: in the order of use.
        everything: the link takes all names (it routes `~.`).
        uplink: the link is this qube's own uplink, whose servers we set ourselves.
        default_route: names that match no link's domain are looked up on this link.
        tls_only: queries must be sent over TLS, never in clear text (DNSOverTLS=yes).
    """

    ifindex: int
    servers: tuple[Endpoint, ...]
    everything: bool = False
    uplink: bool = False
    default_route: bool = True
    tls_only: bool = False


class Heard(NamedTuple):
    """The result of a request to systemd-resolved.

    Args:
        links: its servers; None if it did not answer.
        problem: why it did not answer, in words; "" if it is not installed or was never started.
    """

    links: tuple[LinkServers, ...] | None = None
    problem: str = ""


NEVER_THERE = Heard()


class NameFacts(NamedTuple):
    """The facts for the decision.

    Args:
        own: the virtual addresses of this qube's own provider. They are the last resort, because every uplink has them,
            even if names are meant to be looked up elsewhere.
        uplink: an uplink exists. Without one, queries to its provider would time out, so they are rejected at once.
        configured: `[dns] servers` of guestnet.toml; None if not set.
        heard: reply of systemd-resolved.
        resolv_conf: content of /etc/resolv.conf, empty for none.
        unreadable: why it cannot be read, "" if it can.
        kept: the file belongs to a VPN or a hook, see `resolv_conf.choose_owner`.
        last: the answer of systemd-resolved in force; None if it never answered, or if another source is in force.
        up: interface index of each device → whether it is up.
        names: interface index of each device → its name.
        ways: routes to the file's servers; needed only while `last` is in force.
        hold: how long the last answer stays valid, in seconds.
        now: seconds, of the same clock as `Last.lost`.
        virtual: the addresses that client qubes query. Unless this qube's own provider has them too, none of them is a
            server: a query redirected to itself left by the uplink unchanged.
        down: the device of the VPN that owns the file, while the device is set down; "" for none.
    """

    own: tuple[IPAddress, ...] = ()
    uplink: bool = True
    configured: tuple[Endpoint, ...] | None = None
    heard: Heard = NEVER_THERE
    resolv_conf: bytes = b""
    unreadable: str = ""
    kept: bool = False
    last: Last | None = None
    up: Mapping[int, bool] = {}
    names: Mapping[int, str] = {}
    ways: Mapping[IPAddress, int] = {}
    hold: int = HOLD_SECONDS
    now: int = 0
    virtual: tuple[IPAddress, ...] = ()
    down: str = ""

    @property
    def nowhere(self) -> frozenset[IPAddress]:
        """Return the virtual addresses that this qube's own provider does not have."""
        return frozenset(self.virtual) - frozenset(self.own)


# Why queries do not go to the expected servers; codes of `check`.
HELD, REFUSED, TLS_ONLY = "dns-held", "dns-refused", "dns-tls-only"
LINK_DOWN, UNREADABLE, FOREIGN = "dns-link-down", "dns-unreadable", "dns-foreign"


class Choice(NamedTuple):
    """The chosen servers.

    Args:
        servers: in the order of use, without duplicates; if there are none, queries are rejected.
        reason: their source, or why there are none, in one line.
        problem: one of the codes above, "" for none.
        last: systemd-resolved's answer to be recorded.
        again: choose again after this many seconds, because no event will cause it; 0 for never.
    """

    servers: tuple[Endpoint, ...]
    reason: str
    problem: str = ""
    last: Last | None = None
    again: int = 0


class _Rank(NamedTuple):
    """A rank of links whose servers have the same precedence.

    Args:
        reason: a description of the links, for messages.
        counts: selects the links.
        final: such servers decide even if client qubes cannot reach them, because using others would be a leak.
        version: only servers of this family decide; 0 for any.
    """

    reason: str
    counts: Callable[[LinkServers], bool]
    final: bool = False
    version: int = 0


# The first rank with servers decides. A link that serves only certain domains (DefaultRoute=no, no `~.`) has no rank.
_RANKS = (
    _Rank("global servers", lambda link: link.ifindex == 0, final=True, version=IPV4),
    _Rank("a link that takes all names", lambda link: link.everything and not link.uplink, final=True),
    _Rank("links other than the uplink", lambda link: link.default_route and not link.uplink),
    _Rank("the uplink", lambda link: link.uplink and (link.everything or link.default_route)),
)
_TLS_WORDS = "{} requires TLS (DNSOverTLS=yes), but client qubes send plain DNS"


def choose(facts: NameFacts) -> Choice:
    """Choose the servers."""
    if facts.configured is not None:
        return _configured(facts, facts.configured)
    if facts.heard.links is not None:
        return _by_rank(facts, facts.heard.links) or _without(facts)
    last = facts.last
    if last is None or (last.link and last.link not in facts.up and last.name not in facts.names.values()):
        return _without(facts)
    return _held(facts, last)


NOWHERE_WORDS = "only the virtual DNS addresses themselves"


def leads_nowhere(facts: NameFacts) -> bool:
    """Return whether all servers in the owner's file are virtual DNS addresses themselves."""
    return facts.configured is not None and all(server.address in facts.nowhere for server in facts.configured)


def _configured(facts: NameFacts, servers: tuple[Endpoint, ...]) -> Choice:
    """Return the owner's choice; addresses of this qube's provider are usable only while an uplink exists."""
    where = "guestnet.toml, [dns] servers"
    somewhere = [server for server in servers if server.address not in facts.nowhere]
    if not somewhere:
        return Choice((), f"{where}: {NOWHERE_WORDS}")
    found = tuple(server for server in somewhere if facts.uplink or server.address not in facts.own)
    return Choice(found, where if found else f"{where}: this qube's own provider, but there is no uplink")


def _by_rank(facts: NameFacts, links: tuple[LinkServers, ...]) -> Choice | None:
    """Return systemd-resolved's choice; None if it has none."""
    for rank in _RANKS:
        counting = [link for link in links if rank.counts(link)]
        if not rank.final:
            counting = [link for link in counting if facts.up.get(link.ifindex, True)]
        reason, chosen = f"systemd-resolved: {rank.reason}", _others(counting, facts)
        usable = [(link, server) for link, server in chosen if host_of(server.address)]
        clear = [(link, server) for link, server in usable if not link.tls_only]
        ready = [(link, server) for link, server in clear if not link.ifindex or facts.up.get(link.ifindex, True)]
        found = tuple(dict.fromkeys(server for _, server in ready))
        index = next((link.ifindex for link, _ in ready or usable or chosen), 0)
        # systemd-resolved may not know yet that another device has the same name by now.
        last = Last(found, index, name=facts.names.get(index, facts.last.name if facts.last else ""))
        if found:
            return Choice(found, reason, last=last)
        if clear:
            return Choice((), f"{reason}, but it is down", LINK_DOWN, last)
        if usable:
            return Choice((), f"{reason}: {_TLS_WORDS.format(usable[0][1])}", TLS_ONLY, last)
        if rank.final and any(rank.version in (0, server.address.version) for _, server in chosen):
            return Choice((), f"{reason}, but client qubes can reach none of its servers", last=last)
    return None


def _others(links: Iterable[LinkServers], facts: NameFacts) -> list[tuple[LinkServers, Endpoint]]:
    """Return servers of these links, without virtual addresses and those of this qube's own provider."""
    left_out = facts.nowhere.union(facts.own)
    return [(link, server) for link in links for server in link.servers if server.address not in left_out]


def _held(facts: NameFacts, last: Last) -> Choice:
    """Return the last answer of systemd-resolved, which stopped answering, for a bounded time; then no servers."""
    named = _named(facts)
    foreign = [server for server in named if server.address not in facts.own]
    same_way = last.link and all(facts.ways.get(server.address) == last.link for server in foreign)
    if foreign and facts.down:
        return _down(facts)._replace(last=last)
    if foreign and (facts.kept or same_way):
        return Choice(named, f"/etc/resolv.conf, because systemd-resolved {facts.heard.problem}", last=last)
    last = last._replace(lost=last.lost or max(facts.now, 1))
    # The clock has whole seconds, so up to one more may have passed: rather hold longer than shorter.
    left, problem = facts.hold + 1 - (facts.now - last.lost), facts.heard.problem
    if left > 0 and facts.hold:
        reason = f"systemd-resolved {problem}; its last answer stays valid for {facts.hold} s"
        return Choice(last.servers, reason, HELD, last, min(left, PATIENCE_SECONDS))
    reason = f"systemd-resolved {problem}, and other servers might be outside of the tunnel"
    return Choice((), reason, REFUSED, last, LONG_PATIENCE_SECONDS)


def _without(facts: NameFacts) -> Choice:
    """Choose without systemd-resolved: the file, else this qube's own provider."""
    if facts.unreadable:
        return Choice((), f"/etc/resolv.conf cannot be read: {facts.unreadable}", UNREADABLE)
    named, found = _lines(facts), _named(facts)
    if any(server.address not in facts.own for server in found):
        if facts.down:
            return _down(facts)
        servers = tuple(server for server in found if facts.uplink or server.address not in facts.own)
        return Choice(servers, "/etc/resolv.conf")
    if facts.heard.links is None and named and not found:
        # Addresses that only this qube can reach mean a resolver of its own, different from its provider's.
        return Choice((), "/etc/resolv.conf: a resolver that only this qube can reach")
    return _own(facts)


def _down(facts: NameFacts) -> Choice:
    """Reject queries while the device of the file's servers is down: the route would be outside of the tunnel."""
    return Choice((), f"/etc/resolv.conf: servers of {facts.down}, and it is down", LINK_DOWN)


def _own(facts: NameFacts) -> Choice:
    if not facts.own:
        return Choice((), "none known")
    if not facts.uplink:
        return Choice((), "this qube's own provider, but there is no uplink")
    for link in facts.heard.links or ():
        if link.uplink and link.tls_only and any(server.address in facts.own for server in link.servers):
            reason = f"this qube's own provider: {_TLS_WORDS.format(facts.own[0])}"
            return Choice((), reason, TLS_ONLY)
    return Choice(_usable(facts.own), "this qube's own provider")


def _named(facts: NameFacts) -> tuple[Endpoint, ...]:
    """Return servers of the file that client qubes can reach, from all of its lines."""
    return _usable(_lines(facts))


def _lines(facts: NameFacts) -> tuple[IPAddress, ...]:
    """Return servers of the file, without virtual addresses."""
    named = resolver.parse(facts.resolv_conf, every=True).servers
    return tuple(address for address in named if address not in facts.nowhere)


def _usable(addresses: Iterable[IPAddress]) -> tuple[Endpoint, ...]:
    """Return the addresses that client qubes can reach, each once."""
    return tuple(dict.fromkeys(Endpoint(address) for address in addresses if host_of(address)))


def asked_by_route(facts: NameFacts) -> tuple[IPAddress, ...]:
    """Return servers of the file whose route decides, because systemd-resolved has stopped answering; usually none."""
    if facts.configured is not None or facts.heard.links is not None or facts.last is None:
        return ()
    return tuple(server.address for server in _named(facts) if server.address not in facts.own)


_Address = ipaddress.IPv4Address


def pairs(virtual: Iterable[_Address], servers: Iterable[Endpoint]) -> tuple[tuple[_Address, Endpoint], ...]:
    """Return pairs of virtual address and server, exactly one per virtual address; none without servers.

    If there are fewer servers than virtual addresses, they are used in turn: queries to an address without a server
    would leave this qube unchanged, into a network that never answers them (behaviour B39).
    """
    servers = tuple(servers)
    return tuple((address, servers[i % len(servers)]) for i, address in enumerate(virtual) if servers)


# --- [dns] of guestnet.toml --------------------------------------------------------------------------------------


class DnsSettings(NamedTuple):
    """The owner's settings of the redirection.

    Args:
        servers: targets of the virtual addresses; None for the servers that this qube uses itself.
        hold: how long the last answer of systemd-resolved stays valid, in seconds.
    """

    servers: tuple[Endpoint, ...] | None = None
    hold: int = HOLD_SECONDS


SERVERS_EXPECTED = (
    '[dns] servers is a list of IPv4 addresses that client qubes can reach: ["10.8.0.1", "10.8.0.2:5353"]'
)
HOLD_EXPECTED = f"[dns] hold is a number of seconds from 0 to {LONGEST_HOLD}"


def parse_settings(table: Mapping[str, object]) -> DnsSettings:
    """Parse the table `[dns]`.

    Args:
        table: the TOML parser's value, with known keys (`config.check_keys`); {} for none.

    Raises:
        ValueError: it is invalid; the message names the key and the valid form.
    """
    servers, hold = table.get("servers"), table.get("hold", HOLD_SECONDS)
    if type(hold) is not int or not 0 <= hold <= LONGEST_HOLD:
        raise ValueError(HOLD_EXPECTED)
    return DnsSettings(None if servers is None else tuple(dict.fromkeys(_endpoints(servers))), hold)


def _endpoints(listed: object) -> Iterator[Endpoint]:
    from .. import endpoint

    if not isinstance(listed, list) or not listed:
        raise ValueError(SERVERS_EXPECTED)
    for word in listed:
        try:
            yield endpoint.parse(word)
        except (ValueError, AttributeError):
            raise ValueError(f"{str(word)[:40]!r} is not valid; {SERVERS_EXPECTED}") from None
