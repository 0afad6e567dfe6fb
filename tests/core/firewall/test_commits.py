# SPDX-License-Identifier: GPL-2.0-or-later
"""The commit protocol, as a table of moments and as random histories of dom0, vifs and the agent."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubes_guestnet.core.firewall.commits import PATIENCE, QUIET, Facts, Outcome, State, advance, ordered
from qubes_guestnet.core.firewall.entries import by_address
from qubes_guestnet.core.firewall.parsing import parse
from qubes_guestnet.core.values import IPAddress
from tests.core.firewall.made import FOUR, SIX, A

COMMIT, FOLDER = f"/qubes-firewall/{FOUR}", f"/qubes-firewall/{FOUR}/"
HERE = frozenset({A(FOUR)})


def stored(*rules: str, policy: str | None = "drop", commit: bool = True, address: str = FOUR) -> dict[str, bytes]:
    """What QubesDB has."""
    found = {f"/qubes-firewall/{address}/{number:04}": rule.encode() for number, rule in enumerate(rules)}
    if policy is not None:
        found[f"/qubes-firewall/{address}/policy"] = policy.encode()
    return found | ({f"/qubes-firewall/{address}": b""} if commit else {})


def facts(
    now: float, raw: dict[str, bytes], *seen: str, attached: frozenset[IPAddress] = HERE, **others: object
) -> Facts:
    return Facts(now, by_address(raw), seen, attached=attached, **others)  # type: ignore[arg-type]


def in_force(outcome: Outcome, address: str = FOUR) -> list[str] | None:
    """The ports of the rules in force, as words; None: there is no list."""
    found = outcome.lists.get(A(address))
    return None if found is None else [str(rule.ports) for rule in found.rules]


OLD = stored("action=accept dstports=1-1")
NEW = stored("action=accept dstports=2-2", "action=accept dstports=3-3")
HALF = stored("action=accept dstports=2-2", policy=None)


def started(raw: dict[str, bytes] = OLD) -> State:
    return advance(State(), facts(0, raw, starts=True)).state


@pytest.mark.behaviour("B79")
def test_a_set_counts_with_its_commit_and_with_nothing_else() -> None:
    before = started()
    written = advance(before, facts(1, NEW, FOLDER, f"{FOLDER}policy", f"{FOLDER}0000", "/qubes-ip"))
    assert (in_force(written), written.handled, written.again) == (["1"], frozenset(), None)
    assert written.state == before._replace(writing={A(FOUR): 1})
    committed = advance(written.state, facts(2, NEW, COMMIT))
    assert (in_force(committed), committed.handled, committed.again) == (["2", "3"], HERE, None)
    again = advance(committed.state, facts(3, NEW, COMMIT, COMMIT))
    assert (in_force(again), again.handled, again.state) == (["2", "3"], HERE, committed.state)


@pytest.mark.behaviour("B91")
@pytest.mark.parametrize("last", [FOLDER, f"{FOLDER}policy", f"{FOLDER}0000"])
def test_a_second_write_behind_the_commit_is_waited_for(last: str) -> None:
    # What is read has a policy, and is whole or not: only the events tell.
    first = advance(started(), facts(1, NEW, f"{FOLDER}0000", COMMIT, FOLDER, last))
    assert (in_force(first), first.again) == (["1"], 1 + QUIET)
    assert in_force(advance(first.state, facts(1.05, NEW))) == ["1"]
    committed = advance(first.state, facts(1.05, NEW, f"{FOLDER}0001", COMMIT))
    assert (in_force(committed), committed.again) == (["2", "3"], None)
    late = advance(first.state, facts(1.1, NEW))
    assert (in_force(late), late.incomplete, late.again) == ([], HERE, 2)
    # dom0 was stopped: what there is counts in the end.
    assert in_force(advance(late.state, facts(2, NEW))) == ["2", "3"]


def test_a_write_is_remembered_until_the_vif_comes() -> None:
    before = advance(State(), facts(0, NEW, COMMIT, FOLDER, f"{FOLDER}policy", attached=frozenset())).state
    attached = advance(before, facts(0.1, NEW))
    assert (attached.lists, attached.waiting) == ({}, HERE)
    assert in_force(advance(attached.state, facts(0.11, NEW, COMMIT))) == ["2", "3"]


@pytest.mark.behaviour("B91")
def test_a_half_set_keeps_the_old_rules_for_100_ms_and_then_refuses_everything() -> None:
    outcome = advance(started(), facts(1, HALF, COMMIT))
    assert (in_force(outcome), outcome.handled, outcome.again) == (["1"], frozenset(), 1 + QUIET)
    outcome = advance(outcome.state, facts(1 + PATIENCE - 0.001, HALF))
    assert (in_force(outcome), outcome.again) == (["1"], 1 + PATIENCE)
    outcome = advance(outcome.state, facts(1 + PATIENCE, HALF))
    assert (in_force(outcome), outcome.handled, outcome.incomplete, outcome.again) == ([], HERE, HERE, None)
    assert "missing, so the list is incomplete" in str(outcome.lists[A(FOUR)].problems[0])
    later = advance(outcome.state, facts(9, HALF))
    assert (in_force(later), later.handled, later.incomplete) == ([], frozenset(), HERE)
    whole = advance(later.state, facts(10, NEW, COMMIT))
    assert (in_force(whole), whole.handled, whole.incomplete) == (["2", "3"], HERE, frozenset())


def test_a_half_set_that_is_whole_in_time_refuses_nothing() -> None:
    outcome = advance(started(), facts(1, HALF, COMMIT))
    outcome = advance(outcome.state, facts(1 + QUIET, NEW))
    assert (in_force(outcome), outcome.handled, outcome.again) == (["2", "3"], HERE, None)


@pytest.mark.parametrize("path", [FOLDER, f"{FOLDER}policy", f"{FOLDER}0000", COMMIT])
def test_a_set_that_changes_while_it_is_read_is_read_again(path: str) -> None:
    outcome = advance(started(), facts(1, NEW, COMMIT, meanwhile=(path,)))
    assert (in_force(outcome), outcome.handled, outcome.again) == (["1"], frozenset(), 1 + QUIET)
    calm = advance(outcome.state, facts(1 + QUIET, NEW, COMMIT))
    assert (in_force(calm), calm.handled) == (["2", "3"], HERE)
    late = advance(outcome.state, facts(1 + PATIENCE, NEW, meanwhile=(path,)))
    assert (in_force(late), late.incomplete, late.again) == ([], HERE, 1 + PATIENCE + QUIET)


def test_a_second_commit_that_came_during_the_read_is_read_too() -> None:
    outcome = advance(started(), facts(1, NEW, COMMIT, meanwhile=(FOLDER, COMMIT)))
    assert (in_force(outcome), outcome.again) == (["1"], 1 + QUIET)
    assert in_force(advance(outcome.state, facts(1 + QUIET, OLD))) == ["1"]


def test_a_change_of_another_address_is_no_reason_to_read_again() -> None:
    outcome = advance(started(), facts(1, NEW, COMMIT, meanwhile=(f"/qubes-firewall/{SIX}/policy",)))
    assert (in_force(outcome), outcome.again) == (["2", "3"], None)


def test_a_commit_that_came_during_the_read_counts() -> None:
    outcome = advance(started(), facts(1, NEW, meanwhile=(COMMIT,)))
    assert outcome.again == 1 + QUIET
    assert in_force(advance(outcome.state, facts(1 + QUIET, NEW))) == ["2", "3"]


@pytest.mark.behaviour("B80")
def test_the_first_commit_of_an_address_without_a_vif_counts_though_it_came_during_the_read() -> None:
    """The entries were read before it: a starting qube had no network until the next commit."""
    early = advance(State(), facts(1, {}, meanwhile=(f"{FOLDER}policy", COMMIT), attached=frozenset()))
    assert early.state.committed == HERE
    assert in_force(advance(early.state, facts(2, NEW))) == ["2", "3"]
    removed = advance(early.state, facts(2, {}, FOLDER, attached=frozenset()))
    assert removed.state.committed == frozenset()


@pytest.mark.behaviour("B91")
def test_a_second_write_that_began_during_that_read_is_waited_for() -> None:
    early = advance(State(), facts(1, {}, meanwhile=(f"{FOLDER}policy", COMMIT, FOLDER), attached=frozenset()))
    assert in_force(advance(early.state, facts(1.01, NEW))) is None
    assert in_force(advance(early.state, facts(1.02, NEW, COMMIT))) == ["2", "3"]


@pytest.mark.behaviour("B66")
def test_a_whole_set_with_an_error_is_handled_and_refuses_everything() -> None:
    outcome = advance(started(), facts(1, stored("action=accept", "foo"), COMMIT))
    assert (in_force(outcome), outcome.handled, outcome.incomplete) == ([], HERE, frozenset())
    assert outcome.lists[A(FOUR)].blocked


# --- vifs --------------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("B80")
def test_a_set_without_a_vif_has_no_effect() -> None:
    outcome = advance(State(), facts(0, OLD, COMMIT, attached=frozenset(), starts=True))
    assert (outcome.lists, outcome.waiting, outcome.handled) == ({}, frozenset(), frozenset())


@pytest.mark.behaviour("B80")
def test_between_the_attachment_and_the_first_commit_nothing_passes() -> None:
    before = advance(State(), facts(0, OLD, attached=frozenset(), starts=True)).state
    attached = advance(before, facts(1, OLD))  # rules of a former qube, or of a former provider
    assert (attached.lists, attached.waiting, attached.again) == ({}, HERE, None)
    outcome = advance(attached.state, facts(2, NEW, COMMIT))
    assert (in_force(outcome), outcome.waiting) == (["2", "3"], frozenset())


def test_a_commit_before_the_vif_counts() -> None:
    before = advance(State(), facts(0, {}, attached=frozenset(), starts=True)).state
    committed = advance(before, facts(1, NEW, COMMIT, attached=frozenset()))
    assert committed.state.committed == HERE
    outcome = advance(committed.state, facts(2, NEW))
    assert (in_force(outcome), outcome.state.committed) == (["2", "3"], frozenset())


@pytest.mark.behaviour("B80")
def test_after_an_offline_a_stale_set_waits_for_a_commit() -> None:
    gone = advance(started(), facts(1, OLD, attached=frozenset(), detached=HERE))
    assert (gone.lists, gone.waiting) == ({}, frozenset())
    back = advance(gone.state, facts(2, OLD))
    assert (back.lists, back.waiting) == ({}, HERE)


@pytest.mark.behaviour("B80")
def test_a_vif_that_went_and_came_within_one_pass_waits_too() -> None:
    back = advance(started(), facts(1, OLD, detached=HERE))
    assert (back.lists, back.waiting) == ({}, HERE)
    committed = advance(started(), facts(1, NEW, COMMIT, detached=HERE))
    assert in_force(committed) == ["2", "3"]


@pytest.mark.scenario("S-100")
@pytest.mark.parametrize("raw", [NEW, stored("action=accept", commit=False)])
def test_for_a_vif_that_was_there_before_the_agent_knew_of_it_a_committed_set_counts(raw: dict[str, bytes]) -> None:
    before = advance(State(), facts(0, raw, attached=frozenset(), starts=True)).state
    found = advance(before, facts(1, raw, found=HERE))
    assert in_force(found) == (["2", "3"] if raw == NEW else None)
    assert advance(before, facts(1, raw)).waiting == HERE
    kept = advance(started(), facts(1, NEW, found=HERE))
    assert in_force(kept) == ["1"]
    assert kept.handled == frozenset()


def test_a_commit_before_the_last_offline_does_not_count() -> None:
    before = advance(State(), facts(0, NEW, COMMIT, attached=frozenset())).state
    assert before.committed == HERE
    back = advance(before, facts(1, NEW, detached=HERE))
    assert (back.lists, back.waiting) == ({}, HERE)


def test_a_commit_that_waits_for_its_set_ends_with_the_vif() -> None:
    half = advance(started(), facts(1, HALF, COMMIT))
    gone = advance(half.state, facts(1.001, NEW, attached=frozenset()))
    assert (gone.state.due, gone.again) == ({}, None)
    assert advance(gone.state, facts(1.002, NEW)).waiting == HERE


def test_what_qubesdb_has_no_more_is_forgotten() -> None:
    before = advance(State(), facts(0, NEW, COMMIT, attached=frozenset())).state
    assert advance(before, facts(1, {}, attached=frozenset())).state.committed == frozenset()


# --- the agent starts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boots", [True, False])
def test_a_list_of_before_the_boot_counts_for_the_first_vif_of_its_address(boots: bool) -> None:
    """A provider that starts under running qubes; after a restart of the agent alone it is stale (F-05)."""
    before = advance(State(), facts(0, OLD, attached=frozenset(), starts=True, boots=boots)).state
    outcome = advance(before, facts(1, OLD))
    assert (set(outcome.lists), outcome.waiting) == ((HERE, set()) if boots else (set(), HERE))
    left = advance(outcome.state, facts(2, OLD, attached=frozenset()))
    assert advance(left.state, facts(3, OLD)).waiting == HERE


@pytest.mark.behaviour("B73")
def test_at_a_start_a_committed_set_of_an_attached_vif_counts() -> None:
    outcome = advance(State(), facts(0, OLD, starts=True))
    assert (in_force(outcome), outcome.handled, outcome.kept) == (["1"], HERE, frozenset())


def test_at_a_start_a_set_that_was_never_committed_does_not_count() -> None:
    outcome = advance(State(), facts(0, stored(commit=False), starts=True))
    assert (outcome.lists, outcome.waiting, outcome.kept) == ({}, HERE, frozenset())


@pytest.mark.behaviour("B73")
def test_at_a_start_within_a_write_what_a_former_agent_loaded_stays_for_100_ms() -> None:
    outcome = advance(State(), facts(0, HALF, starts=True))
    assert (outcome.lists, outcome.kept, outcome.waiting) == ({}, HERE, frozenset())
    outcome = advance(outcome.state, facts(0.01, HALF))
    assert outcome.kept == HERE
    late = advance(outcome.state, facts(PATIENCE, HALF))
    assert (in_force(late), late.kept, late.waiting) == ([], frozenset(), frozenset())
    gone = advance(outcome.state, facts(0.02, HALF, attached=frozenset()))
    assert (gone.kept, gone.state.kept) == (frozenset(), frozenset())


def test_the_order_of_addresses() -> None:
    assert ordered({A(SIX), A("10.137.0.10"), A("10.137.0.9")}) == (A("10.137.0.9"), A("10.137.0.10"), A(SIX))


# --- histories ---------------------------------------------------------------------------------------------------


class World:
    """dom0, one vif and the agent, a step at a time: a read can fall between any two writes."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.raw: dict[str, bytes] = {}
        self.attached = False
        self.events: list[str] = []
        self.script: list[tuple[str, str, bytes]] = []
        self.detached = False
        self.state, self.starts, self.now = State(), True, 0.0
        # What may be in force: lists that were committed since the one that was in force last.
        self.allowed: list[frozenset[str]] = []
        self.writing: frozenset[str] = frozenset()
        self.excused: frozenset[str] = frozenset()

    def step(self) -> None:
        """One thing happens."""
        what = self.chance.randrange(10)
        if what == 0:
            self.toggle()
        elif what == 1:
            # The agent is killed. The next one cannot know that dom0 is writing.
            self.state, self.starts, self.events = State(), True, []
            self.excused = self.writing if self.script else frozenset()
        elif what < 5 or self.script:
            self.write()
        else:
            self.look()

    def toggle(self) -> None:
        self.attached = not self.attached
        self.detached |= not self.attached
        if not self.attached:
            self.allowed = []

    def write(self) -> None:
        """One write of dom0."""
        if not self.script:
            ports = frozenset(str(port) for port in self.chance.sample(range(1, 9), self.chance.randrange(4)))
            self.script = [("rm", FOLDER, b""), ("write", f"{FOLDER}policy", b"drop")]
            for number, port in enumerate(sorted(ports)):
                self.script.append(("write", f"{FOLDER}{number:04}", f"action=accept dstports={port}-{port}".encode()))
            self.script.append(("write", COMMIT, b""))
            self.writing = ports
        verb, path, value = self.script.pop(0)
        if verb == "rm":
            self.raw = {key: each for key, each in self.raw.items() if not key.startswith(path)}
        else:
            self.raw[path] = value
        if path == COMMIT:
            self.allowed.append(self.writing)
            self.excused = frozenset()
        self.events.append(path)

    def look(self) -> Outcome:
        """A pass: dom0 may write during its read, behind what it has read."""
        seen, self.events = tuple(self.events), []
        raw = dict(self.raw)
        for _ in range(self.chance.choice((0, 0, 1, 3)) if self.script else 0):
            self.write()
        meanwhile, self.events = tuple(self.events), []
        self.now += self.chance.choice((0.001, 0.01, 0.06))
        attached = HERE if self.attached else frozenset()
        detached = HERE if self.detached else frozenset()
        outcome = advance(
            self.state, Facts(self.now, by_address(raw), seen, meanwhile, attached, detached, self.starts)
        )
        self.state, self.starts, self.detached = outcome.state, False, False
        return outcome


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.randoms(use_true_random=False))
def test_nothing_passes_that_no_committed_list_allows(chance: Random) -> None:
    world = World(chance)
    for _ in range(60):
        world.step()
        outcome = world.look()
        ports = in_force(outcome)
        if ports is None:
            continue
        assert world.attached
        passing = frozenset(ports)
        assert not passing or passing in world.allowed or passing == _committed(world) or passing <= world.excused
        # From now on this one, and what is committed later.
        place = world.allowed.index(passing) if passing in world.allowed else len(world.allowed)
        world.allowed = [passing, *world.allowed[place + 1 :]] if passing else world.allowed
    while world.script:
        world.write()
    world.attached = True
    for _ in range(3):
        world.look()
    world.write()
    while world.script:
        world.write()
    for _ in range(3):
        outcome = world.look()
    assert frozenset(in_force(outcome) or ()) == world.writing


def _committed(world: World) -> frozenset[str] | None:
    """The list of QubesDB where no write is under way: a start takes it though its commit was before the vif."""
    found = parse(A(FOUR), by_address(world.raw).sets.get(A(FOUR), {}))
    return None if world.script else frozenset(str(rule.ports) for rule in found.rules)
