# SPDX-License-Identifier: GPL-2.0-or-later
"""How many connections without an answer a qube may have, so that none takes what all share (behaviour B112).

One qube's 65,535 packets to the virtual DNS addresses took every translated port of the name server, and for half a
minute no other qube had names. The same goes for conntrack as a whole, and for neighbours of the uplink.

Each vif has two sets: `vifN.M-names` (to port 53) and `vifN.M-connections` (all, names a second time). They are in a
table of their own, because a table is listed with all that is in it. A new connection becomes an element; the first
answer makes that element expire; without one it stays as long as conntrack keeps the connection. `size` is the limit:
where the set is full the element cannot be added, and the packet is dropped before the connection is confirmed and
before it gets a translated port. A connection that is established (assured) is not looked at, and a qube may have any
number of these.

Names keep their place among the connections until conntrack forgets them, because the translated port is taken until
then, also when they were answered: else 65,535 questions with an answer did the same.

What else there is, and why it is not used: `ct count` counts answered connections as well, and walks all of a qube's
connections (up to once each clock tick); a rate for new connections slows down who has many that are answered; a
conntrack timeout makes the flood shorter and not smaller. An answered element expires (`update … timeout`) and is not
deleted: before Linux 6.1.47 a deletion by a rule left the set's size as it was. A refusal would spend the kernel's
common budget of ICMP errors, so it is a drop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .namedtuple import NamedTuple
from .nftables import LIMITS_TABLE as TABLE
from .values import IPV4, IPV6
from .vif import parse_name

MAP = "qubes"
FAMILIES = ("ip", "ip6")
# Chains with a hook. Behind the rules that let a packet pass: what they drop is no connection.
CHAINS = ("forward", "input")
KEYS = ("unanswered_names", "unanswered_connections")
_OTHERS = ("hold_after_flush",)  # of the same table, for others to read
_RANGES = ((50, 60000), (500, 1000000))
# Of the whole of conntrack one qube may have this part without an answer.
SHARE = 4

_PRIORITY = 10
# Names of protocols are those that nft knows itself: /etc/protocols (netbase) is not in a minimal template.
_WORDS = {IPV4: ("ip", "ipv4_addr", "icmp"), IPV6: ("ip6", "ipv6_addr", "icmpv6")}
# As conntrack keeps what is not answered (nf_conntrack_*_timeout*): UDP and ICMP, TCP, anything else.
_KEPT = {"udp": "30s", "tcp": "2m", "icmp": "30s", "icmpv6": "30s", "": "10m"}
_ANSWERED = "10ms"
_KIND = "type inet_proto . {} . inet_service . inet_service; flags dynamic,timeout; timeout 30s;"


class _Fields(NamedTuple):
    names: int
    connections: int


class Limits(_Fields):
    """What one qube may have without an answer, of each family.

    Args:
        names: connections to port 53, by TCP or UDP.
        connections: all, with those of the names that conntrack still knows.
    """

    __slots__ = ()

    def __new__(cls, names: int = 1000, connections: int = 6000) -> Limits:
        """Raises ValueError for what is no limit."""
        for value, (least, most) in zip((names, connections), _RANGES, strict=True):
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{str(value)[:40]!r} is not a whole number from {least} to {most}")
        return super().__new__(cls, names, connections)

    def __str__(self) -> str:
        return f"{self.names} names, {self.connections} connections"


class Count(NamedTuple):
    """One limit of a vif, both families together.

    Args:
        unanswered: connections without an answer now.
        limit: how many there may be of each family; the greater one.
        refused: packets that were dropped since the limit was set.
    """

    unanswered: int = 0
    limit: int = 0
    refused: int = 0


class Counts(NamedTuple):
    """The limits of a vif: of names, and of connections."""

    names: Count = Count()
    connections: Count = Count()


def parse(table: object) -> Limits:
    """The limits that the table `[provider]` of guestnet.toml asks for.

    Raises:
        ValueError: it is no table, or a value is not valid; the message names the key.
    """
    if not isinstance(table, dict):
        raise ValueError(f"provider is {str(table)[:40]!r} and not a table: [provider]")
    for key in table:
        if key not in (*KEYS, *_OTHERS):
            raise ValueError(f"[provider] {str(key)[:40]!r} is not known; its keys are {', '.join((*KEYS, *_OTHERS))}")
    given = dict[str, int]()
    for key, field in zip(KEYS, Limits._fields, strict=True):
        if key in table:
            try:
                given[field] = Limits(**{field: table[key]})[Limits._fields.index(field)]
            except ValueError as error:
                raise ValueError(f"[provider] {key}: {error}") from None
    return Limits(**given)


def possible(limits: Limits, conntrack: int) -> Limits:
    """Limits that leave the greater part of conntrack to others.

    Args:
        limits: as configured.
        conntrack: net.netfilter.nf_conntrack_max; 0 where that is not known.
    """
    least, _ = _RANGES[1]
    share = max(conntrack // SHARE, least) if conntrack > 0 else limits.connections
    return Limits(limits.names, min(limits.connections, share))


# --- texts for nft -----------------------------------------------------------------------------------------------


def attach(name: str, versions: Iterable[int], limits: Limits) -> str:
    """Count what a vif has without an answer, from nothing on.

    Args:
        name: of the vif; ValueError when it is not the name of one.
        versions: families that the qube has (4, 6).
        limits: of each of them.
    """
    name = parse_name(name).text
    return "".join(_attached(name, version, limits) for version in sorted(set(versions)))


def _attached(name: str, version: int, limits: Limits) -> str:
    word, address, icmp = _WORDS[version]
    table = f"{word} {TABLE}"
    sets = dict(zip(_sets(name), limits, strict=True))
    kind = _KIND.format(address)
    lines = [f"add table {table}", f"add map {table} {MAP} {{ type ifname : verdict; }}", f"add chain {table} {name}"]
    for chain in CHAINS:
        lines.append(f"add chain {table} {chain} {{ type filter hook {chain} priority {_PRIORITY}; policy accept; }}")
        lines.append(f"flush chain {table} {chain}")
    lines += [
        f"add rule {table} forward ct status assured accept",
        f"add rule {table} forward ct state new iifname vmap @{MAP}",
        f"add rule {table} forward ct direction reply oifname vmap @{MAP}",
        f"add rule {table} input ct state new iifname vmap @{MAP}",
        f"flush chain {table} {name}",
    ]
    # A set keeps the size it was made with. To delete what is not there is an error, to add what is there is none.
    for own, size in sets.items():
        made = f"add set {table} {own} {{ {kind} size {size}; }}"
        lines += [made, f"delete set {table} {own}", made]
    lines += [f"add rule {table} {name} {rule}" for rule in _rules(word, icmp, *sets)]
    element = f'element {table} {MAP} {{ "{name}" comment "{limits}" : goto {name} }}'
    lines += [f"add {element}", f'delete element {table} {MAP} {{ "{name}" }}', f"add {element}"]
    return "".join(f"{line}\n" for line in lines)


def _rules(word: str, icmp: str, names: str, connections: str) -> Iterable[str]:
    """The rules of one vif: what answers it gets, and what it asks."""
    known = f"ct protocol . ct original {word} daddr . ct original proto-src . ct original proto-dst"
    asked = ("udp", "tcp")
    for protocol in asked:
        yield (
            f"ct direction reply meta l4proto {protocol} ct original proto-dst 53 "
            f"update @{names} {{ {known} timeout {_ANSWERED} }} accept"
        )
    # An ICMP error is an answer too, and by `ct` it has the connection that it is about.
    for protocol in (*asked, icmp):
        answer = f"ct direction reply meta l4proto {protocol}"
        yield f"{answer} update @{connections} {{ {known} timeout {_ANSWERED} }} accept"
    other = f"ct protocol . ct original {word} daddr"
    yield f"ct direction reply update @{connections} {{ {other} . th dport . th sport timeout {_ANSWERED} }} accept"
    for protocol in asked:
        mine = f"meta l4proto {protocol} ct original proto-dst 53"
        yield f"{mine} add @{names} {{ {known} timeout {_KEPT[protocol]} }}"
        yield f"{mine} {known} != @{names} counter drop"
    for protocol in (*asked, icmp):
        yield f"meta l4proto {protocol} add @{connections} {{ {known} timeout {_KEPT[protocol]} }} accept"
    yield (
        f"meta l4proto != {{ tcp, udp, {icmp} }} "
        f"add @{connections} {{ {other} . th sport . th dport timeout {_KEPT['']} }} accept"
    )
    yield "counter drop"


def detach(name: str) -> str:
    """The reverse of `attach`, of both families; what is not there is no error."""
    name = parse_name(name).text
    text = ""
    for word, address, _ in _WORDS.values():
        table = f"{word} {TABLE}"
        kind = _KIND.format(address)
        element = f'element {table} {MAP} {{ "{name}" '
        lines = [
            f"add table {table}", f"add map {table} {MAP} {{ type ifname : verdict; }}", f"add chain {table} {name}",
            f"add {element}: goto {name} }}", f"delete {element}}}", f"flush chain {table} {name}",
        ]  # fmt: skip
        for own in _sets(name):
            lines += [f"add set {table} {own} {{ {kind} }}", f"delete set {table} {own}"]
        text += "".join(f"{line}\n" for line in (*lines, f"delete chain {table} {name}"))
    return text


def _sets(name: str) -> tuple[str, str]:
    return f"{name}-names", f"{name}-connections"


# --- what is in force --------------------------------------------------------------------------------------------


def in_force(listing: str) -> Mapping[str, Mapping[int, str]]:
    """Name of a vif → family → its limits in words.

    Args:
        listing: of the maps or tables of both families, as nft prints them.
    """
    versions = {word: version for version, (word, _, _) in _WORDS.items()}
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
    name: str, versions: Iterable[int], limits: Limits | None, present: Mapping[str, Mapping[int, str]]
) -> bool:
    """Whether `attach` has still to be done.

    Args:
        name: of the vif.
        versions: families that the qube has.
        limits: that are wanted; None: any will do.
        present: by `in_force`.
    """
    there = present.get(name, {})
    return any(there.get(version, "") not in ((str(limits),) if limits else there.values()) for version in versions)


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
        elif name.startswith("vif") and kind:
            own = found.setdefault(name, {}).setdefault(kind, [0, 0, 0])
            own[0] += words.count("expires")
            own[1] = max(own[1], int(words[1])) if words[:1] == ["size"] else own[1]
        elif name.startswith("vif") and words[-1:] == ["drop"] and "packets" in words:
            which = "names" if "53" in words or "domain" in words else "connections"
            found.setdefault(name, {}).setdefault(which, [0, 0, 0])[2] += int(words[words.index("packets") + 1])
    return {vif: Counts(*(Count(*own.get(field, (0, 0, 0))) for field in Counts._fields)) for vif, own in found.items()}
