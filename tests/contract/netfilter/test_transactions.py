# SPDX-License-Identifier: GPL-2.0-or-later
"""Transactions: nft is asked once for each state of our tables, and never told of what is no longer so."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from qubes_guestnet.core.nft import limits, rules_text, tables
from qubes_guestnet.core.nft.limits import Limits
from qubes_guestnet.provider.ruleset_generation import MISSING, Transactions, seen
from qubes_guestnet.system.nft import program as nft
from tests.support.judge.oracle import Oracle

pytestmark = pytest.mark.behaviour("B125")

LIMITS = limits.attach("vif4.0", (4, 6), Limits())
ELEMENT = 'add element ip qubes allowed { "vif4.0" . 10.137.0.4 }'


class Asked:
    """Counts what nft is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.families: list[tuple[str, ...]] = []
        self._tables = nft.tables
        monkeypatch.setattr(nft, "tables", self.tables)

    def tables(self, families: tuple[str, ...]) -> Mapping[str, str]:
        self.families.append(families)
        return self._tables(families)


@pytest.fixture
def asked(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> Asked:
    assert oracle
    return Asked(monkeypatch)


def test_what_is_not_there_is_not_asked_for(asked: Asked) -> None:
    transactions = Transactions()
    assert transactions.tables(("ip", "arp")) == {"ip": "", "arp": ""}
    assert asked.families == []
    transactions.run("add table arp qubes\n")
    assert transactions.tables(("ip", "arp"))["arp"].startswith("table arp qubes {")
    assert asked.families == [("arp",)]


def test_each_state_of_the_rules_is_listed_once(asked: Asked, oracle: Oracle) -> None:
    transactions = Transactions()
    transactions.run(rules_text.base(ipv6=True))
    whole = transactions.tables(tables.FAMILIES)
    assert transactions.tables(("ip6",)) == {"ip6": whole["ip6"]}
    assert asked.families == [tables.FAMILIES]
    oracle.run("nft", ELEMENT)
    assert "10.137.0.4" in transactions.tables(("ip",))["ip"]
    assert transactions.tables(("ip", "ip6"))["ip6"] == whole["ip6"]
    assert asked.families == [tables.FAMILIES, ("ip",), ("ip6",)]
    transactions.run("delete table ip6 qubes\n")
    assert transactions.tables(("ip", "ip6"))["ip6"] == ""
    assert asked.families[3:] == [("ip",)]


def test_a_transaction_of_ours_in_another_table_changes_nothing_of_them(asked: Asked, oracle: Oracle) -> None:
    transactions = Transactions()
    transactions.run(rules_text.base(ipv6=True))
    whole = transactions.tables(tables.FAMILIES)
    transactions.run(LIMITS)
    assert transactions.tables(tables.FAMILIES) == whole
    assert asked.families == [tables.FAMILIES]
    # Another program is faster, and changes ours.
    end = transactions.begin(LIMITS)
    oracle.run("nft", ELEMENT)
    end()
    assert "10.137.0.4" in transactions.tables(("ip",))["ip"]
    transactions.run(LIMITS + "flush chain ip6 qubes forward\n")
    assert transactions.tables(("ip6",))["ip6"] != whole["ip6"]


def test_the_sum_of_chains_is_of_what_is_there(oracle: Oracle) -> None:
    assert seen(rules_text.CHAINS) == MISSING
    transactions = Transactions()
    transactions.run(rules_text.base(ipv6=True))
    now = seen(rules_text.CHAINS)
    assert now == seen(rules_text.CHAINS, transactions.tables(tables.FAMILIES)) != MISSING
    oracle.run("nft", "flush chain ip qubes forward")
    assert seen(rules_text.CHAINS) not in (now, MISSING)


def test_a_mark_holds_until_another_program_changes_rules(oracle: Oracle) -> None:
    transactions = Transactions()
    assert not transactions.unchanged(None)
    transactions.run(rules_text.base(ipv6=True))
    mark = transactions.mark()
    assert transactions.unchanged(mark)
    transactions.run(LIMITS)
    assert transactions.unchanged(mark), "it was our own"
    transactions.run("add table ip qubes\n")
    assert transactions.unchanged(mark), "it changed nothing, so the kernel did not count it"
    oracle.run("nft", ELEMENT)
    assert not transactions.unchanged(mark)
    transactions.run("delete table ip6 qubes\n")
    assert not transactions.unchanged(mark), "one of ours does not make up for it"
    assert transactions.unchanged(transactions.mark())
