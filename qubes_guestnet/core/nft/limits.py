# SPDX-License-Identifier: GPL-2.0-or-later
"""The limits of each qube's unanswered connections, so that no qube uses up shared resources (behaviour B112).

One qube's 65,535 packets to the virtual DNS addresses took every translated port of the name server, and for half a
minute no other qube had names. The same goes for conntrack as a whole, and for neighbours of the uplink.

Each vif has two sets: `vifN.M-names` (to port 53) and `vifN.M-connections` (all, names a second time). They are in a
table of their own, because a table is listed with all that is in it. A new connection becomes an element (its `ct id`,
which it has before it is confirmed, since Linux 5.4), and the first answer makes that element expire. `size` is the
limit: if the set is full, the element cannot be added, and the packet is dropped before the connection is confirmed and
before it gets a translated port. Established (assured) connections are not limited.

An element must not expire before conntrack forgets its connection: otherwise a qube that opens new connections and then
continues the old ones would get its whole limit anew with each timeout. So:

* every packet that extends a connection in conntrack also extends its element, directly after conntrack: a packet with
  TTL 1 ends before the hook forward, but conntrack has counted it;
* the timeouts are those of this kernel (`net.netfilter.nf_conntrack_*_timeout*`) plus one second, because conntrack
  starts the timeout when the packet leaves;
* an ICMP error is not an answer: conntrack keeps the connection;
* a DNS query counts as a connection until conntrack forgets it, even if it was answered, because it occupies the
  translated port until then; `ct expiration` gives that time.

A `ct id` has 32 bits. If a set is full, one in 2**32 / size of the refused connections has the id of an element, is
mistaken for that element's connection, and passes: at a size of 1000, 65,000 refused connections have a chance of 1.5 %
that one passes. Addresses, protocol and ports would be exact, but nft 1.0.6 allows no `ct proto-src` in a
concatenation.

Rejected alternatives: `ct count` also counts answered connections, and walks all connections of a qube (up to once each
clock tick); a rate limit for new connections slows down a qube with many answered ones; a conntrack timeout makes a
flood shorter but not smaller. An answered element expires (`update … timeout`) and is not deleted, because before Linux
6.1.47 a deletion by a rule did not reduce the size of the set. It expires once: expired elements count until the kernel
removes them, and a new element for each packet of an answered connection would fill the set. A reject would use the
kernel's common budget of ICMP errors, so packets are dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from ..namedtuple import NamedTuple
from ..values import IPV4, IPV6
from ..vif_name import parse_name
from .tables import LIMITS as TABLE
from .tables import LIMITS_HOOKS
from .tables import LIMITS_MAP as MAP

TYPE_CHECKING = False  # of `typing`, which costs 5 ms and 1 MB (see system/deferred_imports)
if TYPE_CHECKING:
    from typing import Any

KEYS = ("unanswered_names", "unanswered_connections")
_RANGES = ((50, 60000), (500, 1000000))
# The part of conntrack that one qube's unanswered connections may use.
SHARE = 4

# Names of protocols are those that nft knows itself: /etc/protocols (netbase) is not in a minimal template.
_WORDS = {IPV4: ("ip", "icmp"), IPV6: ("ip6", "icmpv6")}
_KIND = "typeof ct id; flags dynamic,timeout; timeout 30s;"
_ANSWERED = "10ms"
_SPARE = 1  # seconds


class _Fields(NamedTuple):
    names: int
    connections: int


class Limits(_Fields):
    """The limits of one qube's unanswered connections, per family.

    Args:
        names: connections to port 53, by TCP or UDP.
        connections: all, with those of the names that conntrack still knows.
    """

    __slots__ = ()

    def __new__(cls, names: int = 1000, connections: int = 6000) -> Limits:
        """Raise ValueError for an invalid limit."""
        for value, (least, most) in zip((names, connections), _RANGES, strict=True):
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{str(value)[:40]!r} is not a whole number from {least} to {most}")
        return super().__new__(cls, names, connections)

    def __str__(self) -> str:
        return f"{self.names} names, {self.connections} connections"


class Kept(NamedTuple):
    """Conntrack's timeouts after the last packet of a connection, in seconds.

    Args:
        datagrams: unanswered UDP or ping.
        syn: TCP with only SYN packets; another SYN does not extend it.
        tcp: unanswered TCP that began otherwise, and TCP that is closing.
        other: any other unanswered protocol.
        established: answered TCP, the longest.
    """

    datagrams: int = 30
    syn: int = 120
    tcp: int = 300
    other: int = 600
    established: int = 432000

    def __str__(self) -> str:
        return f"kept for {', '.join(map(str, self))} s"


USUAL = Kept()
_TCP = "nf_conntrack_tcp_timeout_"
# By which settings of the kernel (net.netfilter), in the order of `Kept`; the longest of them counts.
_SETTINGS: tuple[tuple[str, ...], ...] = (
    ("nf_conntrack_udp_timeout", "nf_conntrack_icmp_timeout", "nf_conntrack_icmpv6_timeout"),
    (f"{_TCP}syn_sent",),
    tuple(f"{_TCP}{state}" for state in ("unacknowledged", "fin_wait", "close_wait", "last_ack", "time_wait")),
    (
        *("nf_conntrack_generic_timeout", "nf_conntrack_gre_timeout", "nf_conntrack_udplite_timeout"),
        *("nf_conntrack_sctp_timeout_heartbeat_sent", "nf_conntrack_dccp_timeout_request"),
    ),
    (f"{_TCP}established",),
)


class Count(NamedTuple):
    """One limit of a vif, both families together.

    Args:
        unanswered: present number of unanswered connections.
        limit: the limit per family; the greater one.
        refused: packets dropped since the limit was set.
    """

    unanswered: int = 0
    limit: int = 0
    refused: int = 0


class Counts(NamedTuple):
    """The limits of a vif: of names, and of connections."""

    names: Count = Count()
    connections: Count = Count()


def parse(table: Mapping[str, Any]) -> Limits:
    """Return the limits that the table `[provider]` of guestnet.toml asks for.

    Args:
        table: its keys are known (`config.check_keys`), some of them for other readers.

    Raises:
        ValueError: a value is invalid; the message names the key.
    """
    given = dict[str, int]()
    for key, field in zip(KEYS, Limits._fields, strict=True):
        if key in table:
            try:
                given[field] = Limits(**{field: table[key]})[Limits._fields.index(field)]
            except ValueError as error:
                raise ValueError(f"[provider] {key}: {error}") from None
    return Limits(**given)


def possible(limits: Limits, conntrack: int) -> Limits:
    """Return the limits, reduced so that most of conntrack is left to other qubes.

    Args:
        limits: the configured limits.
        conntrack: net.netfilter.nf_conntrack_max; 0 if unknown.
    """
    least, _ = _RANGES[1]
    share = max(conntrack // SHARE, least) if conntrack > 0 else limits.connections
    return Limits(limits.names, min(limits.connections, share))


def kept(setting: Callable[[str], str | None]) -> Kept:
    """Return this kernel's timeouts.

    Args:
        setting: returns a setting of net.netfilter by name; None if the kernel lacks it.
    """
    found = []
    for names, usual in zip(_SETTINGS, USUAL, strict=True):
        values = (setting(name) or "" for name in names)
        found.append(max((int(value) for value in values if value.isdecimal()), default=usual))
    return Kept(*found)


# --- texts for nft -----------------------------------------------------------------------------------------------


def attach(name: str, versions: Iterable[int], limits: Limits, kept: Kept = USUAL) -> str:
    """Count what a vif has without an answer, from nothing on.

    Args:
        name: of the vif; ValueError when it is not the name of one.
        versions: families that the qube has (4, 6).
        limits: of each of them.
        kept: by conntrack.
    """
    name = parse_name(name).text
    return "".join(_attached(name, version, limits, kept) for version in sorted(set(versions)))


def _attached(name: str, version: int, limits: Limits, kept: Kept) -> str:
    word, icmp = _WORDS[version]
    table = f"{word} {TABLE}"
    sets = dict(zip(_sets(name), limits, strict=True))
    lines = [f"add table {table}", f"add map {table} {MAP} {{ type ifname : verdict; }}"]
    for chain, hook in LIMITS_HOOKS.items():
        lines.append(f"add chain {table} {chain} {{ {hook}; policy accept; }}")
        lines.append(f"flush chain {table} {chain}")
    lines += [f"add rule {table} {rule}" for rule in _DISPATCH]
    for chain in _chains(name):
        lines += [f"add chain {table} {chain}", f"flush chain {table} {chain}"]
    # A set keeps the size it was made with. To delete what is not there is an error, to add what is there is none.
    for own, size in sets.items():
        made = f"add set {table} {own} {{ {_KIND} size {size}; }}"
        lines += [made, f"delete set {table} {own}", made]
    lines += [f"add rule {table} {rule}" for rule in _rules(name, icmp, kept)]
    element = f'element {table} {MAP} {{ "{name}" comment "{_words(limits, kept)}" : goto {name} }}'
    lines += [f"add {element}", f'delete element {table} {MAP} {{ "{name}" }}', f"add {element}"]
    return "".join(f"{line}\n" for line in lines)


# What is established comes first and passes, unless it is for names. By `ct` a name is known whatever server, and
# port, its packets are led to; the qube's own packets are not led anywhere yet in prerouting.
_DISPATCH = (
    "prerouting ct status assured th dport != 53 accept",
    f"prerouting ct direction original ct status confirmed ct state new,established iifname vmap @{MAP}",
    "forward ct status assured ct direction original accept",
    "forward ct status assured meta l4proto tcp ct original proto-dst != 53 accept",
    "forward ct status assured meta l4proto udp ct original proto-dst != 53 accept",
    f"forward ct direction reply ct state established oifname vmap @{MAP}",
    f"forward ct state new ct status ! confirmed iifname vmap @{MAP}",
    f"input ct state new ct status ! confirmed iifname vmap @{MAP}",
)


def _rules(name: str, icmp: str, kept: Kept) -> Iterable[str]:
    """The rules of one vif: each of its chains first has what is answered, then what is not."""
    names, connections = _sets(name)
    answered = "ct state established"

    def lasting(where: str, seconds: int) -> str:
        return f"update @{where} {{ ct id timeout {seconds + _SPARE}s }}"

    def passing(where: str) -> str:
        return f"ct id @{where} update @{where} {{ ct id timeout {_ANSWERED} }}"

    yield f"{names} {answered} {passing(names)}"
    for seconds in sorted({kept.datagrams, kept.syn, kept.tcp}):
        yield f"{names} {answered} ct expiration <= {seconds}s {lasting(connections, seconds)} accept"
    yield f"{names} {answered} {lasting(connections, kept.established)} accept"
    yield f"{names} meta l4proto udp {lasting(names, kept.datagrams)}"
    yield f"{names} meta l4proto tcp {lasting(names, max(kept.syn, kept.tcp))}"
    yield f"{names} ct id != @{names} counter drop"
    for protocol in ("udp", "tcp"):
        yield f"{name} meta l4proto {protocol} ct original proto-dst 53 jump {names}"
    yield f"{name} {answered} ct direction reply {passing(connections)}"
    yield f"{name} {answered} accept"
    # A set of both would be one more for each vif, and the kernel looks for each name in the list of all sets.
    for protocol in ("udp", icmp):
        yield f"{name} meta l4proto {protocol} {lasting(connections, kept.datagrams)} accept"
    yield f"{name} tcp flags & (syn | ack) == syn {lasting(connections, kept.syn)} accept"
    yield f"{name} meta l4proto tcp {lasting(connections, kept.tcp)} accept"
    yield f"{name} {lasting(connections, kept.other)} accept"
    yield f"{name} counter drop"


def detach(name: str) -> str:
    """Return the reverse of `attach`, of both families; missing elements are ignored."""
    name = parse_name(name).text
    text = ""
    for word, _ in _WORDS.values():
        table = f"{word} {TABLE}"
        element = f'element {table} {MAP} {{ "{name}" '
        lines = [f"add table {table}", f"add map {table} {MAP} {{ type ifname : verdict; }}"]
        lines += [f"add chain {table} {chain}" for chain in _chains(name)]
        lines += [f"add {element}: goto {name} }}", f"delete {element}}}"]
        lines += [f"flush chain {table} {chain}" for chain in _chains(name)]
        for own in _sets(name):
            lines += [f"add set {table} {own} {{ {_KIND} }}", f"delete set {table} {own}"]
        lines += [f"delete chain {table} {chain}" for chain in _chains(name)]
        text += "".join(f"{line}\n" for line in lines)
    return text


def _words(limits: Limits, kept: Kept) -> str:
    """Return the comment that identifies the attached limits."""
    return f"{limits}, {kept}"


def _sets(name: str) -> tuple[str, str]:
    return f"{name}-names", f"{name}-connections"


def _chains(name: str) -> tuple[str, str]:
    """That of all connections; and that of names, which has the name of their set."""
    return name, f"{name}-names"


# --- what is in force --------------------------------------------------------------------------------------------


class InForce(NamedTuple):
    """The loaded limits.

    Args:
        words: name of a vif → family → its limits in words, by `in_force`.
        rules: how many each chain has, by word of the family and chain: others can flush a chain, or delete one rule of
            it, and leave the words (behaviour B125).
        counts: by `counted`.
    """

    words: Mapping[str, Mapping[int, str]]
    rules: Mapping[tuple[str, str], int]
    counts: Mapping[str, Counts]


def in_force(listing: str) -> Mapping[str, Mapping[int, str]]:
    """Name of a vif → family → its limits in words.

    Args:
        listing: of the maps or tables of both families, as nft prints them.
    """
    versions = {word: version for version, (word, _) in _WORDS.items()}
    found: dict[str, dict[int, str]] = {}
    version = 0
    for line in listing.splitlines():
        if line.startswith("table "):
            version = versions.get(line.split()[1], 0)
        quoted = line.split('"')
        for place in range(1, len(quoted) - 2, 2):
            if quoted[place + 1].strip() == "comment":
                found.setdefault(quoted[place], {})[version] = quoted[place + 2]
    return found


def missing(
    name: str,
    versions: Iterable[int],
    limits: Limits | None,
    present: InForce,
    kept: Kept = USUAL,
) -> bool:
    """Return whether `attach` has still to be done.

    Args:
        name: of the vif.
        versions: families that the qube has.
        limits: that are wanted; None: any will do.
        present: what is loaded.
        kept: by conntrack.
    """
    there = present.words.get(name, {})
    wanted = _words(limits, kept) if limits else f", {kept}"
    return any(
        not there.get(version, "").endswith(wanted) or _is_damaged(name, version, present.rules, kept)
        for version in versions
    )


def _is_damaged(name: str, version: int, rules: Mapping[tuple[str, str], int], kept: Kept) -> bool:
    """Return whether a chain of a vif has another number of rules than `attach` creates."""
    word, icmp = _WORDS[version]
    made = Counter(rule.split()[0] for rule in (*_DISPATCH, *_rules(name, icmp, kept)))
    return any(rules.get((word, chain), 0) != number for chain, number in made.items())


def counted(listing: str) -> Mapping[str, Counts]:
    """Name of a vif → what it has now, and what it was refused.

    Args:
        listing: of the tables of both families, with counters and elements.
    """
    found: dict[str, dict[str, list[int]]] = {}
    name = kind = ""
    for line in listing.splitlines():
        words = line.split()
        if words[:1] in (["set"], ["chain"]):
            name, _, kind = words[1].partition("-")
        elif name.startswith("vif"):
            own = found.setdefault(name, {}).setdefault(kind or "connections", [0, 0, 0])
            if words[-1:] == ["drop"] and "packets" in words:
                own[2] += int(words[words.index("packets") + 1])
            elif words[:1] == ["size"]:
                own[1] = max(own[1], int(words[1]))
            else:
                own[0] += words.count("expires")
    return {vif: Counts(*(Count(*own.get(field, (0, 0, 0))) for field in Counts._fields)) for vif, own in found.items()}
