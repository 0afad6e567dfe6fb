# SPDX-License-Identifier: GPL-2.0-or-later
"""Flow offload: the transaction that loads a flowtable, and the conditions for it.

A flowtable forwards the packets of an offloaded connection directly from one interface to the other, at the ingress
hook. They bypass all chains of prerouting, forward and postrouting, their counters, and the forwarding sysctl. So it is
loaded only while none of these chains may refuse packets of established connections. Our own chains do not: they have
accepted each connection before, and the flowtable matches it by interface and addresses, as anti-spoofing does.

This module parses nft's text, because JSON is too expensive for a resident agent. An unknown expression counts as an
obstacle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from . import established
from .established import ChainName
from .foreign_chains import NAT, Chain
from .rules_text import CHAINS, DNS_CHAINS
from .tables import FLOWTABLE_PRIORITY, GUARD, GUARD_HOOKS, IP_FAMILIES, LIMITS, NAMED, OFFLOAD_HOOKS, QUBES
from .tables import OFFLOAD as TABLE

FLOWTABLE = "qubes"
# One transaction that every kernel accepts, even if the table does not exist.
END = f"add table inet {TABLE}\ndelete table inet {TABLE}\n"
_BATCH = 200  # a message takes 256 devices (NFT_NETDEVICE_MAX in the kernel)

_OURS = frozenset((family, QUBES, name) for family, name in (*CHAINS, *DNS_CHAINS)) | {
    ("inet", TABLE, "forward"),
    *(("inet", GUARD, name) for name in GUARD_HOOKS),
    # Both accept an assured connection first, except DNS, which is never offloaded.
    *((family, LIMITS, name) for family in IP_FAMILIES for name in ("prerouting", "forward")),
}
_CUSTOM = "custom-forward"
_PASSED_BY = frozenset({"prerouting", "forward", "postrouting"})
_NOTHING: Mapping[ChainName, str] = {}
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


def usable(name: str) -> bool:
    """Return whether the name of a device may stand in a text for nft; the kernel allows quotation marks in one."""
    return bool(name) and _NAME.issuperset(name)


def load(devices: Iterable[str], *, ipv6: bool) -> str:
    """Return the transaction that deletes the former table, with its offloaded connections, and adds a new one.

    It offloads only connections between client qubes and the outside (behaviour B83), without DNS, whose redirection
    may change at any time. A packet of the qube adds its connection, after every chain has accepted it.

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
        text += f"  flowtable {FLOWTABLE} {{ hook ingress priority {FLOWTABLE_PRIORITY}; devices = {{ {names} }}; }}\n"
    only = "" if ipv6 else "meta nfproto ipv4 "
    text += f"  chain forward {{ {OFFLOAD_HOOKS['forward']}; policy accept; }}\n}}\n"
    whose = f"iifgroup 2 oifgroup != 2 {only}ct state established meta l4proto {{ tcp, udp }} th dport != 53"
    return f"{text}add rule inet {TABLE} forward {whose} flow add @{FLOWTABLE}\n"


# --- whether there may be one ------------------------------------------------------------------------------------


def to_look_at(listing: str, *, ipv6: bool) -> tuple[Chain, ...]:
    """Return the chains whose rules decide: those of others that offloaded packets pass by, and our users' own.

    Args:
        listing: `nft list chains`.
        ipv6: whether IPv6 is offloaded too.

    Raises:
        ValueError: the listing is not understood, or incomplete.
    """
    _whole(listing)
    found = [Chain(word, QUBES, _CUSTOM, "filter", "forward", 0) for word in (IP_FAMILIES if ipv6 else IP_FAMILIES[:1])]
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
            raise ValueError(f"chain {chain.family} {chain.table} {chain.name} has an unsupported name")
    return tuple(found)


def _passed_by(family: str, table: str, name: str, line: str, *, ipv6: bool) -> Iterator[Chain]:
    """Yield the chain, if packets of an offloaded connection would reach it and it may refuse them.

    Chains at egress, and at an ingress before the flowtable, see every packet. A chain of type nat sees only the first
    packet of a connection.
    """
    words = line.split()
    kind, hook = words[1], words[words.index("hook") + 1]
    if (family, table, name) in _OURS or kind == NAT or (family == "ip6" and not ipv6):
        return
    policy = "drop" if "policy drop;" in line else "accept"
    if family in ("ip", "ip6", "inet") and hook in _PASSED_BY:
        yield Chain(family, table, name, kind, hook, _known_priority(line), policy)
    elif family in ("netdev", "inet") and hook == "ingress":
        priority = _priority(line)
        if priority >= FLOWTABLE_PRIORITY:
            yield Chain(family, table, name, kind, hook, priority, policy)


def _known_priority(line: str) -> int:
    """Return the number of a priority, 0 for one with a name that is not known; only a remedy depends on it."""
    try:
        return _priority(line)
    except ValueError:
        return 0


def _priority(line: str) -> int:
    """Return the number of `priority filter + 10;`. Raises ValueError."""
    words = line.partition(" priority ")[2].partition(";")[0].split()
    first, rest = words[0], words[1:]
    number = NAMED[first] if first in NAMED else int(first)
    return number + (int("".join(rest)) if rest else 0)


def obstacle(
    chains: Iterable[tuple[Chain, str]], legacy: Iterable[str] = (), regular: Mapping[ChainName, str] = _NOTHING
) -> str:
    """Return why nothing may be offloaded; "" if it may.

    Args:
        chains: those of `to_look_at`, each with `nft -s list chain`; "" where that cannot be had.
        legacy: tables of the former iptables, whose rules cannot be read here.
        regular: chains that these jump to, see `jumped_to`.
    """
    for table in legacy:
        if table != NAT:  # only first packets, as above
            problem = f"the table {table} of iptables-legacy may judge established connections"
            return f"{problem}; create its rules with iptables-nft, which the agent can read"
    for chain, listing in chains:
        name = f"chain {chain.family} {chain.table} {chain.name}"
        try:
            judges = established.judges(chain, listing, regular)
        except ValueError as error:
            return f"{name} cannot be read: {error}"
        if judges:
            return f"{name} may refuse established connections: {judges}"
    return ""


def jumped_to(chains: Iterable[tuple[Chain, str]], regular: Mapping[ChainName, str]) -> tuple[ChainName, ...]:
    """Return chains that have to be listed too before `obstacle` can tell; mostly none.

    Args:
        chains: as for `obstacle`.
        regular: those that are known already.
    """
    found = [name for chain, listing in chains for name in established.jumped_to(chain, listing, regular)]
    return tuple(dict.fromkeys(found))


def _whole(listing: str) -> None:
    if listing and listing.splitlines()[-1] != "}":
        raise ValueError("the listing is incomplete")
