# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of a provider as text for `nft -f`; each text is one transaction, and texts may be joined to be one.

The names are a public interface: other tools and users' scripts add to the sets and to `custom-input` and
`custom-forward`, which are made once and never touched again. No text deletes or flushes a set, so that a load in the
middle of a session changes nothing for any program.

Both families come from one template: a rule once was in the IPv4 file only (behaviour B94). Where IPv6 is off the same
chains exist, for users' rules name them, and let nothing through (behaviour B92). Where qubes have IPv6 and their
provider has none yet, what they send is refused at once (behaviour B160).

ARP has a table of its own. The kernel has one neighbour table for all interfaces, so a qube may speak by ARP for its
own addresses alone (behaviour B114).

Only values that cannot carry a command get in: names of vifs and MAC addresses that are checked here, and addresses.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from .. import checks
from ..values import IPV4, IPAddress
from ..vif_name import parse_name
from . import guard
from .families import FAMILIES as _FAMILIES
from .families import Family as _Family
from .guard import ASKED, HELD, UNNAMED
from .listing_blocks import chosen
from .tables import ARP, DNS_SET, FAMILIES, FIREWALL, LIMITS, QUBES
from .tables import QUBES_HOOKS as _HOOKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..endpoint import Endpoint

_WORDS = {family.version: family.word for family in _FAMILIES}
# What the guard of the resident agent made a packet for another host is an ordinary one again; others stay as they are.
_ORDINARY = "meta pkttype other meta pkttype set host"
_REGULAR = ("antispoof", "dns-reject")
_CUSTOM = ("custom-input", "custom-forward")
_BASE = ("prerouting", "antispoof", "egress", "postrouting", "input", "forward")
# What `base` fills, and what `dnat` does: as (family, chain). Their listing shows whether all is as it was loaded.
CHAINS: tuple[tuple[str, str], ...] = (
    *((family.word, chain) for family in _FAMILIES for chain in _BASE),
    (ARP, "input"),
)
DNS_CHAINS: tuple[tuple[str, str], ...] = (("ip", "dnat-dns"), ("ip", "dns-reject"))


# Of the provider and of what is behind the uplink nothing is judged. A question without a sender looks for a duplicate
# (RFC 5227); the kernel answers it and learns nothing by it.
_ARP_RULES = (
    'iifgroup != 2 iifname != "vif*" accept',
    "iifgroup 2 iifname . arp saddr ip . arp saddr ether @allowed accept",
    "iifgroup 2 arp operation request arp saddr ip 0.0.0.0 accept",
    "counter drop",
)


def chains(families: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Those of `CHAINS` that the kernel has.

    Args:
        families: of FAMILIES, that it has.
    """
    there = frozenset(families)
    return tuple(chain for chain in CHAINS if chain[0] in there)


def base(*, ipv6: bool, refuse6: bool = False, arp: bool = True) -> str:
    """Everything but the DNS redirection: tables, sets, chains and the rules in them.

    What is in the sets, in the users' chains and in those of the DNS redirection stays.

    Args:
        ipv6: whether the qubes behind this one have IPv6.
        refuse6: they have, and this one has none for them: what they send is refused instead of dropped.
        arp: the kernel has nftables for ARP.
    """
    without = _rules_refusing if refuse6 else _rules_off
    text = "".join(
        _family(family, _rules(family), on=True)
        if family.version == IPV4 or ipv6
        else _family(family, without(family), on=False)
        for family in _FAMILIES
    )
    return text + _arp() if arp else text


def _arp() -> str:
    table, chain = f"table {ARP} {QUBES}", f"{ARP} {QUBES} input"
    lines = (
        "set allowed { type ifname . ipv4_addr . ether_addr; }",
        f"chain input {{ {_HOOKS['input']}; policy accept; }}",
    )
    text = _block(table, lines) + f"flush chain {chain}\n"
    return text + "".join(f"add rule {chain} {rule}\n" for rule in _ARP_RULES)


def _family(family: _Family, rules: dict[str, tuple[str, ...]], *, on: bool) -> str:
    """The transaction of one family; `on`: it is for the qubes."""
    closed = ("input",) if on else ("input", "forward")
    lines = [
        f"set allowed {{ type ifname . {family.address}; }}",
        f"set downstream {{ type {family.address}; }}",
        *(f"chain {chain} {{ }}" for chain in (*_REGULAR, *_CUSTOM)),
        *(f"chain {chain} {{ {hook}; policy accept; }}" for chain, hook in _HOOKS.items() if chain not in closed),
        *(f"chain {chain} {{ {_HOOKS[chain]}; policy drop; }}" for chain in closed),
    ]
    text = _block(f"table {family.word} {QUBES}", lines)
    text += "".join(f"flush chain {family.word} {QUBES} {chain}\n" for chain in _BASE)
    return text + "".join(
        f"add rule {family.word} {QUBES} {chain} {rule}\n" for chain in _BASE for rule in rules[chain]
    )


def _ways(word: str) -> dict[str, tuple[str, ...]]:
    """What comes before a packet is judged, and after."""
    return {
        "prerouting": (
            "iif lo accept",
            "iifgroup 2 goto antispoof",
            # Not set up yet, by whatever it came up: it is no part of the outside (behaviour B121).
            'iifname "vif*" counter drop',
            # QSB-056: an uplink's network must not speak for the qubes behind, nor to them.
            f"{word} saddr @downstream counter drop",
            f"{word} daddr @downstream counter drop",
            # All of it once more: each rule above can be lost, and what lets go must not pass without it.
            f'meta pkttype other iifname != "vif*" {word} saddr != @downstream {word} daddr != @downstream '
            "meta pkttype set host",
        ),
        "antispoof": (
            f"meta pkttype other iifname . {word} saddr @allowed meta pkttype set host accept",
            f"iifname . {word} saddr @allowed accept",
            "counter drop",
        ),
        "egress": (
            "oifgroup 2 accept",
            "oif lo accept",
            'oifname "vif*" counter drop',
            f"{word} saddr @downstream counter drop",
            f"{word} daddr @downstream counter drop",
            f'{guard.IS_HELD} oifname != "vif*" {word} saddr != @downstream {word} daddr != @downstream '
            f"{guard.toggled(HELD)}",
        ),
        "postrouting": ("oifgroup 2 accept", "oif lo accept", "masquerade"),
    }


def _rules(family: _Family) -> dict[str, tuple[str, ...]]:
    word = family.word
    foreign_error = _foreign_error(word)
    return _ways(word) | {
        "input": (
            "iif lo accept",
            # Conntrack does not know it, so it is not translated: it would leak addresses (behaviour B86).
            "ct state invalid counter drop",
            foreign_error,
            f"iifgroup {{ 1, 2 }} {family.redirect} counter drop",
            *family.neighbours,
            *guard.asking(word, "custom-input", HELD),
            "ct state established,related accept",
            *family.uplink,
            f"iifgroup 2 {family.ping} accept",
            f"iifgroup 2 counter reject with {family.prohibited}",
        ),
        "forward": (
            "ct state invalid counter drop",
            foreign_error,
            *guard.asking(word, "custom-forward", HELD | ASKED),
            f"meta priority & {ASKED:#x} != 0 meta priority set meta priority | {family.left:#x}",
            "ct state established,related accept",
            # The provider of this qube has no way through it, into a tunnel say (behaviour B115).
            "iifgroup 1 counter drop",
            "jump dns-reject",
            # From qube to qube, and from outside to a qube. What concerns no qube is not ours (behaviour B83).
            "oifgroup 2 counter drop",
        ),
    }


def _foreign_error(word: str) -> str:
    """Drop an ICMP error of a qube about a connection that is none of its own (behaviour B113).

    Its state, related, is that of the connection it quotes, and any qube can quote any: it could end and slow down
    connections of the other qubes and of this one. Its own are those that it began, and those that it answers in.
    """
    return (
        f"iifgroup 2 ct state related iifname . ct original {word} saddr != @allowed "
        f"iifname . ct reply {word} saddr != @allowed counter drop"
    )


def _rules_off(family: _Family) -> dict[str, tuple[str, ...]]:
    """Nothing of the qubes, neither what they send nor what is for them. What this qube has itself is not touched."""
    return _rules(family) | {
        "prerouting": ("iif lo accept", "iifgroup 2 counter drop", *_rules(family)["prerouting"][2:]),
        "input": (
            "iif lo accept",
            "iifgroup 2 counter drop",
            "ct state invalid counter drop",
            f"iifgroup 1 {family.redirect} counter drop",
            *guard.asking(family.word, "custom-input", HELD),
            "ct state established,related accept",
            *family.uplink,
        ),
        "forward": ("counter",),
    }


def _rules_refusing(family: _Family) -> dict[str, tuple[str, ...]]:
    """As `_rules_off`, and a qube that speaks by its own address is told so.

    Before routing and conntrack: without forwarding the kernel drops without a word what is for others.
    """
    rules, own = _rules_off(family), f"iifname . {family.word} saddr @allowed"
    return rules | {
        "prerouting": _rules(family)["prerouting"],
        "antispoof": (
            _ORDINARY,  # else the kernel sends no answer about it
            f"{own} meta l4proto tcp counter reject with tcp reset",
            f"{own} counter reject with {family.prohibited}",
            "counter drop",
        ),
    }


def _block(head: str, lines: Iterable[str]) -> str:
    return f"{head} {{\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


def attach(name: str, addresses: Iterable[IPAddress], mac: str) -> str:
    """Allow a vif to send from these addresses, and no other one.

    Args:
        name: of the vif; ValueError when it is not the name of one.
        addresses: of either family.
        mac: of the other end, lower-case, to which ARP is held too; "" where the kernel has no nftables for ARP.
    """
    return attach_all(((name, addresses, mac),))


def attach_all(vifs: Iterable[tuple[str, Iterable[IPAddress], str]]) -> str:
    """Return the same for many, with one line a set: of 250 vifs one line each is more than the kernel takes at once.

    Args:
        vifs: name, addresses and MAC address of each, as for `attach`.
    """
    vifs = tuple((name, tuple(addresses), mac) for name, addresses, mac in vifs)
    allowed = tuple(element for vif in vifs for element in _allowed(*vif))
    return _elements("add", "allowed", allowed) + downstream((own for _, addresses, _ in vifs for own in addresses), ())


def detach(name: str, addresses: Iterable[IPAddress], keep_downstream: Iterable[IPAddress], mac: str) -> str:
    """Return the reverse of `attach`; missing elements are ignored.

    Args:
        name: of the vif; ValueError when it is not the name of one.
        addresses: of either family.
        keep_downstream: those that stay protected: another vif has them, or a qube that may come back.
        mac: as for `attach`.
    """
    addresses, keep = tuple(addresses), frozenset(keep_downstream)
    gone = (own for own in addresses if own not in keep)
    return _removal("allowed", _allowed(name, addresses, mac)) + downstream((), gone)


def downstream(add: Iterable[IPAddress], remove: Iterable[IPAddress]) -> str:
    """Return the change of the protected addresses of client qubes; elements to remove may be missing."""
    added, removed = (tuple((_WORDS[own.version], str(own)) for own in which) for which in (add, remove))
    return _elements("add", "downstream", added) + _removal("downstream", removed)


def _allowed(name: str, addresses: Iterable[IPAddress], mac: str) -> tuple[tuple[str, str], ...]:
    """Elements of `allowed`, with the word of the family."""
    text, addresses = parse_name(name).text, tuple(addresses)
    pairs = tuple((_WORDS[address.version], f'"{text}" . {address}') for address in addresses)
    if not mac:
        return pairs
    mac = checks.mac(mac.encode())
    return (*pairs, *((ARP, f'"{text}" . {address} . {mac}') for address in addresses if address.version == IPV4))


def _removal(name: str, elements: tuple[tuple[str, str], ...]) -> str:
    """To delete what is not there is an error, to add what is there is none; nft 1.0.6 knows no `destroy`."""
    return _elements("add", name, elements) + _elements("delete", name, elements)


def _elements(verb: str, name: str, elements: tuple[tuple[str, str], ...]) -> str:
    text = ""
    for word in FAMILIES:
        members = ", ".join(dict.fromkeys(member for family, member in elements if family == word))
        text += f"{verb} element {word} {QUBES} {name} {{ {members} }}\n" if members else ""
    return text


def dnat(
    pairs: Iterable[tuple[ipaddress.IPv4Address, Endpoint]],
    virtual: Iterable[ipaddress.IPv4Address],
    servers: Iterable[Endpoint],
) -> str:
    """Return the redirection of the virtual DNS addresses, and the refusal of what it does not redirect, in one.

    Half of it or two of it was what users saw of updates that were no transaction (behaviour B33). Without a pair all
    that goes to the virtual addresses is refused, at once, instead of running out into the next network (B39, B40).

    Args:
        pairs: virtual address → server; UDP and TCP (behaviour B43).
        virtual: the addresses that are never to leave as they are.
        servers: the real ones. A proxy's are the virtual ones of the next provider: these do leave, for the port of
            names only.
    """
    return redirection(dnat_rules(pairs)) + refusal(virtual, servers)


def dnat_rules(pairs: Iterable[tuple[ipaddress.IPv4Address, Endpoint]]) -> tuple[str, ...]:
    """Return the rules of the redirection, as nft prints them too."""
    each = ((address, server, protocol) for address, server in pairs for protocol in ("udp", "tcp"))
    return tuple(f"ip daddr {address} {protocol} dport 53 dnat to {server}" for address, server, protocol in each)


def redirection(rules: Iterable[str]) -> str:
    """Return the first half of `dnat`, of any rules."""
    lines = (f"add rule ip {QUBES} dnat-dns {rule}" for rule in rules)
    return "".join(f"{line}\n" for line in (f"flush chain ip {QUBES} dnat-dns", *lines))


def refusal(virtual: Iterable[ipaddress.IPv4Address], servers: Iterable[Endpoint]) -> str:
    """Return the second half of `dnat`, for where the first one is another program's."""
    virtual = tuple(dict.fromkeys(virtual))
    named = guard.cleared(UNNAMED)
    through = [server for server in dict.fromkeys(servers) if server.address in virtual]
    lines = [f"flush chain ip {QUBES} dns-reject"]
    for port in dict.fromkeys(server.port for server in through):
        passing = ", ".join(str(server.address) for server in through if server.port == port)
        words = f"ip daddr {{ {passing} }} meta l4proto {{ tcp, udp }} th dport {port} {named} return"
        lines.append(f"add rule ip {QUBES} dns-reject {words}")
    if virtual:
        refused = f"add rule ip {QUBES} dns-reject ip daddr {{ {', '.join(map(str, virtual))} }}"
        lines.append(f"{refused} meta l4proto tcp counter reject with tcp reset")
        lines.append(f"{refused} counter reject with icmp port-unreachable")
    others = f"ip daddr != {{ {', '.join(map(str, virtual))} }} " if virtual else ""
    lines.append(f"add rule ip {QUBES} dns-reject {others}{named}")
    return "".join(f"{line}\n" for line in lines)


def lets_pass(listing: str) -> bool:
    """Return whether dns-reject reports accepted packets to the guard, which a former release's chain does not."""
    return "meta priority" in chosen({"ip": listing}, "chain", DNS_CHAINS[1:])


def firewall_servers(servers: Iterable[ipaddress.IPv4Address]) -> str:
    """Make the firewall's set hold these servers and no others (behaviour B45). The set has to be there."""
    members = ", ".join(map(str, dict.fromkeys(servers)))
    text = f"flush set ip {FIREWALL} {DNS_SET}\n"
    return text + (f"add element ip {FIREWALL} {DNS_SET} {{ {members} }}\n" if members else "")


def unload(*, arp: bool = True) -> str:
    """Take all of it away, users' chains and sets with it; tables that are not there are no error.

    One transaction: there is no moment with forwarding rules and without anti-spoofing. Forwarding has to be off by
    then.

    Args:
        arp: the kernel has nftables for ARP.
    """
    tables = [f"{family.word} {name}" for name in (QUBES, LIMITS) for family in _FAMILIES]
    tables += [f"{ARP} {QUBES}"] * arp
    return "".join(f"{verb} table {table}\n" for table in tables for verb in ("add", "delete"))
