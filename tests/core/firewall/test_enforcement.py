# SPDX-License-Identifier: GPL-2.0-or-later
"""What a pass remembers of the firewall of single qubes: what is done once, and what failed and is done again."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from qubes_guestnet.core.firewall import enforcement, entries
from qubes_guestnet.core.firewall.commits import Facts
from qubes_guestnet.core.firewall.connections import Connection, Rules
from qubes_guestnet.core.firewall.consequences import CountHandled, EndConnections, ExportNames
from qubes_guestnet.core.firewall.enforcement import Memory
from qubes_guestnet.core.firewall.entries import by_address
from qubes_guestnet.core.firewall.listing import Listed
from qubes_guestnet.core.firewall.name_cache import Known
from qubes_guestnet.core.firewall.name_messages import Question
from qubes_guestnet.core.firewall.operations import SetQubeRules
from qubes_guestnet.core.firewall.plan import Wanted
from qubes_guestnet.core.operations import Outcome
from qubes_guestnet.core.provider.vif import Device
from qubes_guestnet.errors import GuestnetError

A, B = ipaddress.ip_address("10.137.0.4"), ipaddress.ip_address("10.137.0.5")
SERVER, OTHER, OWN = (ipaddress.ip_address(f"198.51.100.{number}") for number in (1, 2, 3))
DEVICES = {A: Device(4, ""), B: Device(5, "")}
DNS = {4: frozenset({SERVER}), 6: frozenset[Any]()}
OPEN, SHUT = "action=accept", "action=drop"


def facts(now: float, seen: tuple[str, ...] = (), **lists: str) -> Facts:
    """What a pass has read: lists by the last part of the address, as x4="action=accept"."""
    raw: dict[str, bytes] = {}
    for name, rule in lists.items():
        folder = f"/qubes-firewall/10.137.0.{name[1:]}"
        raw |= {folder: b"", f"{folder}/policy": b"drop", f"{folder}/0000": rule.encode()}
    return Facts(now, by_address(raw), seen)


def committed(*addresses: ipaddress.IPv4Address) -> tuple[str, ...]:
    return tuple(f"/qubes-firewall/{address}" for address in addresses)


def begun(**lists: str) -> Memory:
    """After the first pass."""
    return enforcement.advanced(Memory(), facts(1, **lists), DEVICES)


NOTHING = Outcome()


def done(memory: Memory, came: Outcome = NOTHING, **changed: Any) -> Memory:
    wanted = enforcement.want(memory, {}, DNS)
    rules = Rules(enforcement.in_force(memory, wanted, came), DNS[4])
    counts = enforcement.written(memory, wanted, enforcement.unloaded(came))
    came = came._replace(done=(*came.done, *counts))
    return enforcement.settled(memory, wanted, rules, came)._replace(**changed)


def set_rules(memory: Memory, address: ipaddress.IPv4Address) -> SetQubeRules:
    return SetQubeRules(enforcement.want(memory, {}, DNS).lists[address])


def test_the_first_pass_is_a_start_and_later_ones_read_only_where_something_may_have_changed() -> None:
    memory = Memory()
    assert memory.is_due({})
    memory = begun(x4=OPEN)
    assert set(memory.outcome.lists) == {A}
    assert memory.owed == {A}
    assert not memory.is_due(DEVICES)
    assert memory.is_due({A: DEVICES[A]})
    half = enforcement.advanced(memory, facts(2, (*committed(B), "/qubes-firewall/10.137.0.5/0000"), x4=OPEN), DEVICES)
    assert half.is_due(DEVICES)


def test_another_device_with_the_same_address_waits_for_a_commit() -> None:
    memory = begun(x4=OPEN, x5=OPEN)
    again = enforcement.advanced(memory, facts(2, x4=OPEN, x5=OPEN), {A: Device(9, ""), B: DEVICES[B]})
    assert set(again.outcome.lists) == {B}
    assert again.outcome.waiting == {A}


@pytest.mark.behaviour("B78")
def test_a_commit_is_counted_once_and_what_failed_is_counted_later() -> None:
    memory = begun(x4=OPEN)
    wanted = enforcement.want(memory, {}, DNS)
    assert [type(op) for op in enforcement.written(memory, wanted, frozenset())] == [ExportNames, CountHandled]
    assert enforcement.written(memory, wanted, frozenset({A})) == ()
    memory = done(memory)
    assert memory.owed == frozenset()
    assert enforcement.written(memory, wanted, frozenset()) == ()
    # Nft could not be started: the rules are not in force, so nothing is counted, nor taken for settled.
    op = set_rules(memory, A)
    memory = enforcement.advanced(memory, facts(2, committed(A), x4=OPEN), DEVICES)
    memory = done(memory, Outcome(failed=(op,)))
    assert (memory.owed, memory.wanted, memory.judged.lists) == ({A}, None, {})


BY_NAME = "action=accept dsthost=a.example"


def known(*addresses: ipaddress.IPv4Address) -> dict[tuple[int, str], Known]:
    return {(4, "a.example"): Known(addresses, True)}


def refreshed(memory: Memory, names: dict[tuple[int, str], Known], came: Outcome = NOTHING) -> tuple[Memory, list[Any]]:
    """A pass with these names: the memory after it, and what it wrote."""
    wanted = enforcement.want(memory, names, DNS)
    written = enforcement.written(memory, wanted, enforcement.unloaded(came))
    came = came._replace(done=(*came.done, *(op for op in written if op not in came.failed)))
    return enforcement.settled(memory, wanted, Rules(wanted.lists, DNS[4]), came), list(written)


@pytest.mark.behaviour("B78")
def test_names_are_written_again_when_they_have_other_addresses_and_are_not_counted() -> None:
    memory, written = refreshed(begun(x4=BY_NAME, x5=OPEN), {})
    assert [type(op) for op in written] == [ExportNames, CountHandled]
    assert [each.entries for each in written[0].exports] == [(), ()], "one operation for all qubes"
    assert refreshed(memory, {})[1] == []
    memory, written = refreshed(memory, known(SERVER))
    (export,) = written[0].exports
    assert (len(written), export.entries) == (1, (("/dns/10.137.0.4/a.example", b"{'198.51.100.1/32'}"),))
    assert refreshed(memory, known(SERVER))[1] == []
    # QubesDB refused it: the next pass writes it.
    (again,) = refreshed(memory, known(OTHER))[1]
    failed, _ = refreshed(memory, known(OTHER), Outcome(failed=(again,)))
    assert refreshed(failed, known(OTHER))[1] == [again]
    assert refreshed(refreshed(failed, known(OTHER))[0], known(OTHER))[1] == []


def test_names_that_left_a_list_are_written_with_its_commit() -> None:
    memory, _ = refreshed(begun(x4=BY_NAME), known(SERVER))
    memory = enforcement.advanced(memory, facts(2, committed(A), x4=OPEN), DEVICES)
    memory, written = refreshed(memory, {})
    assert [type(op) for op in written] == [ExportNames, CountHandled]
    assert written[0].exports[0].entries == ()
    assert set(memory.exported) == {A}
    gone = enforcement.advanced(memory, facts(3), {})
    assert refreshed(gone, {})[0].exported == {}


@pytest.mark.behaviour("B78", "B146")
def test_names_that_could_not_be_written_are_written_later_though_they_are_the_same() -> None:
    """The folder may be gone by then: it is removed first. The commit is counted all the same."""
    memory, _ = refreshed(begun(x4=BY_NAME, x5=OPEN), known(SERVER))
    memory = enforcement.advanced(memory, facts(2, committed(A), x4=f"{BY_NAME} proto=tcp", x5=OPEN), DEVICES)
    export, count = enforcement.written(memory, enforcement.want(memory, known(SERVER), DNS), frozenset())
    memory, _ = refreshed(memory, known(SERVER), Outcome(failed=(export,)))
    assert (memory.owed, memory.unexported, memory.wanted) == (frozenset(), {A}, None)
    # A pass that could not observe anything wrote nothing either.
    memory = enforcement.settled(memory, enforcement.want(memory, known(SERVER), DNS), memory.judged, NOTHING)
    assert memory.unexported == {A}
    gone = enforcement.advanced(memory, facts(3), {})
    assert refreshed(gone, {})[0].unexported == frozenset()
    memory, written = refreshed(memory, known(SERVER))
    assert written == [export]
    assert memory.unexported == frozenset()
    assert refreshed(memory, known(SERVER))[1] == []
    assert isinstance(count, CountHandled)


@pytest.mark.behaviour("B78")
def test_names_are_written_as_dom0_wrote_them() -> None:
    """A script that knows the rule looks for the word in it; dom0 passes a trailing dot on."""
    own, dotted = "action=accept dsthost=a.example", "action=accept dsthost=A.Example."
    value = b"{'198.51.100.1/32'}"
    memory, written = refreshed(begun(x4=dotted), known(SERVER))
    assert written[0].exports[0].entries == (("/dns/10.137.0.4/A.Example.", value),)
    assert refreshed(memory, known(SERVER))[1] == []
    memory = enforcement.advanced(memory, facts(2, committed(A), x4=own), DEVICES)
    memory, written = refreshed(memory, known(SERVER))
    assert written[0].exports[0].entries == (("/dns/10.137.0.4/a.example", value),)


def test_what_is_asked_is_by_qube_and_nothing_of_lists_without_names() -> None:
    lists = begun(x4=BY_NAME, x5=OPEN).outcome.lists
    assert enforcement.questions(lists) == {"10.137.0.4": (Question(4, "a.example"),)}


def test_an_unknown_name_blocks_its_qube_where_the_owner_wants_that() -> None:
    memory = begun(x4=BY_NAME, x5=OPEN)
    for names, refused in (({}, True), (known(SERVER), False)):
        lists = enforcement.want(memory, names, DNS, block_unresolved=True).lists
        assert (lists[A].refused, lists[B].refused) == (refused, False)


def test_a_list_that_is_refused_altogether_has_no_names_to_write() -> None:
    memory = begun(x4=OPEN)
    wanted = enforcement.want(memory, {}, DNS)._replace(lists={})
    (export, _count) = enforcement.written(memory, wanted, frozenset())
    assert isinstance(export, ExportNames)
    assert [each.entries for each in export.exports] == [()]


@pytest.mark.behaviour("B66")
def test_a_list_that_nft_refused_is_not_tried_again_until_dom0_commits() -> None:
    memory = begun(x4=OPEN, x5=OPEN)
    op = set_rules(memory, A)
    assert op.instead is not None
    memory = done(memory, Outcome(done=(op.instead,), failed=(op,)))
    assert memory.owed == frozenset()
    assert set_rules(memory, A) == op.instead
    assert not set_rules(memory, B).bound.refused
    memory = enforcement.advanced(memory, facts(2, committed(B), x4=OPEN, x5=OPEN), DEVICES)
    assert set_rules(memory, A) == op.instead
    memory = enforcement.advanced(memory, facts(3, committed(A), x4=OPEN, x5=OPEN), DEVICES)
    assert set_rules(memory, A) == op
    # Even the refusal was refused: what was loaded stays, and nothing is known of it.
    wanted = enforcement.want(memory, {}, DNS)
    both = Outcome(failed=(op, op.instead))
    assert set(enforcement.in_force(memory, wanted, both)) == {B}
    assert enforcement.unloaded(both) == frozenset()
    assert enforcement.in_force(memory, wanted, Outcome(failed=(CountHandled((A,)),))) == wanted.lists
    assert enforcement.refusal(op.instead.bound) == op.instead.bound


@pytest.mark.behaviour("B70")
def test_connections_are_judged_once_for_each_change() -> None:
    memory = begun(x4=OPEN, x5=OPEN)
    lists = enforcement.want(memory, {}, DNS).lists
    assert enforcement.to_judge(memory, lists, DNS[4]) == {A, B}
    memory = done(memory)
    assert enforcement.to_judge(memory, lists, DNS[4]) == frozenset()
    assert enforcement.to_judge(memory, lists, frozenset()) == {A, B}
    memory = enforcement.advanced(memory, facts(2, committed(A), x4=SHUT, x5=OPEN), DEVICES)
    lists = enforcement.want(memory, {}, DNS).lists
    assert enforcement.to_judge(memory, lists, DNS[4]) == {A}
    rules = Rules(lists, DNS[4])
    found = [(Connection(n, A, server, 6, 80), bytes([n])) for n, server in enumerate((SERVER, OTHER, OWN, SERVER))]
    cut = enforcement.ending(memory, rules, found, lambda address: address == OWN)
    assert cut == (EndConnections((b"\0", b"\1", b"\3")),)
    assert enforcement.ending(memory, rules, found[2:3], lambda _address: True) == ()
    uncut = done(memory, Outcome(failed=cut))
    assert uncut.judged.lists == {B: memory.judged.lists[B]}, "what A's connections began under is not known"
    assert done(memory).judged == rules


@pytest.mark.behaviour("B70")
def test_what_was_not_judged_is_judged_even_by_the_list_before() -> None:
    """A connection of the list between, which could not be deleted, is not one of the list that comes again."""
    memory = done(begun(x4=SHUT, x5=OPEN))
    memory = enforcement.advanced(memory, facts(2, committed(A), x4=OPEN, x5=OPEN), DEVICES)
    between = enforcement.want(memory, {}, DNS)
    rules = Rules(between.lists, DNS[4])
    left = enforcement.undoubted(memory.judged, rules)
    assert left == Rules({B: between.lists[B]}, DNS[4])
    assert enforcement.undoubted(memory.judged, rules._replace(dns=())).lists == {}
    memory = enforcement.settled(memory, between, left, Outcome(errors=(GuestnetError("conntrack: no"),)))
    assert memory.wanted is None, "the next pass does it again"
    memory = enforcement.advanced(memory, facts(3, committed(A), x4=SHUT, x5=OPEN), DEVICES)
    lists = enforcement.want(memory, {}, DNS).lists
    assert enforcement.to_judge(memory, lists, DNS[4]) == {A}
    found = [(Connection(1, A, SERVER, 6, 80), b"1")]
    assert enforcement.ending(memory, Rules(lists, DNS[4]), found, lambda _address: False) == (EndConnections((b"1",)),)


@pytest.mark.behaviour("B70")
def test_a_set_that_is_not_whole_ends_no_connection_until_it_is() -> None:
    memory = done(begun(x4=OPEN))
    torn = Facts(2, by_address({"/qubes-firewall/10.137.0.4": b""}), committed(A))
    memory = enforcement.advanced(memory, torn, DEVICES)
    assert memory.outcome.again is not None
    memory = enforcement.advanced(memory, torn._replace(now=memory.outcome.again + 1, seen=()), DEVICES)
    assert memory.outcome.incomplete == {A}
    assert enforcement.to_judge(memory, enforcement.want(memory, {}, DNS).lists, DNS[4]) == frozenset()


def test_what_the_watches_told_of() -> None:
    entry, commit = "/qubes-firewall/10.137.0.4/0000", "/qubes-firewall/10.137.0.4"
    assert not entries.commits((entry, "/qubes-firewall/x"))
    assert entries.commits((entry, commit))
    assert not entries.commits(("/qubes-ip",))
    assert entries.others((entry, "/qubes-ip", commit)) == ("/qubes-ip",)


@pytest.mark.behaviour("B61")
def test_a_vif_that_gets_a_late_fake_address_keeps_the_list_of_its_qube() -> None:
    """Its device is another one then; dom0 has committed before, and does not again."""
    before, devices = begun(x4=OPEN), {A: Device(9, ""), B: DEVICES[B]}
    lost = enforcement.advanced(before, facts(2, x4=OPEN), devices)
    assert A in lost.outcome.waiting
    kept = enforcement.advanced(before, facts(2, x4=OPEN)._replace(found=frozenset({A})), devices)
    assert kept.outcome.lists == before.outcome.lists


def test_a_family_whose_name_servers_are_not_known_keeps_the_loaded_ones() -> None:
    loaded = {4: Listed(dns=frozenset({SERVER})), 6: Listed(dns=None)}
    assert enforcement.servers(Wanted(), loaded) == {SERVER}
    assert enforcement.servers(Wanted(dns={4: frozenset({OTHER}), 6: frozenset()}), loaded) == {OTHER}
    assert enforcement.servers(Wanted(dns={4: frozenset()}), loaded) == set()
    assert enforcement.servers(Wanted(), {}) == set()
