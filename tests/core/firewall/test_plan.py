# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans against a model of nftables: what is loaded becomes what is wanted, a second plan is empty."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet.core.firewall import listing, ruleset
from qubes_guestnet.core.firewall.binding import Bound
from qubes_guestnet.core.firewall.lines import FAMILIES
from qubes_guestnet.core.firewall.listing import Listed
from qubes_guestnet.core.firewall.operations import (
    ChangeName,
    LoadFirewallTable,
    RemoveName,
    RemoveQubeChain,
    RemoveQubeRules,
    SetDnsServers,
    SetQubeRules,
    halves,
    transaction,
)
from qubes_guestnet.core.firewall.plan import Wanted, is_missing, lost_rules, plan
from qubes_guestnet.core.firewall.prediction import after
from qubes_guestnet.system.nft.program import Refused
from tests.core.firewall import made, naive
from tests.core.firewall.made import FOUR, SIX, A, bound
from tests.core.ruleset import Ruleset

if TYPE_CHECKING:
    from qubes_guestnet.core.firewall.operations import Operation

many = settings(max_examples=50, deadline=None, derandomize=True)
TABLE = "qubes-firewall"
NAMED = "action=accept dsthost=a.org"


def listed(kernel: Ruleset) -> dict[int, Listed]:
    return {version: listing.parse(kernel.listing(family.word, TABLE)) for version, family in FAMILIES.items()}


def wanted(*lists: Bound, dns: Mapping[int, Iterable[str]] | None = None, kept: Iterable[str] = ()) -> Wanted:
    servers = {version: frozenset(map(A, each)) for version, each in (dns or {}).items()}
    return Wanted({each.ruleset.address: each for each in lists}, servers, frozenset(map(A, kept)))


def applied(kernel: Ruleset, what: Wanted) -> tuple[Operation, ...]:
    """Load a plan as one transaction, and show that the next plan is empty."""
    before = listed(kernel)
    operations = plan(before, what)
    if operations:
        kernel.load(transaction(operations))
    now, predicted = listed(kernel), after(before, operations)
    assert plan(now, what) == ()
    for version, each in now.items():
        assert {chain: each.comments(chain) for chain in each.rules} == {
            chain: predicted[version].comments(chain) for chain in predicted[version].rules
        }
        assert each._replace(rules={}) == predicted[version]._replace(rules={})
    return operations


def kinds(operations: Iterable[Operation]) -> list[type]:
    return [type(operation) for operation in operations]


def loaded(*lists: Bound, **others: object) -> Ruleset:
    kernel = Ruleset()
    applied(kernel, wanted(*lists, **others))  # type: ignore[arg-type]
    return kernel


@pytest.mark.behaviour("B82", "B88")
def test_from_nothing_to_all_in_one_transaction() -> None:
    kernel = Ruleset()
    four, six = bound(NAMED, a_org=["192.0.2.1"]), bound("action=accept", address=SIX)
    operations = applied(kernel, wanted(four, six, dns={4: ["10.139.1.1"], 6: []}))
    assert kinds(operations) == [LoadFirewallTable] * 2 + [SetDnsServers, ChangeName] + [SetQubeRules] * 2
    assert len(kernel.loads) == 1
    assert kernel.elements("ip", TABLE, "dns-addr") == {"10.139.1.1"}
    assert kernel.elements("ip", TABLE, "n-a.org") == {"192.0.2.1"}
    assert kernel.elements("ip", TABLE, "qubes") == {FOUR}
    assert kernel.rules("ip", TABLE, "qubes-forward") == ('ip saddr vmap @qubes comment "qubes-guestnet"',)
    assert kernel.rules("ip6", TABLE, "qbs-fd09-24ef-4179--a89-5") == six.rules
    assert {"forward", "prerouting", "postrouting"} <= set(kernel.tables["ip6", TABLE].chains)
    assert kernel.tables["ip6", TABLE].chains["forward"].policy == "drop"


@pytest.mark.behaviour("B91")
def test_what_changed_alone_is_touched() -> None:
    first, second = bound(NAMED, a_org=["192.0.2.1"]), bound("action=drop", address="10.137.0.6")
    kernel = loaded(first, second)
    assert applied(kernel, wanted(first, second)) == ()
    changed = bound("action=accept", address="10.137.0.6")
    assert applied(kernel, wanted(first, changed)) == (SetQubeRules(changed),)


@pytest.mark.behaviour("B74")
def test_a_new_answer_changes_elements_alone() -> None:
    kernel = loaded(bound(NAMED))
    assert applied(kernel, wanted(bound(NAMED, a_org=["192.0.2.1", "192.0.2.2"]))) == (
        ChangeName(4, "a.org", (A("192.0.2.1"), A("192.0.2.2"))),
    )
    operations = applied(kernel, wanted(bound(NAMED, a_org=["192.0.2.3", "192.0.2.2"])))
    assert operations == (ChangeName(4, "a.org", (A("192.0.2.3"),), (A("192.0.2.1"),)),)
    assert not any("chain" in line or "rule" in line for line in transaction(operations).splitlines())


def test_the_first_answer_for_a_drop_replaces_the_rule_for_every_destination() -> None:
    entry = "action=drop dsthost=a.org"
    kernel = loaded(bound(entry, policy=b"accept"))
    known = bound(entry, policy=b"accept", a_org=["192.0.2.1"])
    assert applied(kernel, wanted(known)) == (ChangeName(4, "a.org", (A("192.0.2.1"),), make=True), SetQubeRules(known))


def test_a_set_is_shared_and_goes_with_the_last_qube_that_uses_it() -> None:
    first = bound(NAMED, a_org=["192.0.2.1"])
    second = bound(NAMED, address="10.137.0.6", a_org=["192.0.2.1"])
    kernel = loaded(first, second)
    assert kinds(applied(kernel, wanted(second))) == [RemoveQubeRules, RemoveQubeChain]
    operations = applied(kernel, wanted())
    assert operations == (
        RemoveQubeRules(A("10.137.0.6")),
        RemoveQubeChain(4, "qbs-10-137-0-6"),
        RemoveName(4, "a.org"),
    )
    assert "n-a.org" not in kernel.tables["ip", TABLE].sets


@pytest.mark.behaviour("B80")
def test_what_is_loaded_of_a_qube_that_left_goes() -> None:
    kernel = loaded(bound("action=accept"), bound("action=accept", address=SIX))
    applied(kernel, wanted())
    assert kernel.elements("ip", TABLE, "qubes") == frozenset()
    assert not [name for table in kernel.tables.values() for name in table.chains if name.startswith("qbs-")]


def test_what_is_to_be_kept_is_not_touched() -> None:
    kernel = loaded(bound(NAMED, a_org=["192.0.2.1"]))
    assert plan(listed(kernel), wanted(kept=[FOUR])) == ()
    assert plan(listed(kernel), wanted(kept=[SIX]))[0] == RemoveQubeRules(A(FOUR))


@pytest.mark.behaviour("B88")
def test_the_name_servers_of_a_family_that_is_not_given_stay() -> None:
    kernel = loaded(dns={4: ["10.139.1.1"], 6: ["fd00::53"]})
    assert applied(kernel, wanted(dns={4: ["10.139.1.2"]})) == (SetDnsServers(4, (A("10.139.1.2"),)),)
    assert kernel.elements("ip6", TABLE, "dns-addr") == {"fd00::53"}
    assert applied(kernel, wanted(dns={6: []})) == (SetDnsServers(6, ()),)


# --- other programs ----------------------------------------------------------------------------------------------

USERS = (
    "add rule ip qubes-firewall forward ip daddr 10.0.0.1 drop",
    "add rule ip qubes-firewall qubes-forward ip saddr 10.137.0.9 accept",
    "add rule ip qubes-firewall prerouting ip daddr 10.0.0.2 drop",
    "add rule ip6 qubes-firewall postrouting ip6 daddr fd00::1 drop",
    "add chain ip qubes-firewall mine",
)


@pytest.mark.behaviour("B90", "B82")
def test_rules_of_users_survive_whatever_is_loaded() -> None:
    kernel = loaded(bound("action=accept"))
    kernel.load("\n".join(USERS))
    assert applied(kernel, wanted(bound("action=accept"))) == ()
    for each in (wanted(bound("action=drop")), wanted(), wanted(bound(NAMED), dns={4: [FOUR]})):
        applied(kernel, each)
    for line in USERS[:4]:
        _, _, family, _, chain, *words = line.split()
        assert " ".join(words) in (kernel.rules(family, TABLE, chain) or ())
    assert "mine" in kernel.tables["ip", TABLE].chains


@pytest.mark.behaviour("B82")
def test_a_rule_that_a_kill_switch_deletes_stays_deleted_and_is_told() -> None:
    kernel = loaded()
    rules = kernel.tables["ip", TABLE].chains["forward"].rules
    rules[:] = [rule for rule in rules if "vif" not in rule]
    assert plan(listed(kernel), wanted()) == ()
    assert lost_rules(4, listed(kernel)[4]) == ("forward",)
    assert lost_rules(6, listed(kernel)[6]) == ()


def test_a_table_that_went_or_was_changed_is_missing() -> None:
    kernel = loaded()
    assert not is_missing(listed(kernel))
    assert is_missing({4: listed(kernel)[4]})
    kernel.tables["ip", TABLE].chains["forward"].rules.clear()
    assert is_missing(listed(kernel))


DAMAGE = (
    "flush chain ip qubes-firewall qbs-10-137-0-5",
    "delete element ip qubes-firewall qubes { 10.137.0.5 }",
    "delete element ip qubes-firewall qubes { 10.137.0.5 }\n"
    "add chain ip qubes-firewall mine\n"
    "add element ip qubes-firewall qubes { 10.137.0.5 : jump mine }",
    "delete element ip qubes-firewall qubes { 10.137.0.5 }\n"
    "add element ip qubes-firewall qubes { 10.137.0.5 : accept }",
    "add element ip qubes-firewall qubes { 10.137.0.9 : accept }",
    "flush set ip qubes-firewall n-a.org",
    "flush set ip qubes-firewall dns-addr",
    "flush chain ip qubes-firewall forward",
    "flush chain ip qubes-firewall qubes-forward",
    "delete chain ip qubes-firewall postrouting",
    "delete set ip qubes-firewall dns-addr",
    "delete table ip qubes-firewall",
    "add chain ip qubes-firewall forward { type filter hook forward priority filter; policy accept; }",
    "add rule ip qubes-firewall qbs-10-137-0-5 accept",
    "add element ip qubes-firewall n-a.org { 203.0.113.1 }",
    "add chain ip qubes-firewall qbs-10-9-9-9",
)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.behaviour("B90")
def test_what_another_program_does_to_ours_is_undone(damage: str) -> None:
    what = wanted(bound(NAMED, a_org=["192.0.2.1"]), dns={4: ["10.139.1.1"]})
    kernel, whole = Ruleset(), Ruleset()
    for each in (kernel, whole):
        applied(each, what)
    kernel.load(damage)
    assert applied(kernel, what)
    for chain in (*ruleset.CHAINS, "qbs-10-137-0-5"):
        assert kernel.rules("ip", TABLE, chain) == whole.rules("ip", TABLE, chain)
    for name in ("qubes", "n-a.org", "dns-addr"):
        assert kernel.elements("ip", TABLE, name) == whole.elements("ip", TABLE, name)


def test_a_chain_that_a_users_rule_jumps_to_is_emptied_and_stays() -> None:
    kernel = loaded(bound("action=accept"))
    kernel.load("add rule ip qubes-firewall qubes-forward ip saddr 10.9.9.9 jump qbs-10-137-0-5")
    operations = applied(kernel, wanted())
    assert RemoveQubeChain(4, "qbs-10-137-0-5", keep=True) in operations
    assert kernel.rules("ip", TABLE, "qbs-10-137-0-5") == ()


def test_a_set_that_a_users_rule_looks_up_stays() -> None:
    kernel = loaded(bound(NAMED, a_org=["192.0.2.1"]))
    kernel.load("add rule ip qubes-firewall forward ip daddr @n-a.org accept")
    assert RemoveName(4, "a.org") not in applied(kernel, wanted())


# --- a refusal ---------------------------------------------------------------------------------------------------


def bisected(kernel: Ruleset, operations: tuple[Operation, ...], bad: str) -> None:
    """Load a plan as the adapter does; this kernel refuses one chain, unless everything is refused there."""
    text = transaction(operations)
    if f'add rule ip qubes-firewall {bad} counter accept comment "0000"' not in text:
        kernel.load(text)
        return
    parts = halves(operations)
    if parts is not None:
        for part in parts:
            bisected(kernel, part, bad)
        return
    instead = [getattr(each, "instead", each) for each in operations]
    kernel.load(transaction([each for each in instead if each is not None]))


@pytest.mark.behaviour("B66", "B89")
def test_where_nft_refuses_one_qube_the_others_are_in_force() -> None:
    addresses = [f"10.137.0.{number}" for number in range(2, 13)]
    for bad in addresses:
        kernel = loaded(bound(NAMED, address="10.137.0.99", a_org=["192.0.2.1"]))
        lists = [bound("action=accept", address=address) for address in addresses]
        bisected(kernel, plan(listed(kernel), wanted(*lists)), ruleset.chain_of(A(bad)))
        for each in lists:
            chain = ruleset.chain_of(each.ruleset.address)
            refused = ('counter reject with icmp admin-prohibited comment "blocked"',)
            whole = refused if str(each.ruleset.address) == bad else each.rules
            assert kernel.rules("ip", TABLE, chain) == whole
        assert kernel.elements("ip", TABLE, "qubes") == set(addresses)


def test_instead_of_refused_rules_everything_is_refused() -> None:
    operation = SetQubeRules(bound("action=accept")).instead
    assert operation is not None
    assert (operation.bound.refused, operation.instead) == (True, None)
    assert "nft refused the rules" in str(operation.bound.ruleset.problems[0])
    assert halves((LoadFirewallTable(4, ()), operation, RemoveName(4, "a.org"))) is None


def test_a_dormant_table_is_loaded_again() -> None:
    kernel = loaded()
    text = kernel.listing("ip", TABLE)
    assert listing.parse(text).is_whole
    dormant = text.replace("{\n", "{\n\tflags dormant\n\n", 1)
    assert plan({**listed(kernel), 4: listing.parse(dormant)}, wanted()) == (LoadFirewallTable(4, ()),)


# --- random walks ------------------------------------------------------------------------------------------------


@many
@given(st.randoms(use_true_random=False))
def test_any_state_becomes_any_other_in_one_transaction(chance: Random) -> None:
    kernel = Ruleset()
    for _ in range(4):
        lists, names = [], {}
        for version in (4, 6):
            # One answer a name, for all qubes.
            names[version] = naive.drawn(chance, version).names
            for number in chance.sample(range(2, 6), chance.randrange(4)):
                address = f"10.137.0.{number}" if version == 4 else f"fd09::{number}"
                drawn = naive.drawn(chance, version, most=4)
                parsed = made.parse(A(address), drawn.raw if chance.randrange(6) else {})
                lists.append(made.bind(parsed, made.answers(version, names[version])))
        before = len(kernel.loads)
        try:
            applied(kernel, wanted(*lists, dns={4: chance.sample(naive.DESTINATIONS[4], 2)}))
        except Refused as error:
            raise AssertionError(error) from error
        assert len(kernel.loads) <= before + 1
        for each in lists:
            word = FAMILIES[each.ruleset.address.version].word
            assert kernel.rules(word, TABLE, ruleset.chain_of(each.ruleset.address)) == each.rules
