# SPDX-License-Identifier: GPL-2.0-or-later
"""Flow offload: the text that loads a flowtable, and whether there may be one.

The packets of an offloaded connection go from one interface to the other by a flowtable, behind the ingress hook, and
pass by all chains of prerouting, forward and postrouting, the counters in them, and the switch of forwarding. So there
may be one only while none of these chains judges the packets of connections that are established. Ours do not: a
connection got as far only by them, and the flowtable knows it by its interface and addresses, as anti-spoofing does.

Parsed is what nft prints for people, because a resident agent must not pay for JSON. What is not understood counts as
an obstacle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from . import guard
from .nftables import CHAINS, DNS_CHAINS, FIREWALL_TABLE, GUARD, LIMITS_TABLE
from .nftables import TABLE as BASE
from .shadows import NAT, Chain

TABLE, FLOWTABLE = "qubes-offload", "qubes"
# One transaction that every kernel takes, also where there is no such table.
END = f"add table inet {TABLE}\ndelete table inet {TABLE}\n"
# Behind whatever filters at ingress: these chains see the packets before the flowtable takes them.
PRIORITY = 300
# Behind every other forward chain: a connection that any of them refuses does not get here. The highest there is; of
# two chains with it the one that was loaded later is earlier, and a change of rules has ours loaded anew.
_LAST = 2147483647
_BATCH = 200  # a message takes 256 devices (NFT_NETDEVICE_MAX in the kernel)

_OURS = frozenset((family, BASE, name) for family, name in (*CHAINS, *DNS_CHAINS)) | {
    ("inet", TABLE, "forward"),
    *(("inet", GUARD, name) for name in guard.CHAINS),
    # Both accept an assured connection first, but for names, of which none is offloaded.
    *((family, LIMITS_TABLE, name) for family in ("ip", "ip6") for name in ("prerouting", "forward")),
}
_CUSTOM = "custom-forward"
_PASSED_BY = frozenset({"prerouting", "forward", "postrouting"})
_PRIORITIES = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
_UNJUDGED = frozenset({"new", "invalid", "related", "untracked"})
_STATES = _UNJUDGED | {"established"}
# What is the same for all packets that one end of a connection sends by one way. No sets by name, marks or limits.
CONSTANT = tuple(
    tuple(key.split())
    for key in (
        *("iif", "iifname", "iifgroup", "oif", "oifname", "oifgroup"),
        *("ip saddr", "ip daddr", "ip6 saddr", "ip6 daddr", "ip protocol", "meta l4proto"),
        *("tcp sport", "tcp dport", "udp sport", "udp dport", "th sport", "th dport"),
        *("ct original ip saddr", "ct original ip daddr", "ct original ip6 saddr", "ct original ip6 daddr"),
    )
)
# What differs between packets of one connection, and does no harm where a rule only lets them pass.
OF_A_CONNECTION = tuple(tuple(key.split()) for key in ("ct state", "ct status", "ct direction", "meta nfproto"))
_REMEDY = "put `ct state established,related accept` before it, or let it fit `ct state new` alone"
_SHOWN = 100
# What the firewall of the qubes has against stolen addresses: it fits no connection that got established past it.
_AGAINST_SPOOFING = (
    ("prerouting", 'iifname != "vif*" ip saddr '),
    ("prerouting", 'iifname != "vif*" ip6 saddr '),
    ("postrouting", 'oifname != "vif*" ip daddr '),
    ("postrouting", 'oifname != "vif*" ip6 daddr '),
)


def usable(name: str) -> bool:
    """Whether the name of a device may stand in a text for nft; the kernel allows quotation marks in one."""
    return bool(name) and _NAME.issuperset(name)


def load(devices: Iterable[str], *, ipv6: bool) -> str:
    """One transaction: whatever table there was ends, and with it all that is offloaded; a new one begins.

    Only connections between the qubes and what is outside (behaviour B83), and none for names: those may be led
    elsewhere at any time. It is the qube's packet that brings its connection in, after every chain has let it pass.

    Args:
        devices: names of the interfaces, at least one; ValueError when one is not `usable`.
        ipv6: whether the qubes have IPv6.
    """
    devices = tuple(devices)
    strange = [name for name in devices if not usable(name)]
    if strange or not devices:
        raise ValueError(f"no devices for a flowtable: {strange}")
    text = f"{END}table inet {TABLE} {{\n"
    for first in range(0, len(devices), _BATCH):
        names = ", ".join(f'"{name}"' for name in devices[first : first + _BATCH])
        text += f"  flowtable {FLOWTABLE} {{ hook ingress priority {PRIORITY}; devices = {{ {names} }}; }}\n"
    only = "" if ipv6 else "meta nfproto ipv4 "
    text += f"  chain forward {{ type filter hook forward priority {_LAST}; policy accept; }}\n}}\n"
    whose = f"iifgroup 2 oifgroup != 2 {only}ct state established meta l4proto {{ tcp, udp }} th dport != 53"
    return f"{text}add rule inet {TABLE} forward {whose} flow add @{FLOWTABLE}\n"


# --- whether there may be one ------------------------------------------------------------------------------------


def to_look_at(listing: str, *, ipv6: bool) -> tuple[Chain, ...]:
    """The chains whose rules decide: those of others that offloaded packets pass by, and our users' own.

    Args:
        listing: `nft list chains`.
        ipv6: whether IPv6 is to be offloaded too.

    Raises:
        ValueError: it is not understood, or not whole.
    """
    _whole(listing)
    found = [Chain(word, BASE, _CUSTOM, "filter", "forward", 0) for word in (("ip", "ip6") if ipv6 else ("ip",))]
    family = table = name = ""
    for line in listing.splitlines():
        words = line.split()
        if words[:1] == ["table"]:
            _, family, table, _ = words
        elif words[:1] == ["chain"]:
            name = words[1]
        elif words[:1] == ["type"] and "hook" in words:
            found += _passed_by(family, table, name, line.strip(), ipv6=ipv6)
    for chain in found:
        if not (_NAME.issuperset(chain.table) and _NAME.issuperset(chain.name)):
            raise ValueError(f"chain {chain.family} {chain.table} {chain.name} has a strange name")
    return tuple(found)


def _passed_by(family: str, table: str, name: str, line: str, *, ipv6: bool) -> Iterator[Chain]:
    """The chain, if packets of an offloaded connection would have come to it, and it may be somebody's judgement.

    Not at egress, which they come to like every packet, nor at an ingress that is before the flowtable. A chain of type
    nat sees the first packet of a connection only.
    """
    words = line.split()
    kind, hook = words[1], words[words.index("hook") + 1]
    if (family, table, name) in _OURS or kind == NAT or (family == "ip6" and not ipv6):
        return
    policy = "drop" if "policy drop;" in line else "accept"
    if family in ("ip", "ip6", "inet") and hook in _PASSED_BY:
        yield Chain(family, table, name, kind, hook, 0, policy)  # which of them is first does not matter
    elif family in ("netdev", "inet") and hook == "ingress":
        priority = _priority(line)
        if priority >= PRIORITY:
            yield Chain(family, table, name, kind, hook, priority, policy)


def _priority(line: str) -> int:
    """The number of `priority filter + 10;`. Raises ValueError."""
    words = line.partition(" priority ")[2].partition(";")[0].split()
    first, rest = words[0], words[1:]
    number = _PRIORITIES[first] if first in _PRIORITIES else int(first)
    return number + (int("".join(rest)) if rest else 0)


def obstacle(chains: Iterable[tuple[Chain, str]], legacy: Iterable[str] = ()) -> str:
    """Why nothing may be offloaded; "" if it may.

    Args:
        chains: those of `to_look_at`, each with `nft -s list chain`; "" where that cannot be had.
        legacy: tables of the former iptables, in which nobody can look here.
    """
    for table in legacy:
        if table != NAT:  # only first packets, as above
            return f"the table {table} of iptables-legacy may judge established connections"
    for chain, listing in chains:
        name = f"chain {chain.family} {chain.table} {chain.name}"
        try:
            judges = _judges(chain, tuple(_rules(listing)))
        except ValueError as error:
            return f"{name} cannot be read: {error}"
        if judges:
            return f"{name} also judges established connections: {judges}"
    return ""


def _judges(chain: Chain, rules: Iterable[str]) -> str:
    """What decides on packets of an established connection, and what its owner can do; "" where nothing does."""
    for rule in rules:
        # Without what is quoted: a comment can say anything.
        words = [word for word in " ".join(rule.split('"')[::2]).split() if word != "counter"]
        if _accepts(words):
            return ""
        harmless = (
            _concerns_others(words) or _is_of_a_beginning(words) or _only_lets_pass(rule)
            or _is_the_firewalls(chain, rule) or _is_wg_quicks(chain, rule) or _refuses_the_way_out(chain, rule)
        )  # fmt: skip
        if not harmless:
            return f"its rule `{_short(rule)}`; {_REMEDY}"
    return "" if chain.policy == "accept" else f"its policy is {chain.policy}; {_REMEDY}"


def _short(rule: str) -> str:
    """A rule for a line of text."""
    return rule if len(rule) <= _SHOWN else f"{rule[:_SHOWN]}…"


def _accepts(words: list[str]) -> bool:
    """Whether a rule accepts every packet of an established connection."""
    if words[:2] != ["ct", "state"]:
        return False
    if words[2:3] == ["vmap"]:
        inner = " ".join(words[3:]).strip("{} ")
        return words[-1] == "}" and "established : accept" in map(str.strip, inner.split(","))
    if words[-1] == "comment":
        words = words[:-1]
    states = " ".join(words[2:-1]).strip("{} ").replace(",", " ").split()
    return words[-1] == "accept" and "established" in states and _STATES.issuperset(states)


def _concerns_others(words: list[str]) -> bool:
    """Whether a rule is for other packets alone, by a condition that none of an established connection meets."""
    for place in range(len(words) - 2):
        if words[place : place + 2] == ["ct", "state"] and _UNJUDGED.issuperset(words[place + 2].split(",")):
            return True
    return False


def _is_of_a_beginning(words: list[str]) -> bool:
    """Whether a rule is for TCP packets with the flag SYN alone, as what clamps the MSS: with these connections begin.

    nft says `tcp flags syn`, `tcp flags syn / syn,rst`, or in version 1.0.0 `tcp flags & (syn | rst) == syn`.
    """
    for place in range(len(words) - 2):
        if words[place : place + 2] != ["tcp", "flags"]:
            continue
        rest = words[place + 2 :]
        if rest[0] == "&":
            rest = rest[rest.index("==") + 1 :] if "==" in rest[:-1] else []
            return bool(rest) and "syn" in rest[0].split(",")
        return "syn" in rest[0].split(",") if rest[1:2] == ["/"] else rest[0] == "syn"
    return False


def _only_lets_pass(rule: str) -> bool:
    """Whether a rule refuses nothing and changes nothing: it accepts what it fits, or counts it.

    As what opens a port, or a way from qube to qube. Behind it fewer packets come to the rules that follow, which are
    judged by themselves. Counters count the first packets of a connection that is offloaded, as docs/provider.md says.
    """
    words = rule.partition(' comment "')[0].split()
    if words[-1:] == ["counter"]:
        words = [*words[:-1], "accept"]
    return taken_apart(words, (*CONSTANT, *OF_A_CONNECTION))[1] == "accept"


def _is_wg_quicks(chain: Chain, rule: str) -> bool:
    """Whether it is a rule of wg-quick, in a table of that name.

    It refuses what is for the address of the tunnel and does not come by it; a connection is known to the flowtable by
    its interfaces. And it keeps the mark of its own encrypted packets, which no packet of a qube has.
    """
    if not chain.table.startswith("wg-quick-"):
        return False
    words = rule.partition(' comment "')[0].split()
    udp = words[:2] == ["meta", "l4proto"] and words[2:3] in (["udp"], ["17"])  # by number where netbase is not there
    if chain.hook == "prerouting" and udp and words[3:] == ["meta", "mark", "set", "ct", "mark"]:
        return True
    if chain.hook == "prerouting" and words[-6:] == ["fib", "saddr", "type", "!=", "local", "drop"]:
        return words[:2] == ["iifname", "!="] and words[3:5] in (["ip", "daddr"], ["ip6", "daddr"]) and len(words) == 12
    marked = udp and words[3:5] == ["meta", "mark"]
    return chain.hook == "postrouting" and marked and words[6:] == ["ct", "mark", "set", "meta", "mark"]


def _refuses_the_way_out(chain: Chain, rule: str) -> bool:
    """Whether a rule only refuses, only on the way from a qube to the outside, and one connection always or never.

    As the `oifgroup 1 drop` of a VPN qube. What brings a connection into the flowtable has just passed it, the answers
    are none of its business, and a connection whose route changes leaves the flowtable (nf_flow_dst_check).
    """
    if chain.hook != "forward":
        return False  # behind the forward hook nobody has asked it yet
    conditions, verdict = taken_apart(rule.partition(' comment "')[0].split())
    return bool(conditions) and verdict in ("drop", "reject") and any(_is_the_way_out(*each) for each in conditions)


def taken_apart(
    words: list[str], keys: tuple[tuple[str, ...], ...] = CONSTANT
) -> tuple[list[tuple[str, bool, str]], str]:
    """The conditions of a rule (key, whether negated, value) and its verdict, "" when there is anything else in it."""
    conditions = []
    while words:
        key = next((key for key in keys if tuple(words[: len(key)]) == key), None)
        if key is None:
            break
        words = words[len(key) :]
        negated = words[:1] == ["!="]
        words = words[negated:]
        length = words.index("}") + 1 if words[:1] == ["{"] and "}" in words else 1
        value = " ".join(words[:length])
        if value.startswith("@"):
            return [], ""  # a set may change, and nobody is told
        conditions.append((" ".join(key), negated, value))
        words = words[length:]
    words = [word for word in words if word != "counter"]
    return conditions, words[0] if words[:1] == ["reject"] or len(words) == 1 else ""


def _is_the_way_out(key: str, negated: bool, value: str) -> bool:
    """Whether a condition is met on the way from a qube to the outside alone: by a vif in, or by another one out."""
    name = value.strip('"')
    if negated:
        return (key, name) in (("oifgroup", "2"), ("oifname", "vif*"))
    if key in ("iifgroup", "iifname"):
        return name in ("2", "vif*")
    if key == "oifgroup":
        return name.isdecimal() and name != "2"
    return key in ("oif", "oifname") and usable(name) and not name.startswith("vif")


def _is_the_firewalls(chain: Chain, rule: str) -> bool:
    """Whether it is a rule of the Qubes firewall against stolen addresses."""
    if chain.table != FIREWALL_TABLE or not rule.endswith(" drop"):
        return False
    return any(chain.hook == hook and rule.startswith(begin) for hook, begin in _AGAINST_SPOOFING)


def _rules(listing: str) -> Iterator[str]:
    """The rules of one chain, each on one line: a long set goes on in the next. Raises ValueError."""
    _whole(listing)
    rule, within = "", False
    for line in listing.splitlines():
        if line.startswith("\tchain "):
            within = True
        elif within and line.startswith("\t\t"):
            if line[2:3].isspace():
                rule += f" {line.strip()}"
                continue
            if rule:
                yield rule
            rule = "" if _is_head(line.split()) else line.strip()
    if not within:
        raise ValueError("there is none")
    if rule:
        yield rule


def _is_head(words: list[str]) -> bool:
    """Whether a line of a chain is none of its rules."""
    return words[0] in ("type", "policy", "comment")


def _whole(listing: str) -> None:
    if listing and listing.splitlines()[-1] != "}":
        raise ValueError("the listing is not whole")
