# SPDX-License-Identifier: GPL-2.0-or-later
"""The base rules, lost and brought back, over a model of our tables: what is loaded, held, told and done."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from functools import partial

import pytest

from qubes_guestnet import flow
from qubes_guestnet.core.nft import flowtable, rules_text, tables
from qubes_guestnet.core.operations import ORDER, Outcome, Planned, kind
from qubes_guestnet.core.owned_state import FIREWALL, HELD, Loaded, Provided, Record, checksum
from qubes_guestnet.core.provider import base_rules, user_rules
from qubes_guestnet.core.provider.base_rules import Facts
from qubes_guestnet.core.provider.provider_operations import CloseForwarding
from qubes_guestnet.core.provider.rules_operations import LoadRules, LoadRulesInParts, PurgeUntranslated, UnloadRules
from qubes_guestnet.core.provider.user_rules import Block, Kept
from qubes_guestnet.core.shared_operations import UnitJob
from qubes_guestnet.errors import GuestnetError
from tests.core.memory import Memory

pytestmark = pytest.mark.behaviour("B125")

TEXT = rules_text.base(ipv6=True)
FAMILIES = tables.FAMILIES
SWITCH: Block = ("ip", "chain custom-forward {", "\tchain custom-forward {\n\t\tcounter drop\n\t}\n")
BARE: Block = ("ip", "chain mine {", "\tchain mine {\n\t}\n")
BIG: Block = ("ip", "set big {", "\tset big {\n\t\ttype ipv4_addr\n\t}\n")
ADDRESS = ipaddress.ip_address("10.137.0.5")
RESTART = UnitJob("restart", "qubes-firewall.service")
NOTHING = dict.fromkeys(FAMILIES, "")


def listing(family: str, blocks: tuple[Block, ...] = ()) -> str:
    """Our table with all its rules, and some blocks of others."""
    chains: dict[str, list[str]] = {name: [] for word, name in rules_text.CHAINS if word == family}
    chains |= {name: [] for word, name in rules_text.DNS_CHAINS if word == family}
    for line in TEXT.splitlines():
        words = line.split(" ", 5)
        if words[:3] == ["add", "rule", family]:
            chains[words[4]].append(words[5])
    made = [
        f"\tchain {name} {{\n" + "".join(f"\t\t{rule}\n" for rule in rules) + "\t}\n" for name, rules in chains.items()
    ]
    made += [text for word, _, text in blocks if word == family]
    return f"table {family} qubes {{\n" + "\n".join(made) + "}\n"


def whole(*blocks: Block) -> dict[str, str]:
    return {family: listing(family, blocks) for family in FAMILIES}


class World:
    """Our tables, as nft has them, and what it takes.

    Attributes:
        now: listings by family.
        refused: kinds of operations that nft refuses.
        lacking: parts that do not come back, of those that are loaded alone.
        meddling: another program changes something after each of so many loads; it `does` what is said here.
        quietly: that was there before.
    """

    def __init__(self, now: dict[str, str], provided: Provided | None = None) -> None:
        self.now, self.found = now, now
        loaded = Loaded(checksum(TEXT.encode()), base_rules.seen(rules_text.CHAINS, whole()))
        self.ledger = Memory(Record(provided=provided if provided is not None else Provided(rules=loaded)))
        self.before = self.ledger.record.provided
        self.refused: set[str] = set()
        self.lacking: set[Block] = set()
        self.meddling, self.undisturbed, self.quietly = 0, True, False
        self.does: Callable[[dict[str, str]], dict[str, str]] = dict
        self.open = frozenset({4, 6})
        self.facts = Facts(TEXT, TEXT, now, now, self.before)
        self.untranslated: tuple[ipaddress.IPv4Address, ...] = ()
        self.asked: list[str] = []

    def carry_out(self, op: object) -> None:
        self.asked.append(str(op))
        if kind(op) in self.refused:  # type: ignore[arg-type]
            raise GuestnetError(f"refused: {kind(op)}")  # type: ignore[arg-type]
        if isinstance(op, CloseForwarding):
            self.open -= {op.family}
        if isinstance(op, PurgeUntranslated):
            self.untranslated = ()
        if isinstance(op, LoadRules | LoadRulesInParts):
            assert self.facts.lost is None or not self.open
            apart = isinstance(op, LoadRulesInParts)
            assert not apart or self.ledger.record.provided.hold == HELD or not self.facts.active
            self.now = whole(*(block for block in op.put_back if not apart or block not in self.lacking))
            self.undisturbed = self.meddling == 0 or self.quietly
            if self.meddling:
                self.meddling -= 1
                self.now = self.does(self.now)

    def plan(self, record: Record, so_far: Outcome) -> Planned:
        facts = self.facts._replace(now=self.now, undisturbed=self.undisturbed, opened=self.open)
        return base_rules.plan(facts._replace(untranslated=self.untranslated), record, so_far)

    def settle(self, **facts: object) -> tuple[Planned, Outcome]:
        self.facts = self.facts._replace(**facts)  # type: ignore[arg-type]
        return flow.settle(self.plan, dict.fromkeys(ORDER, self.carry_out), self.ledger)

    @property
    def provided(self) -> Provided:
        return self.ledger.record.provided

    @property
    def well(self) -> bool:
        return base_rules.are_there(self.provided.rules, TEXT, self.now)


def lost(
    world: World, *blocks: Block, tables: tuple[str, ...] = (), emptied: tuple[tuple[str, str], ...] = ()
) -> World:
    assert base_rules.are_lost(world.before.rules, world.found)
    world.facts = world.facts._replace(lost=Kept(blocks, tables, emptied), active=True)
    return world


def test_rules_that_are_there_are_left_alone() -> None:
    world = World(whole(SWITCH))
    assert world.well
    assert not base_rules.are_lost(world.before.rules, world.found)
    assert world.settle()[1] == Outcome()


@pytest.mark.parametrize(
    "before", [Provided(), Provided(rules=Loaded("other", base_rules.seen(rules_text.CHAINS, whole())))]
)
def test_a_first_load_and_other_rules_close_and_hold_nothing(before: Provided) -> None:
    world = World(NOTHING if not before.rules.text else whole(), before)
    assert not base_rules.are_lost(before.rules, world.found)
    planned, outcome = world.settle()
    assert [kind(op) for op in outcome.done] == ["LoadRules"]
    assert (planned.ops, planned.errors, outcome.errors) == ((), (), ())
    assert world.well
    assert world.provided == Provided(rules=world.provided.rules)
    assert world.open == {4, 6}


@pytest.mark.behaviour("B114")
def test_rules_of_a_former_release_are_not_lost() -> None:
    former = whole() | {"arp": ""}
    there = Loaded("former", base_rules.seen([chain for chain in rules_text.CHAINS if chain[0] != "arp"], former))
    assert not base_rules.are_lost(there, former)
    assert base_rules.are_lost(there, former | {"ip": ""})
    assert not base_rules.are_there(there, TEXT, former)


@pytest.mark.behaviour("B114")
def test_a_kernel_without_arp_is_found_out_by_the_first_load() -> None:
    op = LoadRules(FAMILIES, TEXT, (), "without")
    assert op.instead == LoadRules(("ip", "ip6"), "without")
    assert op._replace(without_arp="").instead is None
    world = World(NOTHING, Provided())
    world.settle(without_arp="without")
    assert world.asked == ["nft -f: base rules of the tables ip qubes, ip6 qubes and arp qubes"]


def test_what_was_lost_comes_back_in_the_same_transaction_and_closed() -> None:
    world = lost(World(NOTHING), SWITCH, BARE, tables=("inet mine",))
    world.untranslated = (ADDRESS,)
    _, outcome = world.settle(firewall=True)
    load = LoadRules(FAMILIES, TEXT, (SWITCH, BARE))
    assert outcome.done == (CloseForwarding(4), CloseForwarding(6), load, PurgeUntranslated((ADDRESS,)), RESTART)
    assert outcome.errors == ()
    assert load.text == TEXT + user_rules.text((SWITCH, BARE))
    assert str(load).endswith(
        "restore other programs' parts of our tables: ip qubes chain custom-forward, ip qubes chain mine"
    )
    assert world.well
    assert (world.provided.hold, world.provided.lost) == (FIREWALL, ("table inet mine",))
    assert world.provided.shut == {4, 6}


@pytest.mark.parametrize(
    ("facts", "before", "hold", "restarts"),
    [
        ({}, "", "", False),
        ({"firewall": True}, "", FIREWALL, True),
        ({"firewall": True}, FIREWALL, FIREWALL, False),
        ({"firewall": True}, HELD, HELD, True),
        ({"firewall": True, "holds": True}, "", HELD, False),
        ({"holds": True}, "", HELD, False),
        ({"holds": True, "firewall": True, "active": False}, "", "", False),
    ],
)
def test_what_is_held_and_restarted(facts: dict[str, bool], before: str, hold: str, restarts: bool) -> None:
    world = World(NOTHING)
    provided = world.before._replace(hold=before)
    world = lost(World(NOTHING, provided), tables=("inet mine",))
    _, outcome = world.settle(**facts)
    assert (RESTART in outcome.done, world.provided.hold) == (restarts, hold)
    assert world.well


def test_a_rule_of_ours_alone_takes_nothing_of_others_along() -> None:
    damaged = whole(SWITCH) | {"ip6": listing("ip6").replace("\t\tmasquerade\n", "")}
    world = lost(World(damaged))
    _, outcome = world.settle(firewall=True, holds=True)
    assert [kind(op) for op in outcome.done] == ["CloseForwarding", "CloseForwarding", "LoadRules"]
    assert (world.provided.hold, world.provided.lost) == ("", ())


def test_what_is_refused_together_is_loaded_apart_and_held_before() -> None:
    world = lost(World(NOTHING), SWITCH, BARE)
    world.refused, world.lacking = {"LoadRules"}, {SWITCH}
    _, outcome = world.settle()
    assert [kind(op) for op in outcome.done][-1] == "LoadRulesInParts"
    assert str(outcome.done[-1]).endswith("ip qubes chain mine, each part alone")
    assert world.well
    assert world.provided.hold == HELD
    assert world.provided.lost == ("rules of ip qubes chain custom-forward",)
    assert base_rules.missing(world.facts._replace(now=world.now)) == world.provided.lost


def test_what_was_missing_before_is_still_named_beside_what_does_not_come_back() -> None:
    provided = World(NOTHING).before._replace(lost=("table inet mine",))
    world = lost(World(NOTHING, provided), SWITCH)
    world.refused, world.lacking = {"LoadRules"}, {SWITCH}
    world.settle()
    assert world.provided.lost == ("table inet mine", "rules of ip qubes chain custom-forward")


def test_all_parts_come_back_alone_and_nothing_stays_held() -> None:
    world = lost(World(NOTHING), SWITCH)
    world.refused = {"LoadRules"}
    world.settle()
    assert world.well
    assert (world.provided.hold, world.provided.lost) == ("", ())


@pytest.mark.parametrize("refused", [True, False])
@pytest.mark.parametrize("blocks", [(), (SWITCH,)])
def test_where_nothing_is_in_the_next_pass_begins_anew(refused: bool, blocks: tuple[Block, ...]) -> None:
    """What ran out of time may be in, and is not loaded once more."""
    world = lost(World(NOTHING), *blocks)
    world.refused = {"LoadRules", "LoadRulesInParts"}
    _, outcome = world.settle(refused=refused)
    assert len(outcome.errors) == (2 if blocks and refused else 1)
    assert (world.provided.rules, world.provided.hold, world.provided.lost) == (world.before.rules, "", ())
    assert world.provided.shut == {4, 6}
    assert not world.open
    world.refused = set()
    world.settle()
    assert world.well


def test_a_set_without_its_elements_holds_forwarding_from_the_beginning() -> None:
    world = lost(World(NOTHING), SWITCH, BIG, emptied=(BIG[:2],))
    world.settle()
    assert world.well
    assert (world.provided.hold, world.provided.lost) == (HELD, ("rules of ip qubes set big",))
    assert base_rules.missing(world.facts._replace(now=world.now)) == ("rules of ip qubes set big",)
    assert base_rules.missing(world.facts._replace(lost=None)) == ()


@pytest.mark.behaviour("B148")
def test_what_another_program_changes_before_the_look_is_loaded_over() -> None:
    world = World(NOTHING, Provided())
    world.meddling, world.does = 2, lambda now: now | {"ip": now["ip"].replace("\t\tmasquerade\n", "")}
    _, outcome = world.settle()
    assert [kind(op) for op in outcome.done] == ["LoadRules"] * 3
    assert world.now == whole()
    assert world.well


@pytest.mark.behaviour("B148")
def test_one_that_goes_on_is_told_and_its_rules_are_not_taken_for_ours() -> None:
    world = lost(World(NOTHING), tables=("inet mine",))
    world.meddling, world.does = 100, lambda now: now | {"ip": now["ip"].replace("\t\tmasquerade\n", "")}
    planned, outcome = world.settle(firewall=True)
    assert sum(kind(op) == "LoadRules" for op in outcome.done) == base_rules.LOADS
    assert [str(error) for error in planned.errors] == [
        "another program keeps changing rules, possibly ours; nft monitor shows what it does"
    ]
    assert world.provided.rules == Loaded()
    assert outcome.done.count(RESTART) == 1


@pytest.mark.behaviour("B148")
def test_rules_that_go_again_at_once_are_told_and_lost_still() -> None:
    world = lost(World(NOTHING))
    world.meddling, world.does = 100, lambda _: NOTHING
    planned, _ = world.settle()
    assert "removed as soon as they were loaded" in str(planned.errors[0])
    assert world.provided.rules == world.before.rules


def test_the_redirection_is_kept_where_it_is_as_it_was() -> None:
    marked = "\tchain dns-reject {\n\t\tmeta priority set 1\n\t}\n"
    now = whole() | {"ip": listing("ip").replace("\tchain dns-reject {\n\t}\n", marked)}
    loaded = Loaded("", base_rules.seen(rules_text.CHAINS, now))
    for seen, still in ((base_rules.seen(rules_text.DNS_CHAINS, now), True), ("other", False)):
        names = Loaded("names", seen)
        world = World(now, Provided(rules=loaded._replace(text="former"), names=names))
        world.meddling, world.does, world.quietly = 1, lambda _: now, True
        world.settle()
        assert (world.provided.names == names) is still


@pytest.mark.parametrize("families", [FAMILIES, ("ip", "ip6")])
def test_once_they_are_deleted_only_that_forwarding_is_closed_is_recorded(families: tuple[str, ...]) -> None:
    ledger = Memory(Record(provided=Provided(rules=Loaded("text", "seen"), offload="on", forwarding=frozenset({4}))))
    before, op = ledger.record, UnloadRules(families)
    assert op.text == flowtable.END + rules_text.unload(arp="arp" in families)

    def refuse(_: object) -> None:
        raise GuestnetError("refused")

    plan = partial(base_rules.plan_unloading, families)
    assert flow.settle(plan, {"UnloadRules": refuse}, ledger)[1].failed == (op,)
    assert ledger.record == before
    assert flow.settle(plan, {"UnloadRules": str}, ledger)[1] == Outcome(done=(op,))
    assert ledger.record == before._replace(provided=Provided(closed=True))
