# SPDX-License-Identifier: GPL-2.0-or-later
"""Find chains of other programs that run before ours.

The kernel calls the chains of one hook in the order of their priorities. A `drop` in any of them ends the packet, an
`accept` ends only that chain, and only the first chain of type nat that translates a connection takes effect. Chains of
the same priority run in the order of their registration, which changes with a reload (#9711). So an earlier chain, or
one of the same priority, can take packets that a provider's rules, and users' rules in them, never see.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..namedtuple import NamedTuple
from .tables import ARP, FIREWALL, GUARD, IP_FAMILIES, LIMITS, LOG, QUBES, QUBES_HOOKS

NAT = "nat"
# Tables of the Qubes firewall, which has the same priority on purpose: both only drop packets.
_KNOWN = ((family, name) for family in IP_FAMILIES for name in (QUBES, LIMITS, FIREWALL))
KNOWN = frozenset(_KNOWN) | {("inet", GUARD), ("inet", LOG), (ARP, QUBES)}
# Instead of a state: the firewall of the qubes has no rules.
NO_FIREWALL = "missing"
# States of its service in systemd's words; one that was just killed is "activating" until it is started again.
_RUNS = frozenset({"", "active", "reloading", "refreshing", "queued"})
_FAMILIES = frozenset({*IP_FAMILIES, "inet"})  # others see other packets


class Chain(NamedTuple):
    """A chain with a hook.

    Args:
        family: of its table: ip, ip6, inet …
        table: name of its table.
        name: its own.
        kind: filter, nat or route.
        hook: prerouting, input, forward, output, postrouting …
        priority: lower is earlier.
        policy: what becomes of a packet at its end: accept or drop.
    """

    family: str
    table: str
    name: str
    kind: str
    hook: str
    priority: int
    policy: str = "accept"


class Place(NamedTuple):
    """The place of one of our chains."""

    name: str
    hook: str
    priority: int
    kind: str = "filter"


PLACES = tuple(sorted((Place(name, *hook) for name, hook in QUBES_HOOKS.items()), key=lambda place: place.priority))


class Shadow(NamedTuple):
    """A chain of another program, and our chain that it can withhold packets from."""

    chain: Chain
    ours: Place

    @property
    def words(self) -> str:
        """Return the description of the chain, for messages."""
        chain, ours = self.chain, self.ours
        equal = chain.priority == ours.priority
        order = f"at the same priority as our {ours.name}, in undefined order" if equal else f"before our {ours.name}"
        policy = "; its policy is drop" if chain.policy == "drop" else ""
        what = f"{chain.kind} chain {chain.family} {chain.table} {chain.name}"
        return f"{what} (hook {chain.hook}, priority {chain.priority}) is {order}{policy}"


def called(chains: Iterable[Chain], dormant: Collection[tuple[str, str]]) -> tuple[Chain, ...]:
    """Return the chains that the kernel calls: those of a dormant table judge no packet.

    Args:
        chains: every one that has a hook.
        dormant: family and name of the tables with that flag.
    """
    return tuple(chain for chain in chains if (chain.family, chain.table) not in dormant)


def is_filtered(chains: Iterable[Chain]) -> bool:
    """Return whether the firewall of the qubes exists: its table has the chain with the policy drop."""
    places = {(chain.family, chain.table, chain.hook, chain.policy) for chain in chains}
    return ("ip", FIREWALL, "forward", "drop") in places


def firewall(filtered: bool, state: str) -> str:
    """Return the problem of the firewall of the qubes (behaviour B155): NO_FIREWALL, or a state; "" for none.

    Args:
        filtered: its chains exist. They stay when its process is killed.
        state: state of qubes-firewall.service in systemd's words; "" without such a unit, or without systemd.
    """
    if not filtered:
        return NO_FIREWALL
    return "" if state in _RUNS else state


def shadows(chains: Iterable[Chain]) -> tuple[Shadow, ...]:
    """Return the chains of others that come before ours, each with the last one of ours that it precedes.

    Args:
        chains: every one that has a hook.
    """
    found = []
    for chain in chains:
        if (chain.family, chain.table) in KNOWN or chain.family not in _FAMILIES:
            continue
        nat = chain.kind == NAT
        behind = [place for place in PLACES if place.hook == chain.hook and (place.kind == NAT) == nat]
        found += [Shadow(chain, place) for place in behind if chain.priority <= place.priority]
    return tuple(found)
