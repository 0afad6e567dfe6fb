# SPDX-License-Identifier: GPL-2.0-or-later
"""Proved for all packets, by z3: what the base rules keep apart, alone and with the firewall of single qubes."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
import z3
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet.core.firewall import ruleset
from qubes_guestnet.core.nft import rules_text
from tests.core.firewall import base_formulas, made, naive, proofs
from tests.core.firewall.base_formulas import INVALID, NEW, Packet, Table, accepts, any_of, user_accepts

TEXTS = {
    ("ip", "on"): rules_text.base(ipv6=True, arp=False),
    ("ip6", "on"): rules_text.base(ipv6=True, arp=False),
    ("ip6", "off"): rules_text.base(ipv6=False, arp=False),
    ("ip6", "refused"): rules_text.base(ipv6=False, refuse6=True, arp=False),
}
TABLES = {key: base_formulas.parse(text, key[0]) for key, text in TEXTS.items()}
Change = Callable[[Table], Table]


def never(table: Table, *conditions: Callable[[Table, Packet], z3.BoolRef]) -> bool:
    """No packet fulfils all of it."""
    packet, solver = Packet(), z3.Solver()
    solver.add(packet.possible, *(condition(table, packet) for condition in conditions))
    answer = solver.check()
    assert answer != z3.unknown
    return bool(answer == z3.unsat)


def arrives(table: Table, packet: Packet) -> z3.BoolRef:
    return accepts(table, "prerouting", packet)


def forwarded(table: Table, packet: Packet) -> z3.BoolRef:
    return z3.And(arrives(table, packet), accepts(table, "forward", packet), accepts(table, "egress", packet))


def let_in(table: Table, packet: Packet) -> z3.BoolRef:
    return z3.And(arrives(table, packet), accepts(table, "input", packet))


def unasked(chain: str) -> Callable[[Table, Packet], z3.BoolRef]:
    """It is no answer, and the users' chain does not accept it."""
    return lambda _, packet: z3.And(z3.Not(packet.answers), z3.Not(user_accepts(chain)))


def from_vif(_: Table, packet: Packet) -> z3.BoolRef:
    return packet.from_vif


def from_outside(_: Table, packet: Packet) -> z3.BoolRef:
    return z3.Not(z3.Or(packet.from_vif, packet.from_lo))


def to_qube(_: Table, packet: Packet) -> z3.BoolRef:
    return packet.out_group == 2


def no_ping(_: Table, packet: Packet) -> z3.BoolRef:
    words = ("icmp type echo-request", "icmpv6 type echo-request", "icmpv6 type nd-neighbor-solicit")
    return z3.Not(any_of(words))


CLAIMS: dict[str, tuple[Callable[[Table, Packet], z3.BoolRef], ...]] = {
    "from a vif to another one nothing": (from_vif, to_qube, forwarded, unasked("custom-forward")),
    "from a vif to the provider nothing but ping": (from_vif, let_in, no_ping, unasked("custom-input")),
    "from outside to a qube nothing": (from_outside, to_qube, forwarded, unasked("custom-forward")),
    "from outside to an address of a qube nothing at all": (from_outside, lambda _, p: p.to_down, arrives),
    "from outside by an address of a qube nothing at all": (from_outside, lambda _, p: p.from_down, arrives),
    "from a vif by the address of another nothing at all": (from_vif, lambda _, p: z3.Not(p.allowed), arrives),
    "from a vif that is not set up nothing at all": (from_vif, lambda _, p: p.in_group != 2, arrives),
    "what is invalid is not forwarded": (lambda _, p: z3.And(p.state == INVALID, z3.Not(p.from_lo)), forwarded),
    "what is invalid does not get in": (lambda _, p: z3.And(p.state == INVALID, z3.Not(p.from_lo)), let_in),
    "from the provider's own uplink nothing new": (
        lambda _, p: z3.And(p.in_group == 1, p.state == NEW),
        forwarded,
        unasked("custom-forward"),
    ),
    "to the uplink nothing with an address of a qube": (
        lambda _, p: z3.And(p.out_group != 2, z3.Not(p.to_lo), p.from_down),
        forwarded,
    ),
    "to a vif that is not set up nothing": (lambda _, p: z3.And(p.to_vif, p.out_group != 2), forwarded),
}
OFF = {"of a family that is off nothing of a vif": (from_vif, arrives)}


@pytest.mark.behaviour("B51", "B86", "B92", "B94", "B115", "B121")
@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("which", TABLES, ids=" ".join)
def test_no_packet_does_what_the_base_rules_forbid(which: tuple[str, str], claim: str) -> None:
    assert never(TABLES[which], *CLAIMS[claim])


@pytest.mark.behaviour("B92", "B160")
@pytest.mark.parametrize("state", ["off", "refused"])
def test_where_ipv6_is_off_nothing_of_a_vif_arrives(state: str) -> None:
    assert never(TABLES["ip6", state], *OFF["of a family that is off nothing of a vif"])
    assert not never(TABLES["ip6", "on"], *OFF["of a family that is off nothing of a vif"])


# --- broken on purpose -------------------------------------------------------------------------------------------


def without(chain: str, verdict: str, *conditions: str) -> Change:
    """The same without a rule."""

    def change(table: Table) -> Table:
        left = tuple(rule for rule in table.rules[chain] if rule != base_formulas.Rule(conditions, verdict))
        assert left != table.rules[chain]
        return table._replace(rules={**table.rules, chain: left})

    return change


def first(chain: str, verdict: str) -> Change:
    """The rules of a verdict come before the others."""

    def change(table: Table) -> Table:
        rules = sorted(table.rules[chain], key=lambda rule: rule.verdict != verdict)
        return table._replace(rules={**table.rules, chain: tuple(rules)})

    return change


def policy(chain: str) -> Change:
    return lambda table: table._replace(policies={**table.policies, chain: "accept"})


BROKEN: dict[str, Change] = {
    "anti-spoofing does not end with a drop": without("antispoof", "drop"),
    "vifs pass without anti-spoofing": lambda table: table._replace(
        rules={**table.rules, "antispoof": (base_formulas.Rule((), "accept"),)}
    ),
    "a vif that is not set up passes": without("prerouting", "drop", 'iifname "vif*"'),
    "sources of qubes pass from outside": without("prerouting", "drop", "saddr @downstream"),
    "destinations of qubes pass from outside": without("prerouting", "drop", "daddr @downstream"),
    "qubes reach each other": without("forward", "drop", "oifgroup 2"),
    "invalid packets are forwarded": without("forward", "drop", "ct state invalid"),
    "invalid packets get in": without("input", "drop", "ct state invalid"),
    "the uplink is forwarded": without("forward", "drop", "iifgroup 1"),
    "all is forwarded": lambda table: table._replace(
        rules={**table.rules, "forward": (base_formulas.Rule((), "accept"), *table.rules["forward"])}
    ),
    "answers come before what is invalid": first("input", "accept"),
    "input accepts what no rule matches": lambda table: policy("input")(
        table._replace(rules={**table.rules, "input": table.rules["input"][:-1]})
    ),
    "untranslated packets leave": without("egress", "drop", "saddr @downstream"),
    "packets for a vif that is not set up leave": without("egress", "drop", 'oifname "vif*"'),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("word", ["ip", "ip6"])
def test_the_proofs_fail_on_rules_that_are_broken(word: str, change: Change) -> None:
    table = change(TABLES[word, "on"])
    assert not all(never(table, *claim) for claim in CLAIMS.values())


# --- with the firewall of single qubes ---------------------------------------------------------------------------


def passes_both(version: int, lists: list[naive.Drawn], packet: Packet, header: proofs.Packet) -> z3.BoolRef:
    """Whether a packet passes the base rules and the firewall, as both chains `forward` see it."""
    addresses = (f"10.137.0.{n}" if version == 4 else f"fd09::{n}" for n in (5, 6, 7))
    chains = {address: made.of(found) for address, found in zip(addresses, lists, strict=True)}
    own = {address: proofs.chain(each, each.lines, header) for address, each in chains.items()}
    firewall = proofs.forward(header, own, ruleset.own_rules(version), ruleset.HOOKS["forward"])
    return z3.And(forwarded(TABLES["ip" if version == 4 else "ip6", "on"], packet), firewall)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.randoms(use_true_random=False), st.sampled_from((4, 6)))
def test_of_three_qubes_nothing_new_passes_but_what_its_own_list_accepts(chance: Random, version: int) -> None:
    packet, header = Packet(), proofs.Packet(version)
    lists = [naive.drawn(chance, version, most=4) for _ in range(3)]
    one_packet = z3.And(
        packet.possible,
        header.answers == packet.answers,
        header.from_vif == packet.from_vif,
        header.in_group == (packet.in_group == 2),
    )
    accepted = []
    for number, found in zip((5, 6, 7), lists, strict=True):
        address = f"10.137.0.{number}" if version == 4 else f"fd09::{number}"
        written = proofs.entries(found, header, proofs.in_force(found, header))
        accepted.append(z3.And(header.source == proofs.number(address), written))
    own = z3.And(packet.allowed, z3.Or(accepted))
    claim = z3.Implies(z3.And(packet.from_vif, z3.Not(packet.answers)), own)
    assert proofs.is_valid(z3.Implies(z3.And(one_packet, passes_both(version, lists, packet, header)), claim))
