# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables `ip qubes-firewall` and `ip6 qubes-firewall` as text for `nft -f`. Several texts can form one transaction.

    forward ─▶ qubes-forward ─▶ map `qubes`: address of the qube ─▶ its chain qbs-…

Users' scripts rely on the names, hooks and priorities: they jump to `qubes-forward`, insert into `forward`, and delete
the line that matches `vif.*accept` there (behaviours B82, B90). Therefore the texts flush only chains `qbs-…`. Our
rules in other chains have a comment, and are added to a chain only if it has none of them.

Both families come from one template. Each name has a set of its addresses, which all qubes share, so a new answer
changes elements and no rule. The policy drops all packets of a qube without an element.

A text consists only of values of `rules` and `lines`, and of addresses; none of them can contain a command.
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
            # Only packets of client qubes are judged (behaviour B83). A vif that is not configured yet has no group.
            'iifgroup != 2 iifname != "vif*" accept',
            f"jump {QUBES_FORWARD}",
            # Packets of a qube without rules are counted here, then dropped by the policy.
            "counter",
        ),
    }


def tables(version: int, fill: Iterable[str]) -> str:
    """Return the text that adds the table with sets and chains, without rules of qubes; existing content stays.

    Args:
        version: the family.
        fill: the chains that get our rules, because they have none of them.
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
    """Return the text that recreates the table without qubes, names or users' rules; it then refuses everything.

    Args:
        version: the family.
    """
    table = FAMILIES[version].table
    return f"add table {table}\ndelete table {table}\n{tables(version, own_rules(version))}"


# --- one qube ----------------------------------------------------------------------------------------------------


def chain_of(address: IPAddress) -> str:
    """Return the name of a qube's chain, such as qbs-10-137-0-5; users' scripts may rely on it."""
    return _CHAIN + str(address).replace(".", "-").replace(":", "-")


def is_chain(name: str) -> bool:
    """Return whether a chain is one of a qube."""
    return name.startswith(_CHAIN)


def verdict(address: IPAddress) -> str:
    """Return the verdict of a qube's element."""
    # Not goto: a user's rules behind it see what no rule here decides.
    return f"jump {chain_of(address)}"


def qube(bound: Bound, *, displaces: bool = False) -> str:
    """Return the text that replaces a qube's rules, chain and element together (behaviours B88, B91).

    The sets of its names must exist; `name` creates them.

    Args:
        bound: its rules.
        displaces: first delete its element, which has another verdict.
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
        # An existing element keeps its comment, so it is replaced. Deleting a missing element is an error; adding one
        # that exists is not, so it is added first.
        f"add {whole}",
        f"delete {element} }}",
        f"add {whole}",
    )
    return "".join(f"{line}\n" for line in lines)


def without_element(address: IPAddress) -> str:
    """Return the text that removes a qube's element, so that all its packets are dropped."""
    return f"delete element {FAMILIES[address.version].table} {FIREWALL_MAP} {{ {address} }}\n"


def without_chain(version: int, chain: str, *, keep: bool) -> str:
    """Return the text that removes the chain of a qube that no longer has an element.

    Args:
        version: the family.
        chain: its name; ValueError if it is not that of a qube's chain.
        keep: only empty it, because another program's rule jumps to it.
    """
    check_chain(chain)
    where = f"chain {FAMILIES[version].table} {chain}"
    return f"add {where}\nflush {where}\n" + ("" if keep else f"delete {where}\n")


def check_chain(name: str) -> None:
    """Raise ValueError if a name, which may come from a listing, is not that of a qube's chain."""
    if not is_chain(name) or not frozenset("0123456789abcdef-").issuperset(name.removeprefix(_CHAIN)):
        raise ValueError(f"{name[:60]!r} is not the name of a qube's chain")


# --- sets --------------------------------------------------------------------------------------------------------


def name(
    version: int, host: str, add: Iterable[IPAddress], remove: Iterable[IPAddress] = (), *, make: bool = False
) -> str:
    """Return the text that changes the addresses of a name, which are set elements. Missing elements are ignored.

    Args:
        version: the family.
        host: the name; ValueError if it is not a host name.
        add, remove: addresses of that family.
        make: create its set first.
    """
    check_host(host)
    family = FAMILIES[version]
    where, remove = f"{family.table} {set_of(host)}", tuple(remove)
    text = f"add set {where} {{ type {family.address}; }}\n" if make else ""
    return text + _elements("add", where, (*remove, *add)) + _elements("delete", where, remove)


def without_name(version: int, host: str) -> str:
    """Return the text that removes the set of a name, which no rule may use."""
    check_host(host)
    family = FAMILIES[version]
    where = f"set {family.table} {set_of(host)}"
    return f"add {where} {{ type {family.address}; }}\ndelete {where}\n"


def check_host(host: str) -> None:
    """Raise ValueError if a text is not a host name."""
    if problem_of(host):
        raise ValueError(f"{host[:60]!r} is not a host name")


def dns_servers(version: int, servers: Iterable[IPAddress]) -> str:
    """Return the text that sets the elements of `dns-addr` to exactly these servers (behaviours B45, B88)."""
    where = f"{FAMILIES[version].table} {DNS_SET}"
    return f"flush set {where}\n" + _elements("add", where, servers)


def _elements(verb: str, where: str, addresses: Iterable[IPAddress]) -> str:
    members, text = [str(address) for address in dict.fromkeys(addresses)], ""
    for begin in range(0, len(members), _ELEMENTS_A_LINE):
        text += f"{verb} element {where} {{ {', '.join(members[begin : begin + _ELEMENTS_A_LINE])} }}\n"
    return text
