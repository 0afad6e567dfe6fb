# SPDX-License-Identifier: GPL-2.0-or-later
"""A dormant table (`flags dormant`) judges no packet: what asks whether rules are in force finds them missing."""

from __future__ import annotations

import pytest

from qubes_guestnet.system.nft import kernel as nft_kernel
from qubes_guestnet.system.nft import program as nft
from tests.support.judge.oracle import Oracle

pytestmark = pytest.mark.behaviour("B155")

RULES = "".join(
    f"add table {family} {table}\n"
    f"add chain {family} {table} forward {{ type filter hook forward priority filter; policy drop; }}\n"
    f"add rule {family} {table} forward counter\n"
    for family in ("ip", "ip6")
    for table in ("qubes", "qubes-firewall", "qubes-limits")
)
ARP = """
add table arp qubes
add chain arp qubes forward { type filter hook input priority filter; policy accept; }
add rule arp qubes forward counter
"""
CHAINS = (("ip", "forward"), ("ip6", "forward"), ("arp", "forward"))


def sleep(oracle: Oracle, family: str, table: str) -> None:
    oracle.run("nft", f"add table {family} {table} {{ flags dormant; }}")


def wake(oracle: Oracle, family: str, table: str) -> None:
    oracle.run("nft", f"add table {family} {table}")


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_tables_of_which_one_is_dormant_are_not_in_force(oracle: Oracle, family: str) -> None:
    nft.run(RULES)
    for table, asked in (("qubes", nft_kernel.present), ("qubes-firewall", nft_kernel.filtering)):
        assert asked()
        sleep(oracle, family, table)
        assert not asked()
        assert nft_kernel.dormant() == {(family, table)}
        assert f"{family} {table}" in nft_kernel.table_names()
        wake(oracle, family, table)
        assert asked()
        assert nft_kernel.dormant() == set()


def test_one_without_its_chain_and_one_that_is_not_there_are_not_in_force_either(oracle: Oracle) -> None:
    nft.run(RULES)
    oracle.run("nft", "delete chain ip6 qubes-firewall forward")
    assert not nft_kernel.filtering()
    oracle.run("nft", "delete table ip qubes")
    assert not nft_kernel.present()


@pytest.mark.parametrize("family", ["ip", "ip6", "arp"])
def test_a_dormant_table_of_ours_has_no_rules(oracle: Oracle, family: str) -> None:
    nft.run(RULES + ARP)
    whole = nft_kernel.handles(CHAINS)
    assert {chain[:2] for chain in whole} == set(CHAINS)
    sleep(oracle, family, "qubes")
    assert nft_kernel.handles(CHAINS) == {rule for rule in whole if rule[0] != family}
    wake(oracle, family, "qubes")
    assert nft_kernel.handles(CHAINS) == whole


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_nor_has_one_of_the_limits(oracle: Oracle, family: str) -> None:
    nft.run(RULES)
    assert nft_kernel.limit_rules() == {("ip", "forward"): 1, ("ip6", "forward"): 1}
    sleep(oracle, family, "qubes-limits")
    (left,) = nft_kernel.limit_rules()
    assert left[0] != family
