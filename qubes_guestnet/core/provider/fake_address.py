# SPDX-License-Identifier: GPL-2.0-or-later
"""Fake addresses (behaviour B60): the network namespace between a mapped qube and its provider, step by step.

    qube ── vifN.M │ ruleset below │ provider ══ vifN.M ── the provider's own namespace
                   └── namespace vifN-nat ──┘

The qube's packets leave it with the real address, and what comes for that reaches the qube as its visible one; the same
with the gateway. Without connection tracking, so a packet belongs to the qube whatever it is part of. Destinations are
rewritten before the routing decision, sources after it: the visible gateway's address is the namespace's nowhere, and
no packet is a martian one.

An ICMP error carries the header of the packet it is about, with addresses of the wrong side. The side that gets it
would not know its own packet again (path MTU discovery would be a black hole), or would learn the other address. So
those inner addresses are rewritten as well, by the rules of `inner_rules`: nft's text cannot ask the kernel to mend the
inner checksum too, and with that the ICMP checksum stays right by itself. What still has an address that the qube must
not know is dropped; so are IP options, which can record addresses.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from ..namedtuple import NamedTuple
from ..values import BACKEND_MAC
from ..vif_name import VifName
from .vif import Mapping, Vif

# The provider's end of the namespace. Of the namespace alone, so every one can have the same name.
PEER = "provider"
TABLE = "qubes-nat"
# What a router without an address of its own signs ICMP errors with (RFC 7600): rewritten before it leaves.
DUMMY = IPv4Address("192.0.0.8")

# linux/icmp.h: all that quote a packet, but the redirect, which is for the network it comes from alone.
_ERRORS = "icmp type { destination-unreachable, source-quench, time-exceeded, parameter-problem }"
# Of the inner IPv4 header (RFC 791), behind 8 bytes of ICMP (RFC 792).
INNER_SOURCE, INNER_DESTINATION, INNER_CHECKSUM = 20, 24, 18


class InnerRule(NamedTuple):
    """A rule that nft has no words for: write an address into an inner header and mend the checksum there.

    Args:
        chain: which has nothing else in it.
        offset: of the address, from the transport header.
        address: to write.
    """

    chain: str
    offset: int
    address: IPv4Address


class Facts(NamedTuple):
    """What there is of a vif's namespace.

    Args:
        file: something of its name is in the folder of the namespaces.
        is_namespace: and that is one.
        moved: the vif is in it.
        joined: the provider's end of it is there.
        mtu: of the vif, 0 where it is gone.
    """

    file: bool = False
    is_namespace: bool = False
    moved: bool = False
    joined: bool = False
    mtu: int = 0


class Ip(NamedTuple):
    """Run `ip` commands, `inside` the namespace or in the provider's own."""

    commands: tuple[str, ...]
    inside: bool = False


class Tune(NamedTuple):
    """Write settings in the namespace; words as in system/procfs_sysctl."""

    settings: tuple[tuple[tuple[str, ...], int], ...]


class Load(NamedTuple):
    """Load the ruleset of the namespace, and append the rules that nft has no words for."""

    text: str
    inner: tuple[InnerRule, ...]


Step = Ip | Tune | Load


def build(facts: Facts, vif: Vif, mapping: Mapping, gateway: IPv4Address, outside: str) -> tuple[Step, ...]:
    """Plan the namespace between a qube and this provider, or what an existing one lacks.

    An interface of the same name and address replaces the vif. It stays down until anti-spoofing is in force.

    Args:
        facts: what there is.
        vif: whose device is there.
        mapping: of its address.
        gateway: the real one.
        outside: path of the provider's own namespace.
    """
    name, space, joined = vif.name.text, namespace(vif.name), facts.joined
    steps: list[Step] = []
    if facts.file and not facts.is_namespace:
        steps.append(Ip((f"netns delete {space}",)))  # only a file, left by an incomplete removal
    if not facts.is_namespace:
        steps.append(Ip((f"netns add {space}",)))
    steps.append(Tune(tunables()))
    if joined and not facts.moved:
        # Left by a former vif. While its peer has the name, no new vif can get it.
        steps.append(Ip((f"link delete {PEER}",), inside=True))
        joined = False
    if not facts.moved:
        steps.append(Ip((f"link set dev {name} down", f"link set dev {name} netns {space}")))
    if not joined:
        steps.append(Ip((pair(vif, facts.mtu, outside),), inside=True))
    return (
        *steps,
        Load(rules(vif.name, mapping, gateway), inner_rules(mapping, gateway)),
        Tune(vif_tunables(vif.name)),
        Ip(commands(vif, mapping, gateway), inside=True),
    )


def demolish(facts: Facts, vif: VifName, outside: str) -> tuple[Step, ...]:
    """Plan the end of a vif's namespace and of the interface that replaces it; an existing vif is moved back.

    Args:
        facts: what there is; missing parts are ignored.
        vif: its name.
        outside: path of the provider's own namespace.
    """
    if not facts.file:
        return ()
    steps: list[Step] = []
    if facts.joined:
        steps.append(Ip((f"link delete {PEER}",), inside=True))  # from here on the vif's name is free
    if facts.moved:
        back = (f"link set dev {vif.text} down", f"link set dev {vif.text} netns {outside}")
        steps.append(Ip(back, inside=True))
    return (*steps, Ip((f"netns delete {namespace(vif)}",)))


def namespace(name: VifName) -> str:
    """Return the name of a vif's namespace."""
    return f"vif{name.domid}-nat" if name.devid == 0 else f"{name.text}-nat"


def pair(vif: Vif, mtu: int, outside: str) -> str:
    """Return the `ip` command for the interface in the vif's place. It stays down until its rules are loaded.

    Args:
        vif: that is in the namespace.
        mtu: of the vif.
        outside: path of the provider's own namespace.
    """
    name = vif.name.text
    # The qube's own address inside: so the provider has one to one what it would have without the namespace.
    here = f"link add name {PEER} address {vif.mac} mtu {mtu} type veth"
    return f"{here} peer name {name} address {BACKEND_MAC} mtu {mtu} netns {outside}"


def commands(vif: Vif, mapping: Mapping, gateway: IPv4Address) -> tuple[str, ...]:
    """`ip` commands: links, neighbours and routes in the namespace. All can be said again.

    No ARP request is sent to the qube, which would reveal the sender's address, nor to the provider.
    """
    name = vif.name.text
    return (
        f"address replace {DUMMY}/32 dev lo",
        "link set dev lo up",
        f"link set dev {PEER} up",
        # Another mapping than before leaves nothing behind.
        f"neighbour flush dev {PEER} nud permanent",
        f"neighbour flush dev {name} nud permanent",
        f"route flush dev {name}",
        f"neighbour replace {gateway} lladdr {BACKEND_MAC} nud permanent dev {PEER}",
        f"route replace default via {gateway} dev {PEER} onlink",
        f"link set dev {name} address {BACKEND_MAC}",
        f"neighbour replace {mapping.visible} lladdr {vif.mac} nud permanent dev {name}",
        f"link set dev {name} up",
        f"route replace {mapping.visible}/32 dev {name}",
    )


_Setting = tuple[tuple[str, ...], int]


def tunables() -> tuple[_Setting, ...]:
    """Return settings of the namespace, before the vif comes, in this order; words as in system/procfs_sysctl."""
    every = ("all", "default")
    return (
        *((("ipv6", "conf", scope, "disable_ipv6"), 1) for scope in every),
        # Before the others, for it sets some of them.
        (("ipv4", "ip_forward"), 1),
        # A redirect would name the real gateway. What may come from where is the ruleset's.
        *(
            (("ipv4", "conf", scope, setting), 0)
            for setting in ("accept_redirects", "send_redirects", "rp_filter", "arp_notify")
            for scope in every
        ),
    )


def vif_tunables(name: VifName) -> tuple[_Setting, ...]:
    """Return settings of the vif in its namespace: it answers for every address, as each provider does, and at once."""
    return (
        (("ipv4", "conf", name.text, "proxy_arp"), 1),
        (("ipv4", "neigh", name.text, "proxy_delay"), 0),
    )


def inner_rules(mapping: Mapping, gateway: IPv4Address) -> tuple[InnerRule, ...]:
    """Return what the chains `inner-…` of `rules` are filled with, after it was loaded."""
    found = (
        InnerRule("inner-source-visible", INNER_SOURCE, mapping.visible),
        InnerRule("inner-destination-real", INNER_DESTINATION, mapping.real),
    )
    if mapping.gateway in (None, gateway):
        return found
    return (
        *found,
        InnerRule("inner-source-gateway", INNER_SOURCE, gateway),
        InnerRule("inner-destination-gateway", INNER_DESTINATION, mapping.gateway),
    )


def rules(name: VifName, mapping: Mapping, gateway: IPv4Address) -> str:
    """Return the ruleset of the namespace, one transaction for nft.

    Args:
        name: of the vif.
        mapping: whose gateway None means that the qube knows the real one.
        gateway: the real one.
    """
    fake = mapping.gateway if mapping.gateway != gateway else None
    chains = {
        "prerouting": (
            "type filter hook prerouting priority raw; policy drop;",
            "iif lo accept",
            "ip hdrlength != 5 counter drop",
            f"iifname {name.text} goto from-qube",
            f"iifname {PEER} goto to-qube",
        ),
        "input": ("type filter hook input priority filter; policy drop;",),
        "postrouting": (
            "type filter hook postrouting priority raw; policy drop;",
            f"oifname {PEER} goto leave-to-provider",
            f"oifname {name.text} goto leave-to-qube",
        ),
        **_arriving(mapping.real, mapping.visible, gateway, fake),
        **_leaving(mapping.real, mapping.visible, gateway, fake),
        **{rule.chain: () for rule in inner_rules(mapping, gateway)},
    }
    return _render(chains)


_Chains = dict[str, tuple[str, ...]]


def _arriving(real: IPv4Address, visible: IPv4Address, gateway: IPv4Address, fake: IPv4Address | None) -> _Chains:
    """Check sources, and rewrite destinations."""
    return {
        "from-qube": (
            f"ip saddr != {visible} counter drop",
            f"ip daddr {{ {visible}, {DUMMY} }} counter drop",
            # Its answer would come from the visible one.
            *_if(fake, f"ip daddr {gateway} counter drop", f"ip daddr {fake} ip daddr set {gateway}"),
            "accept",
        ),
        "to-qube": (
            f"ip daddr != {real} counter drop",
            f"ip saddr {{ {real}, {visible}, {DUMMY} }} counter drop",
            *_if(fake, f"ip saddr {fake} counter drop"),
            "icmp type redirect counter drop",
            f"ip daddr set {visible}",
            "accept",
        ),
    }


def _leaving(real: IPv4Address, visible: IPv4Address, gateway: IPv4Address, fake: IPv4Address | None) -> _Chains:
    """Sources, and what ICMP errors quote: also of those that the namespace itself sends."""
    return {
        "leave-to-provider": (
            f"{_ERRORS} {_inner(INNER_DESTINATION, visible)} jump inner-destination-real",
            *_if(fake, f"{_ERRORS} {_inner(INNER_SOURCE, fake)} jump inner-source-gateway"),
            f"ip saddr {{ {visible}, {DUMMY} }} ip saddr set {real}",
            "accept",
        ),
        "leave-to-qube": (
            f"{_ERRORS} jump error-to-qube",
            f"ip saddr {DUMMY} ip saddr set {fake or gateway}",
            *_if(fake, f"ip saddr {gateway} ip saddr set {fake}"),
            "accept",
        ),
        "error-to-qube": (
            # What it sent itself had no IP options: version 4, five words.
            "@th,64,8 != 0x45 counter drop",
            f"{_inner(INNER_SOURCE, real)} jump inner-source-visible",
            f"{_inner(INNER_SOURCE, visible, '!=')} counter drop",
            *_if(
                fake,
                f"{_inner(INNER_DESTINATION, gateway)} jump inner-destination-gateway",
                f"{_inner(INNER_DESTINATION, gateway)} counter drop",
            ),
        ),
    }


def _if(fake: IPv4Address | None, *lines: str) -> tuple[str, ...]:
    """Return rules that only a fake gateway needs."""
    return lines if fake is not None else ()


def _inner(offset: int, address: IPv4Address | None, relation: str = "==") -> str:
    return f"@th,{offset * 8},32 {relation} {int(address or 0):#010x}"


def _render(chains: _Chains) -> str:
    # All chains first, for rules lead to others. Nothing is deleted: at every moment one ruleset is in force.
    lines = [f"add table ip {TABLE}"]
    for chain, words in chains.items():
        hook = f" {{ {words[0]} }}" if "hook" in "".join(words[:1]) else ""
        lines += [f"add chain ip {TABLE} {chain}{hook}", f"flush chain ip {TABLE} {chain}"]
    for chain, words in chains.items():
        lines += [f"add rule ip {TABLE} {chain} {word}" for word in words if " hook " not in word]
    return "".join(f"{line}\n" for line in lines)
