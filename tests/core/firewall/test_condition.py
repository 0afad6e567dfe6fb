# SPDX-License-Identifier: GPL-2.0-or-later
"""What `status` and `check` say of the firewall of single qubes."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

import pytest

from qubes_guestnet.core.check import provider_findings
from qubes_guestnet.core.check.provider_findings import Ground
from qubes_guestnet.core.firewall import condition, lines, listing, name_news, ruleset
from qubes_guestnet.core.firewall.condition import BLOCKED, IN_FORCE, UNSEEN, WAITING, Condition
from qubes_guestnet.core.firewall.entries import Stored
from qubes_guestnet.core.firewall.listing import Element, Listed
from qubes_guestnet.core.firewall.name_cache import Cache, Entry
from qubes_guestnet.core.firewall.name_messages import Question
from qubes_guestnet.core.provider.provider_report import ProviderReport
from qubes_guestnet.core.provider.settings import ProviderSettings
from qubes_guestnet.core.provider.vif import Vif
from qubes_guestnet.core.provider.vif_order import VifReport
from qubes_guestnet.core.render import firewall as render_firewall
from qubes_guestnet.core.render import provider as render_provider
from qubes_guestnet.core.values import IPAddress
from qubes_guestnet.core.vif_name import parse_name

A, B, C = (ipaddress.ip_address(f"10.137.0.{number}") for number in (4, 5, 6))
A6 = ipaddress.ip_address("fd09:24ef:4179::a89:4")
BAD = {"policy": b"drop", "0000": b"action=accept foo=1", "0002": b"action=no"}
STORED = Stored({A: {"policy": b"drop", "0000": b"action=accept"}, B: BAD}, frozenset({A, B}))


def table(version: int, **last: str) -> Listed:
    """A table with a chain whose last rule has this comment, by the end of the qube's address."""
    addresses = {A: "a", B: "b"} if version == 4 else {A6: "a"}
    there = {address: last[key] for address, key in addresses.items() if key in last}
    chains = {ruleset.chain_of(each): (f'reject comment "{comment}"',) for each, comment in there.items()}
    return listing.Listed(chains, {each: Element(ruleset.verdict(each), "") for each in there})


def test_each_address_has_a_condition() -> None:
    found = condition.conditions((B, A, A6, C), STORED, {4: table(4, a=lines.POLICY, b=lines.BLOCKED)})
    assert list(found) == [A, B, C, A6]
    assert {address: each.state for address, each in found.items()} == {
        A: IN_FORCE,
        B: BLOCKED,
        C: WAITING,
        A6: WAITING,
    }
    assert found[A].problems == ()
    assert [problem.split(":")[0] for problem in found[B].problems] == [
        f"/qubes-firewall/{B}/0000",
        f"/qubes-firewall/{B}/0002",
        f"/qubes-firewall/{B}/0002",
    ][: len(found[B].problems)]
    assert condition.conditions((A,), STORED, None) == {A: Condition(UNSEEN)}


def test_a_name_server_that_is_refused_before_it_is_allowed_is_told() -> None:
    entries = {"policy": b"drop", "0000": b"action=drop dst4=192.0.2.0/24", "0001": b"action=accept specialtarget=dns"}
    server = ipaddress.ip_address("192.0.2.53")
    there = table(4, a=lines.POLICY)._replace(dns=frozenset({server}))
    (found,) = condition.conditions((A,), Stored({A: entries}, frozenset({A})), {4: there}).values()
    assert found.shadowed == ((server, 0),)
    (told,) = (each for each in provider_findings.remarks(report({A: found}), Ground()) if each.code == "dns-shadowed")
    assert told.severity == "warning"
    assert told.problem.startswith(f"entry 0000 of the list of {A} refuses the name server {server}")


@pytest.mark.behaviour("B75")
def test_each_name_with_a_trouble_is_told_and_what_comes_of_it() -> None:
    names = ("known.org", "unknown.org", "stale.org", "unasked.org")
    entries = {"policy": b"drop"} | {
        f"000{n}": f"action=accept dsthost={name}".encode() for n, name in enumerate(names)
    }
    cache = Cache((), {Question(4, "known.org"): Entry(answered=9), Question(4, "unknown.org"): Entry(reason="timeout"),
                       Question(4, "stale.org"): Entry(answered=9, failures=1, reason="timeout")})  # fmt: skip
    for last, refused in ((lines.POLICY, False), (lines.BLOCKED, True)):
        stored = Stored({A: entries}, frozenset({A}))
        conditions = condition.conditions((A,), stored, {4: table(4, a=last)}, cache)
        assert [(name, code) for name, code, _ in conditions[A].names] == [
            ("unknown.org", name_news.UNKNOWN), ("stale.org", name_news.STALE),
        ]  # fmt: skip
        told = list(provider_findings.remarks(report(conditions), Ground()))
        found = [(each.code, each.problem.split()[0]) for each in told if each.code.startswith("name-")]
        assert found == [("name-unresolved", "unknown.org"), ("name-stale", "stale.org")]
        blocked = [each.problem for each in told if each.code == "firewall-blocked"]
        assert len(blocked) == refused
        assert all(
            "is refused: unknown.org is not known yet (the name servers do not answer)" in each for each in blocked
        )


def test_chains_that_lost_rules_of_ours_are_named() -> None:
    whole = {chain: (f'x comment "{ruleset.COMMENT}"',) * len(own) for chain, own in ruleset.own_rules(4).items()}
    assert condition.changed({4: Listed(whole), 6: Listed(whole)}) == ()
    assert condition.changed({4: Listed({**whole, "forward": ()}), 6: Listed(whole)}) == ("ip qubes-firewall forward",)


def report(conditions: Mapping[IPAddress, Condition], changed: tuple[str, ...] = ()) -> ProviderReport:
    vif = Vif(parse_name("vif4.0"), "00:16:3e:5e:6c:04", "vif", (A, A6))
    return ProviderReport(
        ProviderSettings(active=True),
        True,
        vifs=(VifReport(vif, None),),
        conditions=conditions,
        firewall_changed=changed,
    )


TEXTS: list[tuple[dict[IPAddress, Condition], list[str]]] = [
    ({A: Condition(IN_FORCE), A6: Condition(IN_FORCE)}, [", firewall: in force"]),
    (
        {A: Condition(BLOCKED, ("one", "two")), A6: Condition(WAITING)},
        [
            f", firewall: {A} BLOCKED, everything is refused, {A6} waiting for dom0, nothing passes",
            "  one",
            "  two",
        ],
    ),
    ({A: Condition(IN_FORCE, ("a note",)), A6: Condition(IN_FORCE)}, [", firewall: in force", "  a note"]),
    ({A: Condition(UNSEEN), A6: Condition(UNSEEN)}, [", firewall: run as root to see it"]),
    ({B: Condition(IN_FORCE)}, ["its device is gone"]),
    ({}, ["its device is gone"]),
]


@pytest.mark.parametrize(("conditions", "ends"), TEXTS)
def test_the_line_of_a_vif(conditions: dict[IPAddress, Condition], ends: list[str]) -> None:
    told = [str(each) for each in render_provider.as_text(report(conditions))]
    first = next(number for number, text in enumerate(told) if text.startswith("vif4.0"))
    shown = told[first:]
    assert len(shown) == len(ends)
    assert all(text.endswith(end) for text, end in zip(shown, ends, strict=True)), shown


def test_the_data_of_a_vif() -> None:
    found = render_provider.as_data(report({A: Condition(BLOCKED, ("one",))}, ("ip qubes-firewall forward",)), {})
    assert found is not None
    assert found["vifs"][0]["firewall"] == [{"address": str(A), "state": "blocked", "problems": ["one"]}]
    assert found["firewall_changed"] == ["ip qubes-firewall forward"]
    assert render_firewall.as_data({}) == []


def test_check_names_every_error_of_a_list() -> None:
    conditions = {
        A: Condition(IN_FORCE),
        A6: Condition(WAITING),
        B: Condition(BLOCKED, ("one", "two")),
        C: Condition(BLOCKED),
    }
    told = report(conditions, ("ip qubes-firewall forward", "ip6 qubes-firewall forward"))
    found = [each for each in provider_findings.remarks(told, Ground()) if each.code.startswith("firewall-")]
    assert [(each.code, each.severity) for each in found] == [
        ("firewall-not-committed", "warning"),
        ("firewall-blocked", "error"),
        ("firewall-blocked", "error"),
        ("firewall-table-changed", "warning"),
    ]
    assert str(A6) in found[0].problem
    assert "one | two" in found[1].problem
    assert "nft refuses its rules" in found[2].problem
    assert [each.remedy.partition(":")[0] for each in found[1:3]] == [
        "correct its rules in dom0",
        "the journal of qubes-guestnet has nft's reason; for `Message too long` raise net.core.wmem_max",
    ]
    assert "ip qubes-firewall forward, ip6 qubes-firewall forward" in found[3].problem


def test_check_says_nothing_of_a_firewall_that_is_in_force() -> None:
    told = report({A: Condition(IN_FORCE, ("a note",)), A6: Condition(UNSEEN)})
    assert [each for each in provider_findings.remarks(told, Ground()) if each.code.startswith("firewall-")] == []
