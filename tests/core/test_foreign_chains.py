# SPDX-License-Identifier: GPL-2.0-or-later
"""Chains of others that come before ours. That the table of places is the kernel's is for tests/netns."""

from __future__ import annotations

import pytest

from qubes_guestnet.core.nft.foreign_chains import Chain, called, is_filtered, shadows

FORWARD = Chain("inet", "t", "f", "filter", "forward", -10, "drop")
DSTNAT = Chain("ip", "nat", "PREROUTING", "nat", "prerouting", -100)

CASES = {
    "before a filter chain": (FORWARD, ["forward"]),
    "at the same priority": (FORWARD._replace(priority=0), ["forward"]),
    "behind": (FORWARD._replace(priority=1), []),
    "a hook where we have nothing": (FORWARD._replace(hook="output"), []),
    "in one family": (FORWARD._replace(family="ip6"), ["forward"]),
    "a family that sees other packets": (FORWARD._replace(family="bridge"), []),
    "ours": (FORWARD._replace(family="ip", table="qubes"), []),
    "ours by name only": (FORWARD._replace(family="inet", table="qubes"), ["forward"]),
    "the firewall's": (FORWARD._replace(family="ip6", table="qubes-firewall"), []),
    "nat at the same priority": (DSTNAT, ["dnat-dns"]),
    "nat never keeps a packet from a filter": (DSTNAT._replace(priority=-400), ["dnat-dns"]),
    "nat behind": (DSTNAT._replace(priority=-90), []),
    "a filter never keeps a packet from nat": (DSTNAT._replace(kind="filter", priority=-150), []),
    "before anti-spoofing": (DSTNAT._replace(kind="filter", priority=-300), ["prerouting"]),
    "behind translation": (DSTNAT._replace(kind="route", hook="postrouting", priority=150), ["egress"]),
}


@pytest.mark.behaviour("B90")
@pytest.mark.parametrize(("chain", "ours"), CASES.values(), ids=CASES.keys())
def test_what_comes_before_ours(chain: Chain, ours: list[str]) -> None:
    found = shadows([chain])
    assert [shadow.ours.name for shadow in found] == ours
    assert {shadow.chain for shadow in found} <= {chain}


def test_in_words() -> None:
    (before,) = shadows([FORWARD])
    assert before.words == (
        "filter chain inet t f (hook forward, priority -10) is before our forward; its policy is drop"
    )
    (beside,) = shadows([DSTNAT])
    assert beside.words == (
        "nat chain ip nat PREROUTING (hook prerouting, priority -100) is at the same priority as our dnat-dns,"
        " in undefined order"
    )


GUARD = Chain("ip", "qubes-firewall", "forward", "filter", "forward", 0, "drop")


@pytest.mark.behaviour("B155")
@pytest.mark.parametrize(
    ("chains", "filtered"),
    [
        ([GUARD], True),
        ([FORWARD, GUARD], True),
        ([], False),
        ([FORWARD], False),
        ([GUARD._replace(policy="accept")], False),
        ([GUARD._replace(hook="prerouting")], False),
        ([GUARD._replace(family="ip6")], False),
    ],
)
def test_whether_the_firewall_of_the_qubes_is_there(chains: list[Chain], filtered: bool) -> None:
    assert is_filtered(chains) is filtered


@pytest.mark.behaviour("B155")
def test_a_dormant_table_filters_and_shadows_nothing() -> None:
    other = GUARD._replace(table="other")
    assert called([GUARD, other], {("ip", "qubes-firewall")}) == (other,)
    assert called([GUARD, other], {("ip6", "qubes-firewall"), ("ip", "other")}) == (GUARD,)
    assert not is_filtered(called([GUARD], {("ip", "qubes-firewall")}))
