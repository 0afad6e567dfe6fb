# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole way: hooks, route, forwarding, and which step decides."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from qubes_guestnet.core.nft.tables import FIREWALL, GUARD, LIMITS, QUBES
from qubes_guestnet.core.packet import way
from qubes_guestnet.core.packet.loaded import Base, Loaded, Rule
from qubes_guestnet.core.packet.match import Packet
from qubes_guestnet.core.packet.way import DROPPED, PASSES, REFUSED, UNCLEAR, Facts, Walked, Way
from tests.core.packet.made import OUT, match, meta, packet, payload

YES, NO, ODD = {"accept": None}, {"drop": None}, match(meta("skuid"), 0)
TOLD: dict[str, Any] = {"reject": {}}
OWN = ip_address("10.138.0.1")
VIF = match(meta("iifgroup"), 2)


def rules(**chains: list[list[Any]]) -> Loaded:
    """Chains by `HOOK`, `TABLE_HOOK` with its table in short, of ip and of ip6; in the order of this list."""
    tables = {"q": QUBES, "f": FIREWALL, "l": LIMITS, "g": GUARD}
    bases, found = [], {}
    for place, (name, own) in enumerate(chains.items()):
        short, _, chain = name.rpartition("_")
        family = "inet" if short == "g" else "ip"
        key = family, tables.get(short, "mine"), chain
        kind = "nat" if any("dnat" in each or "masquerade" in each for rule in own for each in rule) else "filter"
        hook = {"egress": "postrouting", "nat": "prerouting"}.get(chain, chain)
        bases.append(Base(key, kind, hook, place, "drop" if name == "f_forward" else "accept"))
        found[key] = tuple(Rule(f"{name} {number}", "", tuple(each)) for number, each in enumerate(own))
    return Loaded(tuple(bases), found)


def walked(loaded: Loaded, sent: Packet | None = None, **changed: Any) -> Walked:
    def route(address: object) -> Way:
        if str(address) == "203.0.113.1":
            return Way(None)
        return Way(None, own=True) if address == OWN else Way(OUT, leaves_as=ip_address("198.51.100.2"))

    facts = Facts(loaded, frozenset({4}), "", frozenset(), route)._replace(**changed)
    return way.walk(sent or packet(), facts)


def outcomes(found: Walked) -> list[tuple[str, str]]:
    return [(step.name, step.outcome) for step in found.steps]


def test_a_packet_that_passes_names_the_entry_that_accepts_it() -> None:
    hold, let_go = (
        {"mangle": {"key": meta("pkttype"), "value": "other"}}, {"mangle": {"key": meta("pkttype"), "value": "host"}}
    )  # fmt: skip
    found = walked(
        rules(
            g_prerouting=[[VIF, hold, YES]],
            q_prerouting=[[match(meta("pkttype"), "other"), let_go, YES]],
            l_prerouting=[], nat=[[{"dnat": {"addr": "192.0.2.9"}}]], forward=[], q_forward=[], f_prerouting=[],
            f_forward=[[YES]], l_forward=[[YES]], g_forward=[], postrouting=[[{"masquerade": None}]],
            egress=[[match(payload("ip", "saddr"), "10.137.0.4"), NO]],
        )
    )  # fmt: skip
    assert outcomes(found) == [
        ("anti-spoofing", PASSES), ("limits", PASSES), ("other rules", PASSES), ("route", PASSES),
        ("forwarding", PASSES), ("base rules", PASSES), ("firewall", PASSES), ("guard", PASSES),
        ("other rules", PASSES), ("other rules", PASSES),
    ]  # fmt: skip
    words = {step.words for step in found.steps}
    assert {
        "redirected from 192.0.2.1 to 192.0.2.9",
        "it leaves as 198.51.100.2",
        "the sender is an address of the qube",
    } <= words
    assert "ip mine egress: no rule decides, the policy is accept" in words
    assert found.outcome == PASSES
    assert found.by is not None
    assert found.by.words == "ip qubes-firewall forward: f_forward 0"
    assert (found.packet.destination, found.packet.oif) == (ip_address("192.0.2.9"), OUT)


def test_a_user_chain_that_accepts_is_named() -> None:
    loaded = rules(q_forward=[[{"jump": {"target": "custom-forward"}}]])
    mine = {("ip", QUBES, "custom-forward"): (Rule("mine", "", (YES,)),)}
    found = walked(loaded._replace(rules={**loaded.rules, **mine}))
    assert "ip qubes custom-forward: mine" in [step.words for step in found.steps]
    assert (found.outcome, found.by) == (PASSES, None)


@pytest.mark.parametrize(
    ("loaded", "outcome", "words"),
    [
        (rules(q_prerouting=[[NO]], q_forward=[[TOLD]]), DROPPED, "ip qubes prerouting: q_prerouting 0"),
        (rules(g_prerouting=[], q_forward=[[TOLD]]), REFUSED, "ip qubes forward: q_forward 0"),
        (rules(f_forward=[]), DROPPED, "ip qubes-firewall forward: no rule decides, the policy is drop"),
        (rules(postrouting=[[NO]]), DROPPED, "ip mine postrouting: postrouting 0"),
        (
            rules(forward=[[ODD, NO]], f_forward=[[YES]]),
            UNCLEAR,
            "ip mine forward: no rule decides, the policy is accept",
        ),
        (rules(forward=[[ODD, YES]], f_forward=[[YES]]), PASSES, "ip qubes-firewall forward: f_forward 0"),
        (rules(forward=[[ODD, YES], [NO]]), UNCLEAR, "ip mine forward: forward 1"),
        (rules(forward=[[ODD, TOLD], [NO]]), DROPPED, "ip mine forward: forward 1"),
    ],
)
def test_the_first_step_that_refuses_decides(loaded: Loaded, outcome: str, words: str) -> None:
    found = walked(loaded)
    assert found.outcome == outcome
    assert found.by is not None
    assert found.by.words == words
    assert "guard" not in dict(outcomes(found))


def test_a_chain_of_the_other_family_or_another_hook_is_not_asked() -> None:
    sent = packet("2001:db8::1")
    found = walked(rules(forward=[[NO]], output=[[NO]]), sent, forwarding=frozenset({6}))
    assert outcomes(found) == [("route", PASSES), ("forwarding", PASSES)]


def test_of_two_translations_of_one_hook_the_first_counts() -> None:
    lead = [[{"dnat": {"addr": "192.0.2.9", "port": 5}}]]
    loaded = rules(nat=lead, q_nat=[[{"dnat": {"addr": "192.0.2.8"}}]])
    found = walked(loaded)
    assert (found.packet.destination, found.packet.port) == (ip_address("192.0.2.9"), 5)
    assert found.steps[0].words == "redirected from 192.0.2.1 to 192.0.2.9 port 5"
    nowhere = walked(rules(postrouting=[[{"masquerade": None}]]), route=lambda _address: Way(OUT))
    assert nowhere.steps[-1].words == "it leaves as this provider"


@pytest.mark.parametrize(
    ("target", "outcome", "words"),
    [
        ("224.0.0.1", DROPPED, "a provider does not forward to"),
        ("255.255.255.255", DROPPED, "a provider does not forward to"),
        ("127.0.0.1", DROPPED, "a provider does not forward to"),
        ("203.0.113.1", REFUSED, "there is no route to 203.0.113.1"),
        (str(OWN), REFUSED, "ip qubes input: q_input 0"),
    ],
)
def test_where_it_is_not_forwarded(target: str, outcome: str, words: str) -> None:
    found = walked(rules(q_input=[[TOLD]], q_forward=[[NO]]), packet(target))
    assert found.outcome == outcome
    assert found.by is not None
    assert words in found.by.words


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"forwarding": frozenset()}, "IPv4 is not forwarded: the sysctl is 0"),
        ({"forwarding": frozenset(), "why_not": "closed"}, "IPv4 is not forwarded: closed"),
        ({"shut": frozenset({"vif4.0"})}, "packets from vif4.0 are not forwarded: its own sysctl is 0"),
    ],
)
def test_why_nothing_is_forwarded(changed: dict[str, Any], words: str) -> None:
    found = walked(rules(f_forward=[[YES]]), **changed)
    assert (found.outcome, found.by and found.by.words) == (DROPPED, words)


def test_what_the_guard_holds_is_not_forwarded() -> None:
    """The base rules are gone: its packet is one for another host."""
    hold = {"mangle": {"key": meta("pkttype"), "value": "other"}}
    found = walked(rules(g_prerouting=[[hold]]))
    assert found.by is not None
    assert found.by.words == "the base rules have not released it from the guard"


def test_chains_at_an_interface_are_named() -> None:
    bases = tuple(
        Base((family, table, "c"), "filter", hook, 0, "accept")
        for family, table, hook in (
            ("netdev", "mine", "ingress"), ("netdev", "empty", "egress"), ("inet", "qubes-offload", "ingress"),
            ("ip", "mine", "forward"),
        )
    )  # fmt: skip
    rule = (Rule("r", "", (NO,)),)
    loaded = Loaded(bases, {base.name: rule for base in bases if base.name[1] != "empty"})
    assert way.unjudged(loaded) == ("netdev mine c",)
