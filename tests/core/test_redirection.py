# SPDX-License-Identifier: GPL-2.0-or-later
"""The redirection of the virtual DNS addresses, over random passes, what other programs do meanwhile, and kills."""

from __future__ import annotations

import ipaddress
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet import flow
from qubes_guestnet.core.dns import foreign_redirection, redirection, upstream_servers
from qubes_guestnet.core.dns.redirection import Asked, Facts, Memory
from qubes_guestnet.core.dns.redirection_operations import KeepForeignRedirection, LoadRedirection
from qubes_guestnet.core.dns.upstream_servers import Choice
from qubes_guestnet.core.endpoint import Endpoint
from qubes_guestnet.core.nft import rules_text
from qubes_guestnet.core.operations import ORDER, Outcome, Planned
from qubes_guestnet.core.owned_state import DOUBTED, FOREIGN, Record
from qubes_guestnet.core.shared_operations import PurgeConntrack
from qubes_guestnet.errors import GuestnetError
from tests.core.memory import Memory as Disk
from tests.core.ruleset import Ruleset

many = settings(max_examples=200, deadline=None, derandomize=True)

V = (ipaddress.IPv4Address("10.139.1.1"), ipaddress.IPv4Address("10.139.1.2"))
FIRST, SECOND, OWN = (Endpoint(ipaddress.ip_address(text)) for text in ("192.0.2.1", "192.0.2.2", "10.139.1.1"))
CHOICES = (
    Choice((FIRST,), "resolv.conf"),
    Choice((SECOND, FIRST), "resolv.conf"),
    Choice((OWN,), "this qube's own provider"),
    Choice((), "none known"),
    Choice((), "held", "dns-refused"),
)
VPN = "udp dport 53 dnat to 10.8.0.1"  # of a guide: kept
NOWHERE = "udp dport 53 dnat to 10.139.1.1"  # led to itself: not kept
DNAT = "chain dnat-dns { type nat hook prerouting priority dstnat; policy accept; }"
TABLE = f"table ip qubes {{\n{DNAT}\nchain dns-reject {{ }}\n}}\n"


class Killed(BaseException):
    """SIGKILL."""


class World:
    """The chains, the record, and what the process remembers.

    Attributes:
        fails: kinds of which every operation fails.
        killed: the agent is killed after so many operations of a pass; 0 for never.
        between: another program's transaction right after the next load of ours.
        stale: connections by a former redirection that conntrack knows.
        verified: the generation at which the chains were found right.
    """

    def __init__(self) -> None:
        self.nft = Ruleset()
        self.nft.load(TABLE)
        self.ledger, self.memory = Disk(), Memory()
        self.fails: frozenset[type] = frozenset()
        self.killed = self.ops = 0
        self.between = ""
        self.stale = False
        self.ours = self.verified = -1
        self.now = 0.0
        self.patient = True
        self.choice = Choice((), "")
        self.log: list[Any] = []

    @property
    def rules(self) -> tuple[str, ...]:
        return self.nft.rules("ip", "qubes", "dnat-dns") or ()

    def others(self, *rules: str) -> None:
        """Another program's rules instead of what is in the chain."""
        self.nft.load(rules_text.redirection(rules))

    def beside(self, rule: str) -> None:
        self.nft.load(f"add rule ip qubes dnat-dns {rule}\n")

    def restart(self) -> None:
        """Another process with the record alone."""
        self.memory, self.verified, self.ours = Memory(), -1, -1

    def plan(self, asked: Asked, record: Record, so_far: Outcome) -> Planned:
        if so_far == Outcome() and self.verified == self.nft.generation:
            known = redirection.known(asked, self.memory, record)
            if known is not None:
                self.choice = known
                return Planned((), record)
        facts = Facts(
            self.nft.generation, self.nft.listing("ip", "qubes"), self.nft.generation == self.ours, self.ours,
            self.now, self.patient,
        )  # fmt: skip
        decision = redirection.plan(asked, facts, self.memory, record, so_far)
        self.memory, self.choice = decision.memory, decision.choice
        self.verified = self.verified if decision.right is None else decision.right
        return decision.planned

    def carry_out(self, op: Any) -> None:
        if type(op) in self.fails:
            raise GuestnetError(f"refused: {op}")
        self.log.append(op)
        if isinstance(op, PurgeConntrack):
            self.stale = False
        else:
            assert self.ledger.record.provided.pending is not None, "the record is ahead"
            before = self.nft.generation
            self.nft.load(op.text)
            self.ours, self.stale = before + 1, True
            if self.between:
                self.beside(self.between)
                self.between = ""
        self.ops += 1
        if self.ops == self.killed:
            raise Killed

    def run(self, choice: Choice) -> Outcome:
        """One pass."""
        self.ops, self.log = 0, []
        table = dict.fromkeys(ORDER, self.carry_out)
        planned, outcome = flow.settle(partial(self.plan, Asked(V, choice)), table, self.ledger)
        assert not planned.errors
        return outcome

    def leads_to(self, choice: Choice) -> bool:
        wanted = rules_text.dnat_rules(upstream_servers.pairs(V, choice.servers))
        return self.rules == wanted


PASS = st.fixed_dictionaries(
    {
        "choice": st.sampled_from(CHOICES),
        "others": st.sampled_from(((), (), (), (VPN,), (NOWHERE,), ("flush",))),
        "beside": st.sampled_from(("", "", VPN, "counter")),
        "between": st.sampled_from(("", "", "", VPN, NOWHERE)),
        "fails": st.sampled_from((None, None, LoadRedirection, KeepForeignRedirection, PurgeConntrack)),
        "killed": st.sampled_from((0, 0, 1, 2)),
        "restart": st.booleans(),
        "patient": st.booleans(),
    }
)


def disturb(world: World, each: dict[str, Any]) -> None:
    if each["restart"]:
        world.restart()
    if each["others"]:
        world.others(*(rule for rule in each["others"] if rule != "flush"))
    if each["beside"]:
        world.beside(each["beside"])
    world.between, world.patient = each["between"], each["patient"]
    world.fails, world.killed = frozenset({each["fails"]} - {None}), each["killed"]


@many
@given(st.lists(PASS, min_size=1, max_size=5))
@pytest.mark.behaviour("B123", "B148")
def test_in_the_end_names_lead_where_they_should_or_by_rules_of_others_that_are_kept(passes: list[Any]) -> None:
    world = World()
    for each in passes:
        disturb(world, each)
        try:
            world.run(each["choice"])
        except Killed:
            world.restart()
    choice, world.fails, world.killed, world.between = passes[-1]["choice"], frozenset(), 0, ""
    for _ in range(4):  # another program's rules are waited for; then they are judged
        world.now += 2
        assert not world.run(choice).errors
    names = world.ledger.record.provided.names
    if names.text == FOREIGN:
        assert foreign_redirection.judge(world.nft.listing("ip", "qubes"), V).kept
        assert world.choice.problem == "dns-foreign"
    else:
        assert world.leads_to(choice)
        assert world.choice.servers == choice.servers
    assert not world.stale, "no connection goes on by a former redirection"
    assert world.ledger.record.provided.pending is None
    assert world.run(choice) == Outcome(), "a second plan is empty"
    world.restart()
    assert world.run(choice) == Outcome(), "also that of another process"


@many
@given(st.lists(PASS, min_size=1, max_size=5))
@pytest.mark.behaviour("B123", "B148")
def test_rules_of_others_that_lead_somewhere_are_never_removed(passes: list[Any]) -> None:
    world, put = World(), False
    for each in passes:
        disturb(world, each)
        put = world.rules[:1] == (VPN,)
        try:
            world.run(each["choice"])
        except Killed:
            world.restart()
        assert not put or VPN in world.rules


@many
@given(st.sampled_from(CHOICES), st.sampled_from(CHOICES), st.sampled_from((0, 1, 2)), st.booleans())
@pytest.mark.behaviour("B148")
def test_what_a_killed_agent_loaded_is_never_taken_for_anothers(
    first: Choice, second: Choice, killed: int, restart: bool
) -> None:
    world = World()
    world.run(first)
    world.killed = killed
    try:
        world.run(second)
    except Killed:
        world.restart()
    if restart:
        world.restart()
    world.killed = 0
    world.run(first)
    assert world.leads_to(first)
    assert not any(isinstance(op, KeepForeignRedirection) for op in world.log)


def settled(choice: Choice = CHOICES[0]) -> World:
    world = World()
    assert world.run(choice).done == (Asked(V, choice).load, PurgeConntrack(V))
    assert world.verified == world.nft.generation, "the next pass needs no look"
    return world


@pytest.mark.behaviour("B123")
def test_a_chain_that_leads_nowhere_is_put_back_after_a_quiet_second() -> None:
    world = settled()
    world.others(NOWHERE)
    assert world.run(CHOICES[0]) == Outcome()
    assert world.choice.again
    world.now = 0.5
    world.beside("counter")
    assert world.run(CHOICES[0]) == Outcome()
    world.now = 1.4
    assert world.run(CHOICES[0]) == Outcome(), "it changed since"
    world.now = 1.6
    (op, _) = world.run(CHOICES[0]).done
    assert isinstance(op, LoadRedirection)
    assert op.trouble == "10.139.1.1 ends at 10.139.1.1"
    assert world.leads_to(CHOICES[0])


def test_a_command_does_not_wait() -> None:
    world = settled()
    world.patient = False
    world.others(NOWHERE)
    world.run(CHOICES[0])
    assert world.leads_to(CHOICES[0])


def test_rules_that_were_kept_and_could_not_be_refreshed_are_tried_again() -> None:
    world = settled()
    world.others(VPN, *world.rules)
    assert world.run(CHOICES[0]).done
    world.fails = frozenset({KeepForeignRedirection})
    for _ in range(2):
        assert world.run(CHOICES[1]).errors
    world.fails = frozenset()
    assert world.run(CHOICES[1]).done
    assert world.rules[0] == VPN
    assert world.rules[1:] == rules_text.dnat_rules(upstream_servers.pairs(V, CHOICES[1].servers))
    assert world.ledger.record.provided.names.text == FOREIGN
    assert world.choice.reason.endswith("10.139.1.1 -> 10.8.0.1, 10.139.1.2 -> 10.8.0.1")


def test_a_change_between_our_load_and_our_look_is_not_taken_for_ours() -> None:
    world = World()
    world.between = VPN
    world.run(CHOICES[0])
    assert world.verified != world.nft.generation
    assert world.ledger.record.provided.names.seen == DOUBTED
    (op, *_) = world.run(CHOICES[0]).done
    assert isinstance(op, KeepForeignRedirection)


@pytest.mark.behaviour("B148")
def test_connections_are_forgotten_where_the_same_was_loaded_again_and_the_agent_killed() -> None:
    world = settled()
    world.others(NOWHERE)
    world.patient, world.killed = False, 1
    with pytest.raises(Killed):
        world.run(CHOICES[0])
    assert world.stale
    world.restart()
    world.killed = 0
    assert world.run(CHOICES[0]).done == (PurgeConntrack(V),)
    assert not world.stale
    assert world.run(CHOICES[0]) == Outcome()


def test_without_virtual_addresses_there_is_no_connection_to_forget() -> None:
    nft = Ruleset()
    nft.load(TABLE)
    facts = Facts(1, nft.listing("ip", "qubes"))
    decision = redirection.plan(Asked((), CHOICES[0]), facts, Memory(), Record(), Outcome())
    assert decision.planned.ops == (LoadRedirection((), CHOICES[0].servers),)


@pytest.mark.parametrize("killed", [True, False], ids=["after an agent that was killed", "by another program"])
def test_our_rules_beside_an_emptied_chain_are_loaded_again_at_once_or_after_a_quiet_second(killed: bool) -> None:
    world = settled()
    world.nft.load("flush chain ip qubes dns-reject\n")
    if killed:
        names = world.ledger.record.provided.names._replace(seen=DOUBTED)
        world.ledger.record = Record(provided=world.ledger.record.provided._replace(names=names))
    done = world.run(CHOICES[0]).done
    assert (bool(done), bool(world.choice.again)) == (killed, not killed)


def test_our_rules_are_known_as_ours_beside_what_was_judged_of_others() -> None:
    world = settled()
    world.others(VPN)
    world.run(CHOICES[0])
    asked, memory = Asked(V, CHOICES[0]), world.memory
    assert memory.foreign is not None
    by_others = redirection.known(asked, memory, world.ledger.record)
    assert by_others is not None
    assert by_others.problem == upstream_servers.FOREIGN
    assert redirection.known(asked, memory, settled().ledger.record) == CHOICES[0]


@pytest.mark.parametrize("beside", [True, False], ids=["ours go on beside them", "theirs alone"])
def test_queries_to_our_servers_pass_where_our_rules_go_on_beside_theirs(beside: bool) -> None:
    world = settled(CHOICES[2])
    world.others(VPN, *(world.rules if beside else ()))
    (op, *_) = world.run(CHOICES[2]).done
    assert isinstance(op, KeepForeignRedirection)
    assert op.passing == (CHOICES[2].servers if beside else ())
