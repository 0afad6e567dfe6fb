# SPDX-License-Identifier: GPL-2.0-or-later
"""Choose the upstream servers of a provider's virtual DNS addresses from one record of facts.

These are the qube's own servers, as far as client qubes can reach them: no loopback address (a stub resolver there
serves only this qube), and only IPv4, like the virtual addresses. If a VPN brings servers for all names, only these are
used (behaviour B37); likewise the user's global servers (behaviour B38). Queries are rejected rather than redirected
elsewhere, so that none leaves outside of its tunnel.

What decides, the first that says something:

1. `[dns] servers` of guestnet.toml: the owner's word.
2. systemd-resolved, by `_RANKS`. A server that requires TLS is useless for client qubes, which send plain DNS;
   a link that is down carries no question: in both cases the questions are refused (B127).
3. systemd-resolved was heard before and is not heard now: what it said last, for `HOLD_SECONDS`; then the questions are
   refused until it is heard again, or the link that had the names is gone as a device (B128). A file that leads out
   by that same link is no way around it, and is used at once.
4. /etc/resolv.conf, if it names others than this qube's own virtual addresses. All of its lines count (B130). While
   the VPN's device whose servers they are is set down, the questions are refused, as with systemd-resolved.
5. the virtual addresses of this qube's own provider.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator

from ..endpoint import Endpoint, host_of
from ..namedtuple import NamedTuple
from ..owned_state import Last
from ..values import IPV4, IPAddress
from . import resolv_conf as resolver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# A restart of systemd-resolved takes a second, and one that hangs is ended by its watchdog after three minutes: longer
# than most restarts, and short enough that a server that is no more is not asked for long. `[dns] hold` changes it.
HOLD_SECONDS = 60
LONGEST_HOLD = 3600
# Until it is looked at again; a look at one that hangs costs half a second.
PATIENCE_SECONDS, LONG_PATIENCE_SECONDS = 3, 15


class LinkServers(NamedTuple):
    """The servers that systemd-resolved has of one link.

    Args:
        ifindex: of the link; 0 for those of the whole qube.
        servers: in the order of use.
        everything: names of every domain are asked here (it routes `~.`).
        uplink: the link is this qube's own uplink, whose servers we set ourselves.
        default_route: names that no link's domain fits are asked here.
        tls_only: its servers are to be asked by TLS and never in clear (DNSOverTLS=yes).
    """

    ifindex: int
    servers: tuple[Endpoint, ...]
    everything: bool = False
    uplink: bool = False
    default_route: bool = True
    tls_only: bool = False


class Heard(NamedTuple):
    """What came of asking systemd-resolved.

    Args:
        links: its servers; None when there was no answer.
        problem: why there was none, in words; "" where it is not installed, or was never started.
    """

    links: tuple[LinkServers, ...] | None = None
    problem: str = ""


NEVER_THERE = Heard()


class NameFacts(NamedTuple):
    """All that the decision needs to know.

    Args:
        own: the virtual addresses of this qube's own provider. They are the way of last resort: they are on each
            uplink, also where the names are meant to go elsewhere.
        uplink: there is one. Without, its provider's addresses lead nowhere: questions are then refused at once,
            instead of running out.
        configured: `[dns] servers` of guestnet.toml; None where it says nothing.
        heard: of systemd-resolved.
        resolv_conf: what is in /etc/resolv.conf, empty for nothing.
        unreadable: why it cannot be read, "" when it can.
        kept: the file is taken to be a VPN's or a hook's, see `resolv_conf.choose_owner`.
        last: the answer of systemd-resolved that is in force; None when it was never heard, or something else counts.
        up: interface index of each device there is, and whether it is up.
        names: interface index of each device there is, and its name.
        ways: by which device a server of the file is reached; needed only while `last` counts.
        hold: how long the last answer holds, in seconds.
        now: seconds, of the same clock as `Last.lost`.
        virtual: the addresses that the qubes behind this one ask. Where its own provider does not have them, one of
            them is no server: led to itself, a question left by the uplink as it was.
        down: the device of the VPN whose file it is, while that is set down; "" for none.
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
        """Virtual addresses that are not those of this qube's own provider."""
        return frozenset(self.virtual) - frozenset(self.own)


# Why names are not led where the owner would expect; codes of `check`.
HELD, REFUSED, TLS_ONLY = "dns-held", "dns-refused", "dns-tls-only"
LINK_DOWN, UNREADABLE, FOREIGN = "dns-link-down", "dns-unreadable", "dns-foreign"


class Choice(NamedTuple):
    """The answer.

    Args:
        servers: in the order of use, without repetition; none: questions are refused.
        reason: in one line where they are from, or why there are none.
        problem: one of the codes above, "" where all is well.
        last: what to remember of systemd-resolved's answer.
        again: look again after so many seconds, for no event will tell; 0 for no need.
    """

    servers: tuple[Endpoint, ...]
    reason: str
    problem: str = ""
    last: Last | None = None
    again: int = 0


class _Rank(NamedTuple):
    """Links whose servers count alike.

    Args:
        reason: what they are, for people.
        counts: which links.
        final: that there are such servers is the answer, also when no other qube can ask them: to ask others
            instead would be a leak.
        version: only servers of this family make it the answer; 0 for any.
    """

    reason: str
    counts: Callable[[LinkServers], bool]
    final: bool = False
    version: int = 0


# The first that has any. A link that is asked for some domains only (DefaultRoute=no, without `~.`) is in none.
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
    """Return whether all servers of the owner's file are addresses of the virtual DNS itself."""
    return facts.configured is not None and all(server.address in facts.nowhere for server in facts.configured)


def _configured(facts: NameFacts, servers: tuple[Endpoint, ...]) -> Choice:
    """Return the owner's own; its provider's addresses lead somewhere only while there is an uplink."""
    where = "guestnet.toml, [dns] servers"
    somewhere = [server for server in servers if server.address not in facts.nowhere]
    if not somewhere:
        return Choice((), f"{where}: {NOWHERE_WORDS}")
    found = tuple(server for server in somewhere if facts.uplink or server.address not in facts.own)
    return Choice(found, where if found else f"{where}: this qube's own provider, but there is no uplink")


def _by_rank(facts: NameFacts, links: tuple[LinkServers, ...]) -> Choice | None:
    """Return what systemd-resolved says, if that is an answer."""
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
        # systemd-resolved may not have heard yet that the device is another one by now.
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
    """Return servers of these links, without those of this qube's own provider and what leads nowhere."""
    left_out = facts.nowhere.union(facts.own)
    return [(link, server) for link in links for server in link.servers if server.address not in left_out]


def _held(facts: NameFacts, last: Last) -> Choice:
    """systemd-resolved was there and is not heard: what it said last, for a bounded time, and then nothing."""
    named = _named(facts)
    foreign = [server for server in named if server.address not in facts.own]
    same_way = last.link and all(facts.ways.get(server.address) == last.link for server in foreign)
    if foreign and facts.down:
        return _down(facts)._replace(last=last)
    if foreign and (facts.kept or same_way):
        return Choice(named, f"/etc/resolv.conf, because systemd-resolved {facts.heard.problem}", last=last)
    last = last._replace(lost=last.lost or max(facts.now, 1))
    # Of whole seconds one may have passed already: rather longer than shorter.
    left, problem = facts.hold + 1 - (facts.now - last.lost), facts.heard.problem
    if left > 0 and facts.hold:
        reason = f"systemd-resolved {problem}; its last answer stays valid for {facts.hold} s"
        return Choice(last.servers, reason, HELD, last, min(left, PATIENCE_SECONDS))
    reason = f"systemd-resolved {problem}, and other servers might be outside of the tunnel"
    return Choice((), reason, REFUSED, last, LONG_PATIENCE_SECONDS)


def _without(facts: NameFacts) -> Choice:
    """Without systemd-resolved: the file, else this qube's own provider."""
    if facts.unreadable:
        return Choice((), f"/etc/resolv.conf cannot be read: {facts.unreadable}", UNREADABLE)
    named, found = _lines(facts), _named(facts)
    if any(server.address not in facts.own for server in found):
        if facts.down:
            return _down(facts)
        servers = tuple(server for server in found if facts.uplink or server.address not in facts.own)
        return Choice(servers, "/etc/resolv.conf")
    if facts.heard.links is None and named and not found:
        # Addresses that only this qube can ask mean a resolver of its own, and its provider's is another.
        return Choice((), "/etc/resolv.conf: a resolver that only this qube can reach")
    return _own(facts)


def _down(facts: NameFacts) -> Choice:
    """The way of the file's servers is another one while their device is down, and leads outside of the tunnel."""
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
    """Return servers of the file that another machine can ask, all of its lines."""
    return _usable(_lines(facts))


def _lines(facts: NameFacts) -> tuple[IPAddress, ...]:
    """Return servers of the file, without what leads nowhere."""
    named = resolver.parse(facts.resolv_conf, every=True).servers
    return tuple(address for address in named if address not in facts.nowhere)


def _usable(addresses: Iterable[IPAddress]) -> tuple[Endpoint, ...]:
    """Return those that another machine can ask, each once."""
    return tuple(dict.fromkeys(Endpoint(address) for address in addresses if host_of(address)))


def asked_by_route(facts: NameFacts) -> tuple[IPAddress, ...]:
    """Return servers of the file whose way out decides, because systemd-resolved is not heard any more; mostly none."""
    if facts.configured is not None or facts.heard.links is not None or facts.last is None:
        return ()
    return tuple(server.address for server in _named(facts) if server.address not in facts.own)


_Address = ipaddress.IPv4Address


def pairs(virtual: Iterable[_Address], servers: Iterable[Endpoint]) -> tuple[tuple[_Address, Endpoint], ...]:
    """Return virtual address → server, for each virtual address exactly one.

    Fewer servers than virtual addresses are used in turn: an address left out was a question that left this qube as it
    was, into a network where it is never answered (behaviour B39). No server, no pair.
    """
    servers = tuple(servers)
    return tuple((address, servers[i % len(servers)]) for i, address in enumerate(virtual) if servers)


# --- [dns] of guestnet.toml --------------------------------------------------------------------------------------


class DnsSettings(NamedTuple):
    """What the owner says of names.

    Args:
        servers: where the virtual addresses are to lead; None for where this qube asks itself.
        hold: how long the last answer of systemd-resolved holds, in seconds.
    """

    servers: tuple[Endpoint, ...] | None = None
    hold: int = HOLD_SECONDS


SERVERS_EXPECTED = (
    '[dns] servers is a list of IPv4 addresses that client qubes can reach: ["10.8.0.1", "10.8.0.2:5353"]'
)
HOLD_EXPECTED = f"[dns] hold is a number of seconds from 0 to {LONGEST_HOLD}"


def parse_settings(table: object) -> DnsSettings:
    """Return the table `[dns]`.

    Args:
        table: as the TOML parser gives it; {} where there is none.

    Raises:
        ValueError: of something that is not valid, in words that name the key and what would be right.
    """
    if not isinstance(table, dict):
        raise ValueError("dns is a table: [dns]")
    for key in table:
        if key not in ("servers", "hold"):
            raise ValueError(f"[dns] {key[:40]!r} is not a known key; its keys are servers and hold")
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
