# SPDX-License-Identifier: GPL-2.0-or-later
"""The owned record: what we made, kept in /run so that a restarted agent removes that and nothing else.

One line a fact, for people and for `split()`; JSON would cost 5 ms and 120 kB to import. A line that does not parse is
left out: owning too little leaves an address behind, owning what a damaged file invents could remove a user's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator

from . import endpoint
from .endpoint import Endpoint
from .namedtuple import NamedTuple
from .values import IPV4, IPV6, IPAddress, IPInterface, Link, Owned

OFFLOADED = "on "
HELD, FIREWALL = "held", "firewall"  # as the owner of the qube wants; until the firewall of the qubes is there again
HEADER = "# Record of the configuration by qubes-guestnet. Do not edit.\n"


class Fallback(NamedTuple):
    """Why an interface left the device route. Holds as long as the gateway is the same.

    Args:
        gateway: the IPv4 gateway the interface had.
        reason: for people.
    """

    gateway: IPAddress
    reason: str


class Interface(NamedTuple):
    """What the record knows of one interface. A replugged one has a new index, and starts empty.

    Args:
        ifindex: interface index.
        mac: link-layer address.
        owned: what we made on it.
        fallback: None while the default-route style is as configured.
        removed: taken down by `uplink remove`, and kept down until `uplink add` or `apply`.
        profile: sum of the NetworkManager profile that NetworkManager has taken up, "" for none.
        hooked: what the user's hooks were told last, see `hooks.fingerprint`.
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


# In place of a sum: another program's is kept (behaviour B123); nothing is there; others changed it before our look.
FOREIGN, MISSING, DOUBTED = "foreign", "-", "?"


class Last(NamedTuple):
    """The answer of systemd-resolved that the virtual DNS addresses follow (behaviour B128).

    Args:
        servers: where they lead to; none: questions were refused.
        link: interface index of the link that had the names, 0 for the whole qube.
        lost: since when it is not heard any more, in seconds of a clock that only goes forward; 0 while it is.
        name: of that link. A VPN that starts anew makes another device of the same name.
    """

    servers: tuple[Endpoint, ...] = ()
    link: int = 0
    lost: int = 0
    name: str = ""


class Loaded(NamedTuple):
    """One nft transaction of ours that is in force.

    Args:
        text: sum of the text that was loaded, "" for never, FOREIGN for one that is not ours.
        seen: sum of what nft listed right after. If a later listing has another sum, another program changed the rules.
    """

    text: str = ""
    seen: str = ""


class Provided(NamedTuple):
    """What was made for the qubes behind this one, apart from their interfaces.

    Args:
        rules: the base rules.
        names: the redirection of the virtual DNS addresses.
        servers: where it leads to.
        proxied: what the updates proxy was last started with.
        last: the answer of systemd-resolved that is in force; None when something else counts.
        hooks: when the user's hooks were started last, in seconds of the wall clock; 0 for never.
        forwarding: families (4, 6) whose forwarding we switched on. What another switched on is not ours to end.
        closed: `forwarding off` was run; forwarding stays closed until `forwarding on`.
        offload: whether connections are offloaded, in words that begin with OFFLOADED if they may be; "" before the
            resident agent, which alone does it, has looked.
        connected: sum of the addresses that dom0 lists as behind this qube, when they were last protected.
        shut: families whose forwarding we have closed, or are about to open: that one is closed is our doing.
        stopped: families that another program closed. They stay closed until `forwarding on` (behaviour B133).
        hold: why forwarding stays closed after the rules were lost: HELD or FIREWALL, "" for no such reason.
        lost: what others had beside our rules, and lost together with them, in words.
        unfiltered: `forwarding hold` was said: the firewall of the qubes is not ready, and nothing is forwarded before
            `forwarding release`.
        filtered: at `forwarding release` the firewall's chains were there: nothing is forwarded when they go (B155).
        reloaded: sum of the servers that qubes-firewall.service was last reloaded for; "" for none.
        synced: sum of where the virtual DNS addresses led to when `dns sync` was last run.
        pending: where a redirection that is about to be loaded leads to; None when there is none.
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
        """Sum of where the virtual DNS addresses lead to."""
        return checksum(" ".join((self.names.text, *self.servers)).encode())

    @property
    def offloading(self) -> bool:
        """Whether there may be a flowtable of ours."""
        return self.offload.startswith(OFFLOADED)


class Record(NamedTuple):
    """The whole record.

    Args:
        interfaces: those present in the last pass.
        detached: addresses of interfaces that were there and went, with no key written since. dom0 leaves the keys
            behind when it takes a provider away, so they alone do not say that an interface is expected.
        provided: what was made for others.
        published: sum of what we published last as resolv.conf, with that of what we are about to; "" for nothing.
    """

    interfaces: tuple[Interface, ...] = ()
    detached: frozenset[str] = frozenset()
    provided: Provided = Provided()
    published: str = ""

    def interface(self, link: Link) -> Interface:
        """Return the entry of a link; an empty one where there is none."""
        for entry in self.interfaces:
            if (entry.ifindex, entry.mac) == (link.ifindex, link.mac):
                return entry
        return Interface(link.ifindex, link.mac)

    def with_interface(self, changed: Interface) -> Record:
        """Return a record with this entry in place of the former one of the same index."""
        others = tuple(entry for entry in self.interfaces if entry.ifindex != changed.ifindex)
        return self._replace(interfaces=(*others, changed))

    def seen(self, macs: Iterable[str], present: Iterable[Link], keys_written: bool) -> Record:
        """Return a record brought up to date with which of the interfaces that the keys name are there.

        Args:
            macs: addresses of the interfaces that the keys name.
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
        """Return a record in which these links are not taken down any longer."""
        wanted = {(link.ifindex, link.mac) for link in links}
        removed = ((entry, entry.removed and (entry.ifindex, entry.mac) not in wanted) for entry in self.interfaces)
        return self._replace(interfaces=tuple(entry._replace(removed=still) for entry, still in removed))


def checksum(data: bytes) -> str:
    """Return a word that tells one text from another; against change by accident, not by intent."""
    import binascii  # 0.3 ms that a qube without NetworkManager and without others behind it need not pay

    return f"{binascii.crc32(data):08x}"


def render(record: Record) -> bytes:
    """Return the record as the file holds it; a stable order, so that an unchanged record is an unchanged file."""
    return (HEADER + "".join(f"{line}\n" for line in _lines(record))).encode()


def parse(data: bytes) -> Record:
    """Return the file's content as a record; what does not parse is left out."""
    interfaces: dict[int, Interface] = {}
    detached: set[str] = set()
    provided, published = Provided(), ""
    index = 0
    for line in data.decode("ascii", "replace").splitlines():
        word, _, rest = line.partition(" ")
        try:
            if word == "interface":
                index = 0  # facts below a damaged line belong to no interface
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
        name = last.name.encode("utf-8", "surrogateescape").hex() or "-"  # the kernel takes any name without blanks
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
