# SPDX-License-Identifier: GPL-2.0-or-later
"""The owned record: the agent's own configuration, kept in /run so that a restarted agent removes nothing else.

It has one line per fact, for readers and for `split()`; JSON would cost 5 ms and 120 kB to import. An invalid line is
ignored: a missing entry can leave an address behind, but a false one could remove a user's address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator

from . import endpoint
from .endpoint import Endpoint
from .namedtuple import NamedTuple
from .values import IPV4, IPV6, IPAddress, IPInterface, Link, Owned

OFFLOADED = "on "
HELD, FIREWALL = "held", "firewall"  # the reasons of a hold: the owner's setting; the firewall is not ready again yet
HEADER = "# Record of the configuration by qubes-guestnet. Do not edit.\n"


class Fallback(NamedTuple):
    """The reason why an interface no longer has a device route. It is valid as long as the gateway is the same.

    Args:
        gateway: the IPv4 gateway of the interface at that time.
        reason: the reason in words.
    """

    gateway: IPAddress
    reason: str


class Interface(NamedTuple):
    """The entry of one interface. A replugged interface has a new index and thus an empty entry.

    Args:
        ifindex: interface index.
        mac: link-layer address.
        owned: our configuration on it.
        fallback: None while the default-route style is as configured.
        removed: `uplink remove` took it down; it stays down until `uplink add` or `apply`.
        profile: checksum of the profile that NetworkManager has loaded, "" for none.
        hooked: input of the last run of the user's hooks, see `hooks.fingerprint`.
        resolved: we set name servers for this link in systemd-resolved.
    """

    ifindex: int
    mac: str
    owned: Owned = Owned()
    fallback: Fallback | None = None
    removed: bool = False
    profile: str = ""
    hooked: str = ""
    resolved: bool = False


# Instead of a checksum: another program's text stays (behaviour B123); there is none; it was changed before we read it.
FOREIGN, MISSING, DOUBTED = "foreign", "-", "?"


class Last(NamedTuple):
    """The answer of systemd-resolved that the virtual DNS addresses follow (behaviour B128).

    Args:
        servers: targets of the redirection; none: queries were rejected.
        link: interface index of the link that had the servers, 0 for the whole qube.
        lost: when systemd-resolved stopped answering, in seconds of a monotonic clock; 0 while it answers.
        name: name of that link; a restarted VPN creates another device with the same name.
    """

    servers: tuple[Endpoint, ...] = ()
    link: int = 0
    lost: int = 0
    name: str = ""


class Loaded(NamedTuple):
    """One nft transaction of ours that is in force.

    Args:
        text: checksum of the loaded text, "" for none, FOREIGN for a text that is not ours.
        seen: checksum of nft's listing right after. If a later one differs, another program changed the rules.
    """

    text: str = ""
    seen: str = ""


class Provided(NamedTuple):
    """Our configuration for client qubes, apart from their interfaces.

    Args:
        rules: the base rules.
        names: the redirection of the virtual DNS addresses.
        servers: its targets.
        proxied: name servers of the last start of the updates proxy.
        last: the answer of systemd-resolved in force; None if the servers have another source.
        hooks: time of the last start of the user's hooks, in seconds of the wall clock; 0 for never.
        forwarding: families (4, 6) whose forwarding we enabled. We do not disable what another program enabled.
        closed: `forwarding off` was run; forwarding stays closed until `forwarding on`.
        offload: whether connections are offloaded, in words that begin with OFFLOADED if they may be; "" before the
            resident agent, which alone decides that, has decided.
        connected: checksum of the addresses in dom0's list of client qubes when they were last protected.
        shut: families whose forwarding we closed, or are about to open: a closed one is our doing.
        stopped: families that another program closed. They stay closed until `forwarding on` (behaviour B133).
        hold: why forwarding stays closed after the rules were lost: HELD or FIREWALL, "" for neither.
        lost: tables and rules of other programs that were lost together with our rules, in words.
        unfiltered: `forwarding hold` was run: the firewall of the qubes is not ready, and nothing is forwarded before
            `forwarding release`.
        filtered: at `forwarding release` the firewall's chains existed: forwarding closes when they go (B155).
        reloaded: checksum of the servers for which qubes-firewall.service was last reloaded; "" for none.
        synced: checksum of the redirection's targets at the last run of `dns sync`.
        pending: targets of a redirection that is about to be loaded; None for none.
    """

    rules: Loaded = Loaded()
    names: Loaded = Loaded()
    servers: tuple[str, ...] = ()
    forwarding: frozenset[int] = frozenset()
    closed: bool = False
    offload: str = ""
    connected: str = ""
    last: Last | None = None
    hooks: int = 0
    shut: frozenset[int] = frozenset()
    stopped: frozenset[int] = frozenset()
    hold: str = ""
    lost: tuple[str, ...] = ()
    proxied: tuple[str, ...] = ()
    unfiltered: bool = False
    filtered: bool = False
    synced: str = ""
    reloaded: str = ""
    pending: tuple[str, ...] | None = None

    @property
    def leading(self) -> str:
        """Return the checksum of the targets of the virtual DNS addresses."""
        return checksum(" ".join((self.names.text, *self.servers)).encode())

    @property
    def offloading(self) -> bool:
        """Return whether a flowtable of ours may exist."""
        return self.offload.startswith(OFFLOADED)


class Record(NamedTuple):
    """The whole record.

    Args:
        interfaces: entries of the interfaces that were present in the last pass.
        detached: MAC addresses of interfaces that went, with no key written since. dom0 leaves the keys behind when it
            removes a provider, so keys alone do not mean that an interface is expected.
        provided: our configuration for client qubes.
        published: checksum of our last resolv.conf, and that of the one about to be published; "" for none.
    """

    interfaces: tuple[Interface, ...] = ()
    detached: frozenset[str] = frozenset()
    provided: Provided = Provided()
    published: str = ""

    def interface(self, link: Link) -> Interface:
        """Return the entry of a link; an empty entry if the record has none."""
        for entry in self.interfaces:
            if (entry.ifindex, entry.mac) == (link.ifindex, link.mac):
                return entry
        return Interface(link.ifindex, link.mac)

    def with_interface(self, changed: Interface) -> Record:
        """Return a record with this entry in place of the former one of the same index."""
        others = tuple(entry for entry in self.interfaces if entry.ifindex != changed.ifindex)
        return self._replace(interfaces=(*others, changed))

    def seen(self, macs: Iterable[str], present: Iterable[Link], keys_written: bool) -> Record:
        """Return the record updated with the presence of the interfaces that the keys name.

        Args:
            macs: MAC addresses of the interfaces that the keys name.
            present: the links found.
            keys_written: dom0 wrote keys since the last pass; an interface will follow.
        """
        here = {(link.ifindex, link.mac) for link in present}
        went = {entry.mac for entry in self.interfaces if (entry.ifindex, entry.mac) not in here}
        detached = frozenset() if keys_written else self.detached | went
        known = tuple(entry for entry in self.interfaces if (entry.ifindex, entry.mac) in here)
        fresh = tuple(self.interface(link) for link in present if self.interface(link) not in known)
        gone = detached & frozenset(macs) - {link.mac for link in present}
        return self._replace(interfaces=known + fresh, detached=gone)

    def revived(self, links: Iterable[Link]) -> Record:
        """Return a record in which these links are no longer marked as taken down."""
        wanted = {(link.ifindex, link.mac) for link in links}
        removed = ((entry, entry.removed and (entry.ifindex, entry.mac) not in wanted) for entry in self.interfaces)
        return self._replace(interfaces=tuple(entry._replace(removed=still) for entry, still in removed))


def checksum(data: bytes) -> str:
    """Return a checksum of a text, which detects accidental changes, not forged ones."""
    import binascii  # costs 0.3 ms, only with NetworkManager or in a provider

    return f"{binascii.crc32(data):08x}"


def render(record: Record) -> bytes:
    """Return the content of the file for a record; its order is stable, so an unchanged record gives the same file."""
    return (HEADER + "".join(f"{line}\n" for line in _lines(record))).encode()


def parse(data: bytes) -> Record:
    """Parse the content of the file; invalid lines are ignored."""
    interfaces: dict[int, Interface] = {}
    detached: set[str] = set()
    provided, published = Provided(), ""
    index = 0
    for line in data.decode("ascii", "replace").splitlines():
        word, _, rest = line.partition(" ")
        try:
            if word == "interface":
                index = 0  # facts below an invalid interface line belong to no interface
                entry = _interface(rest)
                index = entry.ifindex
                interfaces[index] = entry
            elif word == "detached":
                detached.add(rest)
            elif word == "published":
                published = rest
            elif word in _PROVIDED:
                provided = _PROVIDED[word](provided, rest)
            elif word in _FACTS and index in interfaces:
                interfaces[index] = _FACTS[word](interfaces[index], rest)
        except ValueError:
            continue
    return Record(tuple(interfaces.values()), frozenset(detached), provided, published)


def _lines(record: Record) -> Iterator[str]:
    for entry in sorted(record.interfaces):
        yield f"interface {entry.ifindex} {entry.mac}"
        yield from sorted(f"address {address}" for address in entry.owned.addresses)
        yield from sorted(f"neighbour {address}" for address in entry.owned.neighbours)
        if entry.fallback is not None:
            yield f"fallback {entry.fallback.gateway} {entry.fallback.reason}"
        if entry.removed:
            yield "removed"
        if entry.profile:
            yield f"profile {entry.profile}"
        if entry.hooked:
            yield f"hooked {entry.hooked}"
        if entry.resolved:
            yield "resolved"
    yield from (f"detached {mac}" for mac in sorted(record.detached))
    if record.published:
        yield f"published {record.published}"
    provided = record.provided
    for word, loaded in (("rules", provided.rules), ("names", provided.names)):
        if loaded.text:
            yield f"{word} {loaded.text} {loaded.seen}"
    if provided.servers:
        yield f"servers {' '.join(provided.servers)}"
    if provided.pending is not None:
        yield " ".join(("pending", *provided.pending))
    if provided.proxied:
        yield f"proxied {' '.join(provided.proxied)}"
    if provided.last is not None:
        last = provided.last
        name = last.name.encode("utf-8", "surrogateescape").hex() or "-"  # the kernel accepts any name without blanks
        yield " ".join(map(str, ("heard", last.link, last.lost, name, *last.servers)))
    if provided.hooks:
        yield f"hooks {provided.hooks}"
    yield from (f"forwarding {family}" for family in sorted(provided.forwarding))
    if provided.closed:
        yield "closed"
    if provided.offload:
        yield f"offload {provided.offload}"
    if provided.connected:
        yield f"connected {provided.connected}"
    yield from (f"shut {family}" for family in sorted(provided.shut))
    yield from (f"stopped {family}" for family in sorted(provided.stopped))
    if provided.hold:
        yield f"hold {provided.hold}"
    yield from (f"lost {words}" for words in provided.lost)
    yield from (word for word in ("unfiltered", "filtered") if getattr(provided, word))
    sums = (("synced", provided.synced), ("reloaded", provided.reloaded))
    yield from (f"{word} {text}" for word, text in sums if text)


def _interface(text: str) -> Interface:
    index, mac = text.split()
    return Interface(int(index), mac)


def _address(entry: Interface, text: str) -> Interface:
    address: IPInterface = ipaddress.ip_interface(text)
    return entry._replace(owned=entry.owned._replace(addresses=entry.owned.addresses | {address}))


def _neighbour(entry: Interface, text: str) -> Interface:
    address: IPAddress = ipaddress.ip_address(text)
    return entry._replace(owned=entry.owned._replace(neighbours=entry.owned.neighbours | {address}))


def _fallback(entry: Interface, text: str) -> Interface:
    gateway, reason = text.split(" ", 1)
    return entry._replace(fallback=Fallback(ipaddress.ip_address(gateway), reason))


def _removed(entry: Interface, _text: str) -> Interface:
    return entry._replace(removed=True)


def _profile(entry: Interface, text: str) -> Interface:
    return entry._replace(profile=text)


def _hooked(entry: Interface, text: str) -> Interface:
    return entry._replace(hooked=text)


def _resolved(entry: Interface, _text: str) -> Interface:
    return entry._replace(resolved=True)


_FACTS: dict[str, Callable[[Interface, str], Interface]] = {
    "address": _address,
    "neighbour": _neighbour,
    "fallback": _fallback,
    "removed": _removed,
    "profile": _profile,
    "hooked": _hooked,
    "resolved": _resolved,
}


def _loaded(text: str) -> Loaded:
    loaded, seen = text.split()
    return Loaded(loaded, seen)


def _proxied(provided: Provided, text: str) -> Provided:
    return provided._replace(proxied=tuple(str(endpoint.parse(word)) for word in text.split()))


def _pending(provided: Provided, text: str) -> Provided:
    return provided._replace(pending=tuple(str(endpoint.parse(word)) for word in text.split()))


def _servers(provided: Provided, text: str) -> Provided:
    return provided._replace(servers=tuple(str(endpoint.parse(word)) for word in text.split()))


def _heard(provided: Provided, text: str) -> Provided:
    link, lost, name, *servers = text.split()
    device = "" if name == "-" else bytes.fromhex(name).decode("utf-8", "surrogateescape")
    return provided._replace(last=Last(tuple(map(endpoint.parse, servers)), int(link), int(lost), device))


def _forwarding(provided: Provided, text: str) -> Provided:
    return provided._replace(forwarding=provided.forwarding | _family(text))


def _shut(provided: Provided, text: str) -> Provided:
    return provided._replace(shut=provided.shut | _family(text))


def _stopped(provided: Provided, text: str) -> Provided:
    return provided._replace(stopped=provided.stopped | _family(text))


def _hold(provided: Provided, text: str) -> Provided:
    return provided._replace(hold=text if text in (HELD, FIREWALL) else "")


def _family(text: str) -> frozenset[int]:
    return frozenset({int(text)} & {IPV4, IPV6})


_PROVIDED: dict[str, Callable[[Provided, str], Provided]] = {
    "rules": lambda provided, text: provided._replace(rules=_loaded(text)),
    "names": lambda provided, text: provided._replace(names=_loaded(text)),
    "servers": _servers,
    "pending": _pending,
    "proxied": _proxied,
    "heard": _heard,
    "hooks": lambda provided, text: provided._replace(hooks=int(text)),
    "forwarding": _forwarding,
    "closed": lambda provided, _text: provided._replace(closed=True),
    "offload": lambda provided, text: provided._replace(offload=text),
    "connected": lambda provided, text: provided._replace(connected=text),
    "shut": _shut,
    "stopped": _stopped,
    "hold": _hold,
    "lost": lambda provided, text: provided._replace(lost=(*provided.lost, text)),
    "unfiltered": lambda provided, _text: provided._replace(unfiltered=True),
    "filtered": lambda provided, _text: provided._replace(filtered=True),
    "synced": lambda provided, text: provided._replace(synced=text),
    "reloaded": lambda provided, text: provided._replace(reloaded=text),
}
