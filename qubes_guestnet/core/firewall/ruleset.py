# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables `ip qubes-firewall` and `ip6 qubes-firewall` as text for `nft -f`. Texts may be joined to one transaction.

    forward ─▶ qubes-forward ─▶ map `qubes`: address of the qube ─▶ its chain qbs-…

Names, hooks and priorities are those that users' scripts rely on: they jump to `qubes-forward`, insert into `forward`,
and delete there the line that matches `vif.*accept` (behaviours B82, B90). So no text here flushes a chain but the
`qbs-…` ones; rules of ours elsewhere carry a comment, and are added where none of them is.

Both families come from one template. The addresses of a name are a set of their own, which all qubes share, so a new
answer changes elements and no rule. Of a qube without an element nothing passes, without an answer: that is the policy.

A text is made of the values of `rules` and `lines`, and of addresses; none of them can hold a command.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..nft.tables import DNS_SET, FIREWALL_HOOKS, FIREWALL_MAP
from ..values import IPAddress
from .binding import Bound
from .lines import FAMILIES, set_of
from .name_messages import problem_of

COMMENT = "qubes-guestnet"
_CHAIN = "qbs-"
_ELEMENTS_A_LINE = 64


HOOKS = {
    "forward": f"{FIREWALL_HOOKS['forward']}; policy drop;",
    "prerouting": f"{FIREWALL_HOOKS['prerouting']}; policy accept;",
    "postrouting": f"{FIREWALL_HOOKS['postrouting']}; policy accept;",
}
QUBES_FORWARD = "qubes-forward"
CHAINS = (QUBES_FORWARD, *HOOKS)


def own_rules(version: int) -> Mapping[str, tuple[str, ...]]:
    """Return our rules in the chains that users share, without their comment."""
    word = FAMILIES[version].word
    return {
        QUBES_FORWARD: (f"{word} saddr vmap @{FIREWALL_MAP}",),
        "forward": (
            "ct state established,related accept",
            # What no qube sends is not ours to judge (behaviour B83). A vif that is not set up yet has no group.
            'iifgroup != 2 iifname != "vif*" accept',
            f"jump {QUBES_FORWARD}",
            # A qube without rules yet, or without an address that has some: counted, then dropped by the policy.
            "counter",
        ),
    }


def tables(version: int, fill: Iterable[str]) -> str:
    """Return the table with sets and chains, without the qubes; what is there stays.

    Args:
        version: of the family.
        fill: the chains that get our rules: those that have none of them.
    """
    family, rules = FAMILIES[version], own_rules(version)
    table = family.table
    lines = (
        f"table {table}",
        f"set {table} {DNS_SET} {{ type {family.address}; }}",
        f"map {table} {FIREWALL_MAP} {{ type {family.address} : verdict; }}",
        f"chain {table} {QUBES_FORWARD}",
        *(f"chain {table} {chain} {{ {hook} }}" for chain, hook in HOOKS.items()),
    )
    fill = frozenset(fill)
    return "".join(f"add {line}\n" for line in lines) + "".join(
        f'add rule {table} {chain} {rule} comment "{COMMENT}"\n'
        for chain, each in rules.items()
        if chain in fill
        for rule in each
    )


def anew(version: int) -> str:
    """Return the replacement of the table by one without qubes, names or rules of users: it refuses everything.

    Args:
        version: of the family.
    """
    table = FAMILIES[version].table
    return f"add table {table}\ndelete table {table}\n{tables(version, own_rules(version))}"


# --- one qube ----------------------------------------------------------------------------------------------------


def chain_of(address: IPAddress) -> str:
    """Return the name of a qube's chain, a public one: qbs-10-137-0-5."""
    return _CHAIN + str(address).replace(".", "-").replace(":", "-")


def is_chain(name: str) -> bool:
    """Return whether a chain is one of a qube."""
    return name.startswith(_CHAIN)


def verdict(address: IPAddress) -> str:
    """Return where a qube's element leads to."""
    # Not goto: a user's rules behind it see what no rule here decides.
    return f"jump {chain_of(address)}"


def qube(bound: Bound, *, displaces: bool = False) -> str:
    """Return the replacement of a qube's rules, chain and element together (behaviours B88, B91).

    The sets of its names have to be there; `name` makes them.

    Args:
        bound: its rules.
        displaces: it has an element that leads elsewhere, which no other can be added to.
    """
    address = bound.ruleset.address
    table, chain = FAMILIES[address.version].table, chain_of(address)
    element = f"element {table} {FIREWALL_MAP} {{ {address}"
    whole = f'{element} comment "{bound.signature}" : {verdict(address)} }}'
    lines = (
        *[f"delete {element} }}"] * displaces,
        f"add chain {table} {chain}",
        f"flush chain {table} {chain}",
        *(f"add rule {table} {chain} {rule}" for rule in bound.rules),
        # An element that is there keeps its comment. To delete a missing one is an error, to add a present one none.
        f"add {whole}",
        f"delete {element} }}",
        f"add {whole}",
    )
    return "".join(f"{line}\n" for line in lines)


def without_element(address: IPAddress) -> str:
    """Return the removal of a qube's element, wherever it leads to. Nothing of the qube passes then."""
    return f"delete element {FAMILIES[address.version].table} {FIREWALL_MAP} {{ {address} }}\n"


def without_chain(version: int, chain: str, *, keep: bool) -> str:
    """Return the removal of the chain of a qube that has no element any more.

    Args:
        version: of the family.
        chain: ValueError when it is not one of a qube.
        keep: a rule of another program jumps to it: it stays and is empty.
    """
    check_chain(chain)
    where = f"chain {FAMILIES[version].table} {chain}"
    return f"add {where}\nflush {where}\n" + ("" if keep else f"delete {where}\n")


def check_chain(name: str) -> None:
    """Raise ValueError for what is not the name of a qube's chain: it may come from a listing."""
    if not is_chain(name) or not frozenset("0123456789abcdef-").issuperset(name.removeprefix(_CHAIN)):
        raise ValueError(f"{name[:60]!r} is not the name of a qube's chain")


# --- sets --------------------------------------------------------------------------------------------------------


def name(
    version: int, host: str, add: Iterable[IPAddress], remove: Iterable[IPAddress] = (), *, make: bool = False
) -> str:
    """Return the change of the addresses of a name: of elements and nothing else. Missing ones are ignored.

    Args:
        version: of the family.
        host: a name that is asked; ValueError for another text.
        add, remove: addresses of that family.
        make: its set, where there is none.
    """
    check_host(host)
    family = FAMILIES[version]
    where, remove = f"{family.table} {set_of(host)}", tuple(remove)
    text = f"add set {where} {{ type {family.address}; }}\n" if make else ""
    return text + _elements("add", where, (*remove, *add)) + _elements("delete", where, remove)


def without_name(version: int, host: str) -> str:
    """Return the removal of the set of a name, which no rule may use any more."""
    check_host(host)
    family = FAMILIES[version]
    where = f"set {family.table} {set_of(host)}"
    return f"add {where} {{ type {family.address}; }}\ndelete {where}\n"


def check_host(host: str) -> None:
    """Raise ValueError for what is no host name."""
    if problem_of(host):
        raise ValueError(f"{host[:60]!r} is not a host name")


def dns_servers(version: int, servers: Iterable[IPAddress]) -> str:
    """Return the text by which `dns-addr` holds these servers and no others (behaviours B45, B88)."""
    where = f"{FAMILIES[version].table} {DNS_SET}"
    return f"flush set {where}\n" + _elements("add", where, servers)


def _elements(verb: str, where: str, addresses: Iterable[IPAddress]) -> str:
    members, text = [str(address) for address in dict.fromkeys(addresses)], ""
    for begin in range(0, len(members), _ELEMENTS_A_LINE):
        text += f"{verb} element {where} {{ {', '.join(members[begin : begin + _ELEMENTS_A_LINE])} }}\n"
    return text
