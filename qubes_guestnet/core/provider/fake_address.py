# SPDX-License-Identifier: GPL-2.0-or-later
"""Fake addresses (behaviour B60): the network namespace between a mapped qube and its provider, step by step.

    qube ── vifN.M │ ruleset below │ provider ══ vifN.M ── the provider's own namespace
                   └── namespace vifN-nat ──┘

The qube's packets leave the namespace with the real address, and packets to that address reach the qube with its
visible one; the same holds for the gateway. This needs no connection tracking, so it works for every packet.
Destinations are rewritten before the routing decision, sources after it: the namespace does not own the visible
gateway's address, so no packet is martian.

An ICMP error contains the header of the packet that caused it, with addresses of the other side. Its receiver would not
recognise its own packet (path MTU discovery would be a black hole), or would learn the other address. Therefore the
rules of `inner_rules` also rewrite those inner addresses. They update the inner checksum, which nft's text cannot
express; the ICMP checksum then stays correct. Packets that still contain an address that the qube must not know are
dropped, and so are IP options, which can record addresses.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from ..namedtuple import NamedTuple
from ..values import BACKEND_MAC
from ..vif_name import VifName
from .vif import Mapping, Vif

# The provider's end of the namespace. It exists only inside the namespace, so all of them can have the same name.
PEER = "provider"
TABLE = "qubes-nat"
# A router without an address of its own sends ICMP errors from this one (RFC 7600); it is rewritten on the way out.
DUMMY = IPv4Address("192.0.0.8")

# linux/icmp.h: all types that quote a packet, except redirect, which is only valid on its own network.
_ERRORS = "icmp type { destination-unreachable, source-quench, time-exceeded, parameter-problem }"
# Offsets in the inner IPv4 header (RFC 791), after 8 bytes of ICMP (RFC 792).
INNER_SOURCE, INNER_DESTINATION, INNER_CHECKSUM = 20, 24, 18


class InnerRule(NamedTuple):
    """A rule that nft's text cannot express: write an address into an inner header and update its checksum.

    Args:
        chain: its chain, which has no other rule.
        offset: offset of the address from the transport header.
        address: the new address.
    """

    chain: str
    offset: int
    address: IPv4Address


class Facts(NamedTuple):
    """The state of a vif's namespace.

    Args:
        file: the folder of the namespaces has a file of its name.
        is_namespace: that file is a namespace.
        moved: the vif is in it.
        joined: the provider's end of it exists.
        mtu: MTU of the vif, 0 if it is gone.
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
    """Load the ruleset of the namespace, and append the rules that nft's text cannot express."""

    text: str
    inner: tuple[InnerRule, ...]


Step = Ip | Tune | Load


def build(facts: Facts, vif: Vif, mapping: Mapping, gateway: IPv4Address, outside: str) -> tuple[Step, ...]:
    """Plan the namespace between a qube and this provider, or the missing parts of an existing one.

    An interface with the same name and address replaces the vif. It stays down until anti-spoofing is in force.

    Args:
        facts: the present state.
        vif: the vif, whose device exists.
        mapping: the mapping of its address.
        gateway: the real gateway.
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
        # This is left from a former vif. While its peer has the name, no new vif can get it.
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
    """Return the `ip` command for the interface that replaces the vif. It stays down until its rules are loaded.

    Args:
        vif: the vif in the namespace.
        mtu: MTU of the vif.
        outside: path of the provider's own namespace.
    """
    name = vif.name.text
    # The inner end has the qube's own MAC address, so the provider sees the same as without the namespace.
    here = f"link add name {PEER} address {vif.mac} mtu {mtu} type veth"
    return f"{here} peer name {name} address {BACKEND_MAC} mtu {mtu} netns {outside}"


def commands(vif: Vif, mapping: Mapping, gateway: IPv4Address) -> tuple[str, ...]:
    """Return the `ip` commands for links, neighbours and routes in the namespace. All can be repeated.

    No ARP request is sent to the qube, which would reveal the sender's address, nor to the provider.
    """
    name = vif.name.text
    return (
        f"address replace {DUMMY}/32 dev lo",
        "link set dev lo up",
        f"link set dev {PEER} up",
        # Remove the entries of a former mapping.
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
        # This comes before the others, because it also sets some of them.
        (("ipv4", "ip_forward"), 1),
        # A redirect would reveal the real gateway. The ruleset checks the sources.
        *(
            (("ipv4", "conf", scope, setting), 0)
            for setting in ("accept_redirects", "send_redirects", "rp_filter", "arp_notify")
            for scope in every
        ),
    )


def vif_tunables(name: VifName) -> tuple[_Setting, ...]:
    """Return settings of the vif in its namespace: like each provider, it answers ARP for all addresses at once."""
    return (
        (("ipv4", "conf", name.text, "proxy_arp"), 1),
        (("ipv4", "neigh", name.text, "proxy_delay"), 0),
    )


def inner_rules(mapping: Mapping, gateway: IPv4Address) -> tuple[InnerRule, ...]:
    """Return the rules that are appended to the chains `inner-…` after `rules` is loaded."""
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
        name: name of the vif.
        mapping: the mapping; without a fake gateway the qube knows the real one.
        gateway: the real gateway.
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
            # The answer would come from the visible address.
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
    """Rewrite sources and the packets that ICMP errors quote, even in errors that the namespace itself sends."""
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
            # The quoted packets of the qube have no IP options: version 4, five words.
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
    # All chains come first, because rules jump to others. Nothing is deleted, so a ruleset is always in force.
    lines = [f"add table ip {TABLE}"]
    for chain, words in chains.items():
        hook = f" {{ {words[0]} }}" if "hook" in "".join(words[:1]) else ""
        lines += [f"add chain ip {TABLE} {chain}{hook}", f"flush chain ip {TABLE} {chain}"]
    for chain, words in chains.items():
        lines += [f"add rule ip {TABLE} {chain} {word}" for word in words if " hook " not in word]
    return "".join(f"{line}\n" for line in lines)
