# SPDX-License-Identifier: GPL-2.0-or-later
"""Proved for all packets: what is in force is what dom0 wrote. Each proof is shown to fail on rules that are broken."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from random import Random

import pytest
import z3
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet.core.firewall import ruleset
from qubes_guestnet.core.firewall.lines import Line
from qubes_guestnet.core.firewall.rules import Ports
from tests.core.firewall import made, naive, proofs
from tests.core.firewall.naive import Drawn
from tests.core.firewall.proofs import Packet, is_valid

many = settings(max_examples=120, deadline=None, derandomize=True)
ADDRESSES = {4: ("10.137.0.5", "10.137.0.6", "10.137.0.7"), 6: ("fd09::5", "fd09::6", "fd09::7")}
Lines = tuple[Line, ...]


def first_match(found: Drawn, change: Callable[[Lines], Lines] = tuple) -> bool:
    """For every packet: the chain's verdict is that of the first entry that matches."""
    packet, which = Packet(found.version), made.of(found)
    written = proofs.entries(found, packet, proofs.in_force(found, packet))
    return is_valid(proofs.chain(which, change(which.lines), packet) == written)


def subset(found: Drawn, change: Callable[[Lines], Lines] = tuple, partly: frozenset[str] = frozenset()) -> bool:
    """For every packet and every binding of unknown names: what the chain accepts, the complete list accepts."""
    packet, which = Packet(found.version), made.of(found, partly)
    complete = proofs.entries(found, packet, proofs.any_binding(found, packet, partly))
    return is_valid(z3.Implies(proofs.chain(which, change(which.lines), packet), complete))


@many
@given(st.randoms(use_true_random=False), st.sampled_from((4, 6)))
def test_the_verdict_is_the_first_match_for_every_packet(chance: Random, version: int) -> None:
    assert first_match(naive.drawn(chance, version))


@many
@given(st.randoms(use_true_random=False), st.sampled_from((4, 6)))
def test_unknown_names_allow_a_subset_under_every_binding(chance: Random, version: int) -> None:
    found = naive.drawn(chance, version, hosts=(*naive.HOSTS, *naive.NEVER_KNOWN))
    assert subset(found, partly=frozenset(host for host in found.names if chance.randrange(2)))


# --- the lines broken on purpose ---------------------------------------------------------------------------------


def each(change: Callable[[Line], Line | None]) -> Callable[[Lines], Lines]:
    """Break every line for itself; None leaves it out."""
    return lambda lines: tuple(changed for line in lines if (changed := change(line)) is not None)


def longer(line: Line) -> Line:
    """A network with one bit more, or one less."""
    network = line.network
    if network is None:
        return line
    whole = network.prefixlen == network.max_prefixlen
    changed = network.supernet() if whole else next(network.subnets())
    return line._replace(network=changed)


def ports(line: Line, first: int, last: int) -> Line:
    """Bounds that are off."""
    if line.ports is None:
        return line
    low, high = max(line.ports.first + first, 0), min(line.ports.last + last, 65535)
    return line._replace(ports=Ports(min(low, high), max(low, high)))


MUTANTS: dict[str, Callable[[Lines], Lines]] = {
    "the order is turned round": lambda lines: lines[::-1],
    "two rules are swapped": lambda lines: (*lines[1:2], *lines[:1], *lines[2:]),
    "the first rule is left out": lambda lines: lines[1:],
    "the last rule is left out": lambda lines: lines[:-1],
    "a drop accepts": each(lambda line: line._replace(accept=True)),
    "an accept refuses": each(lambda line: line._replace(accept=False)),
    "a network is forgotten": each(lambda line: line._replace(network=None)),
    "a network is one bit longer": each(longer),
    "a name is forgotten": each(lambda line: line._replace(host=None)),
    "the name servers are forgotten": each(lambda line: line._replace(dns=False)),
    "the protocol is forgotten": each(lambda line: line._replace(protocols=())),
    "UDP is forgotten": each(lambda line: line._replace(protocols=line.protocols[:1])),
    "TCP and UDP are confused": each(
        lambda line: line._replace(protocols=tuple({"tcp": "udp", "udp": "tcp"}.get(p, p) for p in line.protocols))
    ),
    "the ports are forgotten": each(lambda line: line._replace(ports=None)),
    "the first port is one too high": each(lambda line: ports(line, 1, 0)),
    "the first port is one too low": each(lambda line: ports(line, -1, 0)),
    "the last port is one too high": each(lambda line: ports(line, 0, 1)),
    "the last port is one too low": each(lambda line: ports(line, 0, -1)),
    "the ICMP type is forgotten": each(lambda line: line._replace(icmp_type=None)),
    "rules with conditions are left out": each(lambda line: None if line.ports is not None else line),
}
LISTS = [naive.drawn(Random(seed), 4 + seed % 2 * 2, most=12) for seed in range(40)]


@pytest.mark.parametrize("change", MUTANTS.values(), ids=MUTANTS)
def test_the_first_proof_fails_on_rules_that_are_broken(change: Callable[[Lines], Lines]) -> None:
    assert any(not first_match(found, change) for found in LISTS)


HALF = ipaddress.ip_network("192.0.2.0/25")
NAMED = Drawn(4, "drop", {"0000": "action=drop dsthost=a.example", "0001": "action=accept dst4=192.0.2.0/24"}, {})
ACCEPTED = Drawn(4, "drop", {"0000": "action=accept dsthost=a.example proto=tcp"}, {})


@pytest.mark.parametrize(
    ("found", "change"),
    [
        (NAMED, lambda lines: lines[1:]),  # the unknown name is ignored, as other firewalls do
        (NAMED, each(lambda line: line if line.accept else line._replace(protocols=("tcp",)))),
        (
            NAMED,
            each(lambda line: line if line.accept else line._replace(network=HALF)),
        ),
        (NAMED, lambda lines: lines[::-1]),
        (ACCEPTED, each(lambda line: line._replace(host=None))),
        (ACCEPTED, lambda lines: (*lines, Line(1, True, protocols=("tcp",)))),
    ],
)
def test_the_second_proof_fails_where_an_unknown_name_loosens(found: Drawn, change: Callable[[Lines], Lines]) -> None:
    assert subset(found)
    assert not subset(found, change)


# --- the way to the chain ----------------------------------------------------------------------------------------


def dispatched(
    version: int,
    lists: list[Drawn],
    rules: Callable[[dict[str, tuple[str, ...]]], dict[str, tuple[str, ...]]] = dict,
    policy: str = ruleset.HOOKS["forward"],
    places: tuple[int, ...] = (0, 1, 2),
) -> bool:
    """For every packet: it passes if it is an answer, is of no qube, or its own qube's list accepts it."""
    packet = Packet(version)
    chains = []
    for found in lists:
        which = made.of(found)
        chains.append(proofs.chain(which, which.lines, packet))
    own = {address: chains[place] for address, place in zip(ADDRESSES[version], places, strict=False)}
    passes = proofs.forward(packet, own, rules(dict(ruleset.own_rules(version))), policy)
    allowed = [packet.answers, z3.And(z3.Not(packet.in_group), z3.Not(packet.from_vif))]
    for address, found in zip(ADDRESSES[version], lists, strict=True):
        written = proofs.entries(found, packet, proofs.in_force(found, packet))
        allowed.append(z3.And(packet.source == proofs.number(address), written))
    return is_valid(passes == z3.Or(allowed))


@many
@given(st.randoms(use_true_random=False), st.sampled_from((4, 6)))
def test_of_three_qubes_each_may_what_its_own_list_says(chance: Random, version: int) -> None:
    assert dispatched(version, [naive.drawn(chance, version, most=4) for _ in range(3)])


THREE = {version: [naive.drawn(Random(seed), version, most=4) for seed in (1, 2, 3)] for version in (4, 6)}


def without(place: int) -> Callable[[dict[str, tuple[str, ...]]], dict[str, tuple[str, ...]]]:
    return lambda rules: rules | {"forward": rules["forward"][:place] + rules["forward"][place + 1 :]}


@pytest.mark.parametrize(
    "broken",
    [
        {"policy": ruleset.HOOKS["prerouting"]},
        {"rules": without(0)},
        {"rules": without(1)},
        {"rules": without(2)},
        {"rules": lambda rules: rules | {ruleset.QUBES_FORWARD: ()}},
        {"places": (1, 0, 2)},
        {"places": (0, 1)},
        {"places": (0, 0, 0)},
    ],
    ids=[
        "policy",
        "answers",
        "others",
        "jump",
        "map",
        "two chains swapped",
        "a qube without an element",
        "one chain for all",
    ],
)
@pytest.mark.parametrize("version", [4, 6])
def test_the_third_proof_fails_on_a_way_that_is_broken(version: int, broken: dict[str, object]) -> None:
    assert dispatched(version, THREE[version])
    assert not dispatched(version, THREE[version], **broken)  # type: ignore[arg-type]
